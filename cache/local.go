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
	"path"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/outfile"
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

// layout is a directory that is an OCI layout. Its user may change it at any time.
type layout struct{ dir string }

const blobsDir = "blobs/sha256"

// path is a blob's name in the directory.
func (l layout) path(d graph.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", err
	}
	return path.Join("blobs", d.Algorithm().String(), d.Encoded()), nil
}

// read opens a file of the directory.
func (l layout) read(name string) (*os.File, error) {
	dir, err := outfile.OpenExisting(l.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Open(name)
}

// blob opens a blob.
func (l layout) blob(d graph.Digest) (*os.File, error) {
	name, err := l.path(d)
	if err != nil {
		return nil, err
	}
	f, err := l.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, diag.Errorf(diag.NotFound, "%s has no blob %s", l.dir, d)
	}
	return f, err
}

func (l layout) stat(_ context.Context, d graph.Digest) (int64, error) {
	f, err := l.blob(d)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

func (l layout) open(_ context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error) {
	f, err := l.blob(d.Digest)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// write adds a blob; one that is there stays.
func (l layout) write(ctx context.Context, d image.Descriptor, r io.Reader) error {
	if n, err := l.stat(ctx, d.Digest); err == nil && n == d.Size {
		return nil
	}
	name, err := l.path(d.Digest)
	if err != nil {
		return err
	}
	dir, err := outfile.OpenDir(l.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.MkdirAll(path.Dir(name)); err != nil {
		return err
	}
	return dir.WriteFrom(name, func(w io.Writer) error {
		h := digest.SHA256.Digester()
		if _, err := io.Copy(io.MultiWriter(w, h.Hash()), r); err != nil {
			return err
		}
		if h.Digest() != d.Digest {
			return diag.Errorf(diag.Conflict, "a blob of the cache has the digest %s, not %s", h.Digest(), d.Digest)
		}
		return nil
	})
}

// maxIndex is the size of the largest index.json, in bytes.
const maxIndex = 4 << 20

func (l layout) index() (ocispec.Index, error) {
	ix := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}
	ix.SchemaVersion = 2
	f, err := l.read(ocispec.ImageIndexFile)
	if errors.Is(err, fs.ErrNotExist) {
		return ix, nil
	}
	if err != nil {
		return ix, err
	}
	defer f.Close()
	return ix, strictjson.Limits{Bytes: maxIndex}.Read(f, &ix)
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
	dir, err := outfile.OpenDir(l.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	err = errors.Join(
		dir.Write(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`)),
		dir.Write(ocispec.ImageIndexFile, raw))
	if err != nil || reset == nil {
		return err
	}
	needed := map[string]bool{}
	for _, d := range reset {
		needed[d.Encoded()] = true
	}
	all, err := dir.Names(blobsDir)
	for _, name := range all {
		if !needed[name] {
			err = errors.Join(err, dir.Remove(path.Join(blobsDir, name)))
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
