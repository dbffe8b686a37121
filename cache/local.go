package cache

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/strictjson"
)

// DirName is how a session names a directory of the client that is a cache.
func DirName(path string) string { return "cache:" + path }

// contents is a store of content: a client's, or a directory that is an OCI layout.
type contents interface {
	blobs
	write(ctx context.Context, d image.Descriptor, r io.Reader) error
}

func importLocal(s Spec, env Env) (func(context.Context) (*index, error), string, error) {
	src := s.Attrs["src"]
	if src == "" {
		return nil, "", diag.Errorf(diag.Invalid, "local cache importer requires src")
	}
	return func(ctx context.Context) (*index, error) {
		d := valid(s.Attrs["digest"])
		var c contents
		var err error
		if far, ok := env.Session.(session.Contents); ok {
			c = clientStore{far, "local:" + src}
			if d == "" {
				return nil, diag.Errorf(diag.Invalid, "local cache importer requires explicit digest")
			}
		} else if c, d, err = openLocal(ctx, s, env, d); err != nil {
			return nil, err
		}
		size, err := c.stat(ctx, d)
		if err != nil {
			return nil, err
		}
		docs := documents{c, func(ctx context.Context, d image.Descriptor) ([]byte, error) { return readAll(ctx, c, d) }}
		return docs.load(ctx, image.Descriptor{Digest: d, Size: size})
	}, "local:" + src + s.Attrs["digest"] + s.Attrs["tag"], nil
}

// openLocal opens a directory of this machine. Without a digest, the tag says which cache of it.
func openLocal(ctx context.Context, s Spec, env Env, d graph.Digest) (contents, graph.Digest, error) {
	if env.Session == nil {
		return nil, "", diag.Errorf(diag.NotFound, "there is no client that has the cache %s", s.Attrs["src"])
	}
	at, err := env.Session.Dir(ctx, DirName(s.Attrs["src"]))
	if err != nil || d != "" {
		return layout{at.Path}, d, err
	}
	tag := s.Attrs["tag"]
	if tag == "" {
		tag = "latest"
	}
	ix, err := layout{at.Path}.index()
	if err != nil {
		return nil, "", err
	}
	for _, m := range ix.Manifests {
		if m.Annotations[ocispec.AnnotationRefName] == tag {
			return layout{at.Path}, m.Digest, nil
		}
	}
	return nil, "", diag.Errorf(diag.NotFound, "%s has no cache with the tag %s", at.Path, tag)
}

// clientStore is a store of content of a client on the other end of a connection.
type clientStore struct {
	session.Contents
	id string
}

func (c clientStore) stat(ctx context.Context, d graph.Digest) (int64, error) {
	return c.StatContent(ctx, c.id, d)
}

func (c clientStore) open(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error) {
	return c.ReadContent(ctx, c.id, d.Digest, offset)
}

func (c clientStore) write(ctx context.Context, d image.Descriptor, r io.Reader) error {
	return c.WriteContent(ctx, c.id, d, r)
}

// layout is a directory that is an OCI layout.
type layout struct{ dir string }

func (l layout) path(d graph.Digest) string {
	return filepath.Join(l.dir, "blobs", d.Algorithm().String(), d.Encoded())
}

