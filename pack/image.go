package pack

import (
	"bufio"
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/relayer"
)

// Image is an image of one platform. It is a value: the functions of this package that change images return new ones.
type Image struct {
	Name        string // what it was opened as
	Platform    graph.Platform
	Config      *image.Config // RootFS is made from Layers when the image is written
	Layers      []*Layer      // bottom first; the same layer may be there twice
	Annotations map[string]string

	manifest  *archive.Blob // as it was read; nil: something was changed
	rawConfig []byte
}

// Layer is one layer: a blob somewhere, a file, or a list of entries of which no tar exists yet.
type Layer struct {
	Name        string            // for people: a path, a component
	Annotations map[string]string // of its descriptor
	History     image.History     // its row in the history of a new image
	Cut         *relayer.Layer    // what it was cut as; nil for others

	mu      sync.Mutex
	diffID  graph.Digest // "": not known yet
	size    int64        // of the tar, if known
	blob    image.Descriptor
	at      *place
	entries []*layer.Entry // nil: not indexed yet
	opt     layer.TarOptions
	virtual bool // the entries are all there is
	plain   plainTar
	packed  map[layer.Compression]archive.Blob
	check   *check // of the tar's digest, while the entries are in use already
}

// plainTar is an uncompressed tar that can be read at any place.
type plainTar struct {
	at   io.ReaderAt
	size int64
}

// place is where blobs are: files, or a registry's repository.
type place struct {
	file     func(image.Descriptor) (archive.File, error)
	registry *registry.Client
	ref      registry.Ref
}

func (p *place) open(ctx context.Context, d image.Descriptor) (io.ReadCloser, error) {
	if p.file != nil {
		return p.file(d)
	}
	return p.registry.Fetch(ctx, p.ref, d, 0)
}

// read returns a small blob, verified.
func (p *place) read(ctx context.Context, d image.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, diag.Errorf(diag.Exhausted, "%s has %d bytes, the limit is %d", d.Digest, d.Size, limit)
	}
	var raw []byte
	err := registry.Again(ctx, func() error {
		r, err := p.open(ctx, d)
		if err != nil {
			return err
		}
		defer r.Close()
		raw, err = io.ReadAll(io.LimitReader(r, limit+1))
		return err
	})
	if err != nil {
		return nil, err
	}
	if d.Digest.Validate() != nil || !d.Digest.Algorithm().Available() || d.Digest.Algorithm().FromBytes(raw) != d.Digest {
		return nil, diag.Errorf(diag.Invalid, "the bytes of %s have another digest", d.Digest)
	}
	return raw, nil
}

func thisMachine() graph.Platform { return graph.Platform{OS: "linux", Architecture: runtime.GOARCH} }

// addLayers makes the layers of an image that was read.
func (im *Image) addLayers(blobs []image.Descriptor, at *place) error {
	same := map[graph.Digest]*Layer{}
	rows := slices.DeleteFunc(slices.Clone(im.Config.History), func(h image.History) bool { return h.EmptyLayer })
	for i, d := range blobs {
		if _, ok := layer.TypeOf(d.MediaType); !ok {
			return diag.Errorf(diag.Unsupported, "%s: layer %d has the media type %q", im.Name, i+1, d.MediaType)
		}
		l := same[d.Digest]
		if l == nil || l.diffID != im.Config.RootFS.DiffIDs[i] {
			l = &Layer{blob: d, at: at, diffID: im.Config.RootFS.DiffIDs[i], Annotations: d.Annotations, Name: d.Annotations[TitleAnnotation]}
			same[d.Digest] = l
			if len(rows) == len(blobs) { // else the history does not tell
				l.History = rows[i]
			}
		}
		im.Layers = append(im.Layers, l)
	}
	return nil
}

// TitleAnnotation holds a layer's name.
const TitleAnnotation = "org.opencontainers.image.title"

