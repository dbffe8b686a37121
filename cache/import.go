package cache

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/strictjson"
)

// importer returns what reads a cache, and the cache's name.
func importer(s Spec, env Env) (load func(context.Context) (*index, error), id string, err error) {
	switch s.Type {
	case "registry", "inline":
		return importRegistry(s, env)
	case "local":
		return importLocal(s, env)
	case "s3", "azblob":
		st, err := newObjects(s, &env.Rules)
		if err != nil {
			return nil, "", err
		}
		return st.load, st.id(), nil
	case "gha":
		if env.Rules.RefuseActions {
			return nil, "", diag.Errorf(diag.Denied, "cache of type gha: the daemon requires verified caches and cannot verify any").
				WithHint("cache.gha.verify.required in the daemon's configuration says so")
		}
		a, err := newActions(s, &env.Rules)
		if err != nil {
			return nil, "", err
		}
		return a.load, a.id(), nil
	}
	e := diag.Errorf(diag.Invalid, "%w: %s", ErrUnknown, s.Type)
	if near := diag.Suggest(s.Type, []string{"registry", "local", "inline", "s3", "azblob", "gha"}); near != "" {
		return nil, "", e.WithHint("did you mean %s?", near)
	}
	return nil, "", e
}

// ErrUnknown tells of caches of a type that there is not.
var ErrUnknown = errors.New("unknown cache importer")

// documents reads caches that manifests carry.
type documents struct {
	blobs
	// manifest reads a manifest or an index.
	manifest func(ctx context.Context, d image.Descriptor) ([]byte, error)
}

// document is what manifests and indexes have.
type document struct {
	MediaType string             `json:"mediaType"`
	Manifests []image.Descriptor `json:"manifests"`
	Config    *image.Descriptor  `json:"config"`
	Layers    []image.Descriptor `json:"layers"`
}

// load reads the cache that a manifest or index names, or those in the configurations of the images that it names.
func (d *documents) load(ctx context.Context, top image.Descriptor) (*index, error) {
	doc, err := d.document(ctx, top)
	if err != nil {
		return nil, err
	}
	config, layers := doc.Config, doc.Layers
	if doc.Manifests != nil {
		config = nil
		for _, m := range doc.Manifests {
			if m.MediaType == ConfigType {
				config = &m
				continue
			}
			layers = append(layers, m)
		}
	}
	if config == nil || config.MediaType != ConfigType {
		return d.inline(ctx, doc)
	}
	raw, err := readAll(ctx, d.blobs, *config)
	if err != nil {
		return nil, err
	}
	c, err := decode(raw)
	if err != nil {
		return nil, err
	}
	known := map[graph.Digest]Layer{}
	for _, desc := range layers {
		l := fromDescriptor(desc)
		l.at(d.blobs)
		known[desc.Digest] = l
	}
	return parseAt(c, known, d.blobs)
}

// parseAt is parse, where all blobs are in one place.
func parseAt(c *Config, known map[graph.Digest]Layer, b blobs) (*index, error) {
	x, err := parse(c, known)
	if x != nil {
		x.from = b
	}
	return x, err
}

func (d *documents) document(ctx context.Context, desc image.Descriptor) (*document, error) {
	raw, err := d.manifest(ctx, desc)
	if err != nil {
		return nil, err
	}
	var doc document
	if err := strictjson.Unmarshal(raw, &doc); err != nil {
		return nil, diag.Errorf(diag.Invalid, "%s is neither a manifest nor an index: %w", desc.Digest, err)
	}
	return &doc, nil
}

// inline reads the caches in the configurations of images.
func (d *documents) inline(ctx context.Context, doc *document) (*index, error) {
	all := &index{byDigest: map[graph.Digest][]int{}}
	if doc.Manifests == nil {
		return all, d.inlineOf(ctx, doc, all)
	}
	for _, m := range doc.Manifests {
		if m.MediaType != ocispec.MediaTypeImageManifest && m.MediaType != image.DockerManifest {
			continue
		}
		one, err := d.document(ctx, m)
		if err != nil {
			return nil, err
		}
		if err := d.inlineOf(ctx, one, all); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// inlineOf adds the cache of one image.
func (d *documents) inlineOf(ctx context.Context, doc *document, all *index) error {
	if doc.Config == nil || len(doc.Layers) == 0 {
		return nil
	}
	raw, err := readAll(ctx, d.blobs, *doc.Config)
	if err != nil {
		return err
	}
	var img struct {
		RootFS  image.RootFS    `json:"rootfs"`
		History []image.History `json:"history"`
		Cache   []byte          `json:"moby.buildkit.cache.v0"`
	}
	if err := configLimits.Unmarshal(raw, &img); err != nil {
		return diag.Errorf(diag.Invalid, "the image's configuration cannot be read: %w", err)
	}
	if img.Cache == nil || len(img.RootFS.DiffIDs) != len(doc.Layers) {
		return nil
	}
	var made []time.Time
	for _, h := range img.History {
		if h.EmptyLayer {
			continue
		}
		var t time.Time
		if h.Created != nil {
			t = *h.Created
		}
		made = append(made, t)
	}
	c := &Config{}
	if err := configLimits.Unmarshal(img.Cache, &c.Records); err != nil {
		return diag.Errorf(diag.Invalid, "the cache in the image's configuration cannot be read: %w", err)
	}
	known := map[graph.Digest]Layer{}
	for i, desc := range doc.Layers {
		l := Layer{DiffID: img.RootFS.DiffIDs[i], Desc: image.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}}
		if i < len(made) {
			l.Created = made[i]
		}
		l.at(d.blobs)
		known[desc.Digest] = l
		c.Layers = append(c.Layers, ConfigLayer{Blob: desc.Digest, Parent: i - 1})
	}
	x, err := parse(c, known)
	if err != nil {
		return err
	}
	all.join(x)
	return nil
}

// join adds the records of another index.
func (x *index) join(y *index) {
	base := len(x.records)
	for i, r := range y.records {
		for _, in := range r.inputs {
			for k := range in {
				in[k].Link += base
			}
		}
		x.records = append(x.records, r)
		x.byDigest[r.digest] = append(x.byDigest[r.digest], base+i)
	}
}

// readAll reads a small blob and verifies it.
func readAll(ctx context.Context, b blobs, d image.Descriptor) ([]byte, error) {
	if d.Size > maxConfig {
		return nil, diag.Errorf(diag.Exhausted, "%s has %d bytes, more than the %d of a cache's configuration", d.Digest, d.Size, maxConfig)
	}
	var raw []byte
	err := registry.Again(ctx, func() error {
		r, err := b.open(ctx, d, 0)
		if err != nil {
			return err
		}
		defer r.Close()
		raw, err = io.ReadAll(io.LimitReader(r, maxConfig+1))
		return err
	})
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(raw); got != d.Digest {
		return nil, diag.Errorf(diag.Invalid, "the bytes of %s have the digest %s", d.Digest, got)
	}
	return raw, nil
}
