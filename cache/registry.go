package cache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
)

// repository is a repository of a registry.
type repository struct {
	client *registry.Client
	ref    registry.Ref
}

func newRepository(s Spec, env Env) (*repository, error) {
	if s.Attrs["ref"] == "" {
		return nil, diag.Errorf(diag.Invalid, "cache of type %s: missing ref", s.Type).WithHint("add ref=REGISTRY/REPOSITORY:TAG")
	}
	ref, err := registry.ParseRef(s.Attrs["ref"])
	if err != nil {
		return nil, err
	}
	if env.Registry == nil {
		return nil, diag.Errorf(diag.Unavailable, "there is no registry for the cache %s", ref)
	}
	r := &repository{env.Registry, ref}
	if v := s.Attrs["registry.insecure"]; v != "" {
		insecure, err := strconv.ParseBool(v)
		if err != nil {
			return nil, diag.Errorf(diag.Invalid, "failed to parse registry.insecure: %s", v)
		}
		if insecure {
			r.client = env.Registry.Trusting(ref.Host)
		}
	}
	return r, nil
}

func importRegistry(s Spec, env Env) (func(context.Context) (*index, error), string, error) {
	if s.Type == "inline" && s.Attrs["ref"] == "" {
		return nil, "", diag.Errorf(diag.Invalid, "an inline cache is read from an image: add ref=IMAGE")
	}
	r, err := newRepository(s, env)
	if err != nil {
		return nil, "", err
	}
	d := documents{r, func(ctx context.Context, d image.Descriptor) ([]byte, error) { return r.client.Manifest(ctx, r.ref, d) }}
	return func(ctx context.Context) (*index, error) {
		top, err := r.client.Resolve(ctx, r.ref)
		if err != nil {
			return nil, err
		}
		return d.load(ctx, top)
	}, s.Attrs["ref"], nil
}

func (r *repository) open(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error) {
	return r.client.Fetch(ctx, r.ref, d, offset)
}

func (r *repository) stat(ctx context.Context, d graph.Digest) (int64, error) {
	desc, err := r.client.Stat(ctx, r.ref, d)
	return desc.Size, err
}

// toRegistry writes a cache to a registry.
type toRegistry struct {
	repository
	form manifestForm
}

func newToRegistry(s Spec, env Env) (place, error) {
	r, err := newRepository(s, env)
	if err != nil {
		return nil, err
	}
	form, err := newManifestForm(s)
	return &toRegistry{*r, form}, err
}

func (t *toRegistry) name() string { return "exporting cache to registry" }

func (t *toRegistry) put(ctx context.Context, l *Layer, report func(event.Event)) error {
	_, err := t.client.Push(ctx, t.ref, registry.Upload{
		Desc:     l.Desc,
		Open:     func(offset int64) (io.ReadCloser, error) { return l.Open(ctx, offset) },
		Progress: func(n int64) { report(event.Event{Current: n, Total: l.Desc.Size}) },
	})
	return err
}

func (t *toRegistry) finish(ctx context.Context, c *Config, layers []Layer, x *Export) (map[string]string, error) {
	m, err := t.form.make(c, layers)
	if err != nil {
		return nil, err
	}
	done := x.step(fmt.Sprintf("writing config %s", m.config.Digest))
	_, err = t.client.Push(ctx, t.ref, registry.Upload{Desc: m.config, Open: func(offset int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(m.configRaw[offset:])), nil
	}})
	done()
	if err != nil {
		return nil, err
	}
	defer x.step(m.title())()
	if _, err := t.client.PushManifest(ctx, t.ref, m.raw, m.desc.MediaType); err != nil {
		return nil, err
	}
	return m.said()
}