// NewLayer makes a layer of entries as WriteEntries would write them with the options. No tar is made before one is needed.
func NewLayer(name string, entries []*layer.Entry, opt layer.TarOptions) *Layer {
	own := make([]*layer.Entry, len(entries))
	for i, e := range entries {
		own[i] = layer.Written(e, opt)
	}
	return &Layer{Name: name, entries: own, opt: layer.TarOptions{AllXattrs: true}, virtual: true}
}

// TarLayer makes a layer of a tar in a file, in any compression that layer.Decompress knows. The bytes stay as they are.
func (w *Workspace) TarLayer(ctx context.Context, path string) (*Layer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, diag.Errorf(diag.NotFound, "cannot read the layer: %w", err)
	}
	w.onClose(f.Close)
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil, diag.Errorf(diag.Invalid, "%s is no regular file", path)
	}
	blob := layer.NewDigestReader(io.NewSectionReader(f, 0, st.Size()))
	defer blob.Close()
	plain, t, err := layer.Decompress(blob)
	if err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "%s: %w", path, err)
	}
	defer plain.Close()
	l := &Layer{Name: filepath.Base(path), at: &place{file: func(image.Descriptor) (archive.File, error) {
		return section{io.NewSectionReader(f, 0, st.Size())}, nil
	}}}
	if t == layer.Uncompressed {
		l.plain.at = f
	}
	if err := w.index(ctx, l, plain); err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "%s: %w", path, err)
	}
	l.blob = image.Descriptor{Digest: blob.Digest(), Size: st.Size()}
	if l.blob.MediaType, err = layer.MediaType(t, false); err != nil { // bzip2, xz: no blob can be so
		l.blob, l.at = image.Descriptor{}, nil
	}
	return l, nil
}

type section struct{ *io.SectionReader }

func (section) Close() error { return nil }

// Digest returns the digest of the layer as it is kept, "" if it is not kept as a blob.
func (l *Layer) Digest() graph.Digest { return l.blob.Digest }

// Size returns the bytes of the blob, 0 if there is none yet.
func (l *Layer) Size() int64 { return l.blob.Size }

// MediaType returns that of the blob.
func (l *Layer) MediaType() string { return l.blob.MediaType }

// Entries lists what is in a layer, in the order of its tar. The first call reads all of it, and verifies it. Contents can
// be read until the workspace is closed.
func (w *Workspace) Entries(ctx context.Context, l *Layer) ([]*layer.Entry, error) {
	if err := w.listed(ctx, l); err != nil {
		return nil, err
	}
	return l.entries, l.check.wait(ctx)
}

// listed is Entries but for the end of the verification, which [Workspace.checked] waits for.
func (w *Workspace) listed(ctx context.Context, l *Layer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.entries != nil {
		return nil
	}
	if err := w.readBlob(ctx, l); err != nil {
		return diag.Errorf(diag.KindOf(err), "layer %s: %w", l.blob.Digest, err)
	}
	return nil
}

// readBlob lists what is in a layer's blob and verifies both of its digests; that of a plain tar in a file in the background.
func (w *Workspace) readBlob(ctx context.Context, l *Layer) error {
	want := l.diffID
	return registry.Again(ctx, func() error {
		l.diffID = want
		return w.readBlobOnce(ctx, l)
	})
}

func (w *Workspace) readBlobOnce(ctx context.Context, l *Layer) error {
	r, err := l.at.open(ctx, l.blob)
	if err != nil {
		return err
	}
	f, ok := r.(archive.File)
	if ok {
		w.onClose(f.Close) // entries may read from it
	} else {
		defer r.Close()
	}
	if t, known := layer.TypeOf(l.blob.MediaType); ok && known && t == layer.Uncompressed && l.blob.Digest == l.diffID {
		return w.indexPlain(ctx, l, f)
	}
	var in io.Reader = r
	var blob *layer.DigestReader // nil: the blob is the tar, whose digest is checked anyway
	if l.blob.Digest != l.diffID {
		blob = layer.NewDigestReader(r)
		defer blob.Close()
		in = blob
	}
	plain, t, err := layer.Decompress(in)
	if err != nil {
		return err
	}
	defer plain.Close()
	if ok && t == layer.Uncompressed {
		l.plain.at = f
	}
	want := l.diffID
	if err := w.index(ctx, l, plain); err != nil {
		plain.Close() // nobody else reads r then
		return registry.Reason(r, err)
	}
	if l.diffID != want && want != "" {
		return diag.Errorf(diag.Invalid, "its tar is %s, the configuration says %s", l.diffID, want)
	}
	if blob != nil && blob.Digest() != l.blob.Digest {
		return diag.Errorf(diag.Invalid, "its bytes have the digest %s", blob.Digest())
	}
	return nil
}