func (l layout) stat(_ context.Context, d graph.Digest) (int64, error) {
	if err := d.Validate(); err != nil {
		return 0, err
	}
	st, err := os.Stat(l.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, diag.Errorf(diag.NotFound, "%s has no blob %s", l.dir, d)
	}
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (l layout) open(_ context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, err
	}
	f, err := os.Open(l.path(d.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, diag.Errorf(diag.NotFound, "%s has no blob %s", l.dir, d.Digest)
	}
	if err == nil {
		_, err = f.Seek(offset, io.SeekStart)
	}
	return f, err
}

// write adds a blob; one that is there stays.
func (l layout) write(ctx context.Context, d image.Descriptor, r io.Reader) error {
	if n, err := l.stat(ctx, d.Digest); err == nil && n == d.Size {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(l.path(d.Digest)), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(l.path(d.Digest)), ".part-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	h := digest.SHA256.Digester()
	if _, err := io.Copy(io.MultiWriter(f, h.Hash()), r); err != nil {
		return err
	}
	if h.Digest() != d.Digest {
		return diag.Errorf(diag.Conflict, "a blob of the cache has the digest %s, not %s", h.Digest(), d.Digest)
	}
	return errors.Join(f.Chmod(0o644), f.Close(), os.Rename(f.Name(), l.path(d.Digest)))
}

func (l layout) index() (ocispec.Index, error) {
	ix := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}
	ix.SchemaVersion = 2
	raw, err := os.ReadFile(filepath.Join(l.dir, ocispec.ImageIndexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return ix, nil
	}
	if err == nil {
		err = strictjson.Unmarshal(raw, &ix)
	}
	return ix, err
}

// tag lets a tag name a manifest, and with reset removes what is not needed for it.
func (l layout) tag(tag string, m *manifest, reset []graph.Digest) error {
	ix, err := l.index()
	if err != nil {
		return err
	}
	desc := m.desc
	desc.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	kept := []image.Descriptor{desc}
	for _, d := range ix.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] != tag && reset == nil {
			kept = append(kept, d)
		}
	}
	ix.Manifests = kept
	raw, err := json.Marshal(ix)
	if err != nil {
		return err
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(l.dir, ocispec.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644),
		os.WriteFile(filepath.Join(l.dir, ocispec.ImageIndexFile), raw, 0o644))
	if err != nil || reset == nil {
		return err
	}
	needed := map[string]bool{}
	for _, d := range reset {
		needed[d.Encoded()] = true
	}
	all, err := os.ReadDir(filepath.Join(l.dir, "blobs/sha256"))
	for _, e := range all {
		if !needed[e.Name()] {
			err = errors.Join(err, os.Remove(filepath.Join(l.dir, "blobs/sha256", e.Name())))
		}
	}
	return err
}

// toLocal writes a cache to a directory of the client.
type toLocal struct {
	form  manifestForm
	tag   string
	reset bool
	open  func(context.Context) (contents, error)
}

func newToLocal(s Spec, env Env) (place, error) {
	dest := s.Attrs["dest"]
	if dest == "" {
		return nil, diag.Errorf(diag.Invalid, "local cache exporter requires dest")
	}
	if env.Session == nil {
		return nil, diag.Errorf(diag.NotFound, "there is no client that could take the cache %s", dest)
	}
	t := &toLocal{tag: s.Attrs["tag"], open: func(ctx context.Context) (contents, error) {
		if far, ok := env.Session.(session.Contents); ok {
			return clientStore{far, "local:" + dest}, nil
		}
		out, err := env.Session.Output(ctx, DirName(dest))
		return layout{out.Dir}, err
	}}
	if t.tag == "" {
		t.tag = "latest"
	}
	var err error
	if t.form, err = newManifestForm(s); err == nil {
		t.reset, err = flag(s, "reset", false)
	}
	return t, err
}

func (t *toLocal) name() string { return "exporting cache to client directory" }

func (t *toLocal) put(ctx context.Context, l *Layer, _ func(event.Event)) error {
	c, err := t.open(ctx)
	if err != nil {
		return err
	}
	r, err := l.Open(ctx, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	return c.write(ctx, l.Desc, r)
}

func (t *toLocal) finish(ctx context.Context, c *Config, layers []Layer, x *Export) (map[string]string, error) {
	m, err := t.form.make(c, layers)
	if err != nil {
		return nil, err
	}
	to, err := t.open(ctx)
	if err != nil {
		return nil, err
	}
	done := x.step(fmt.Sprintf("writing config %s", m.config.Digest))
	err = to.write(ctx, m.config, bytes.NewReader(m.configRaw))
	done()
	if err != nil {
		return nil, err
	}
	done = x.step(m.title())
	err = to.write(ctx, m.desc, bytes.NewReader(m.raw))
	done()
	if err != nil {
		return nil, err
	}
	if dir, ok := to.(layout); ok {
		var needed []graph.Digest
		if t.reset {
			needed = []graph.Digest{m.desc.Digest, m.config.Digest}
			for i := range layers {
				needed = append(needed, layers[i].Desc.Digest)
			}
		}
		if err := dir.tag(t.tag, m, needed); err != nil {
			return nil, err
		}
	}
	return m.said()
}