// indexPlain lists the entries of a plain tar in a file and begins to verify it.
func (w *Workspace) indexPlain(ctx context.Context, l *Layer, f io.ReaderAt) (err error) {
	size := l.blob.Size
	if l.entries, err = layer.Index(ctx, io.NewSectionReader(f, 0, size), f); err != nil {
		return err
	}
	l.check = w.check(io.NewSectionReader(f, 0, size), l.diffID)
	l.size, l.plain, l.opt = size, plainTar{f, size}, layer.TarOptions{AllXattrs: true}
	if l.entries == nil {
		l.entries = []*layer.Entry{}
	}
	return nil
}

// index reads a plain tar to its end: entries, diff_id and size. A tar that was compressed is kept in a temporary file,
// for its contents to be read again.
func (w *Workspace) index(ctx context.Context, l *Layer, plain io.Reader) error {
	tar := layer.NewDigestReader(plain)
	defer tar.Close()
	var in io.Reader = tar
	at := l.plain.at
	keep := bufio.NewWriterSize(io.Discard, 1<<20)
	if at == nil {
		f, err := w.file()
		if err != nil {
			return err
		}
		keep.Reset(f)
		at, in = f, io.TeeReader(tar, keep)
	}
	entries, err := layer.Index(ctx, in, at)
	if err != nil {
		return err
	}
	if err := keep.Flush(); err != nil {
		return diag.Errorf(diag.Exhausted, "keeping a layer: %w", err)
	}
	l.entries, l.diffID, l.size = entries, tar.Digest(), tar.Size()
	l.plain = plainTar{at, l.size}
	l.opt = layer.TarOptions{AllXattrs: true}
	if l.entries == nil {
		l.entries = []*layer.Entry{}
	}
	return nil
}

// DiffID returns the digest of the layer's tar, which is made for nobody if it is not known.
func (w *Workspace) DiffID(ctx context.Context, l *Layer) (graph.Digest, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.diffID, l.hash(ctx, nil)
}

// hash makes the tar of a virtual layer to learn its digest and size, with to as a second reader.
func (l *Layer) hash(ctx context.Context, to io.Writer) error {
	if l.diffID != "" && to == nil {
		return nil
	}
	v, err := layer.NewVirtual(ctx, l.entries, l.opt, to)
	if err != nil {
		return err
	}
	l.diffID, l.size = v.DiffID, v.Stats.Size
	return nil
}

// FS returns the file system that an image shows.
func (w *Workspace) FS(ctx context.Context, im *Image) (*layer.FS, error) {
	fs, err := w.stack(ctx, im.Layers, layer.NewFS())
	if err != nil {
		return nil, err
	}
	return fs, w.checked(ctx)
}

// stack lists layers, several at a time, and adds them to a file system. They are verified when an image is written.
func (w *Workspace) stack(ctx context.Context, layers []*Layer, fs *layer.FS) (*layer.FS, error) {
	err := w.each(ctx, layers, func(l *Layer, _ int) error {
		return w.listed(ctx, l)
	})
	if err != nil {
		return nil, err
	}
	for i, l := range layers {
		if err := fs.Add(l.entries); err != nil {
			return nil, diag.Errorf(diag.KindOf(err), "layer %d: %w", i+1, err)
		}
	}
	return fs, nil
}
