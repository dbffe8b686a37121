package export

import (
	"context"
	"crypto/sha256"
	"hash"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
)

// meter counts and hashes what is written to it.
type meter struct {
	h     hash.Hash
	n     int64
	state uint64 // of the files that a tar was made of, see [layer.Stats]; 0 for other tars
}

func newMeter() *meter { return &meter{h: sha256.New()} }

func (m *meter) Write(b []byte) (int, error) {
	m.n += int64(len(b))
	return m.h.Write(b)
}

func (m *meter) digest() graph.Digest { return digest.NewDigest(digest.SHA256, m.h) }

// counter counts what is written through it. It hides nothing of the writer that a copy could use.
type counter struct {
	io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	c.n += int64(n)
	return n, err
}

// ours reports whether the layer's tar is one that Strata writes, so that it can be made again from the files: if it was
// never pulled, or was made here as well.
func (p *Packer) ours(l Layer) bool {
	vs := p.variants(l)
	for _, v := range vs {
		if as, ok := v.Annotations[madeAs]; ok && !strings.HasSuffix(as, ofPulled) {
			return true
		}
	}
	return len(vs) == 0
}

// keepsTar reports whether the layer's tar must stay the one that was pulled.
func (p *Packer) keepsTar(l Layer) bool { return l.DiffID != "" && l.clamp == nil && !p.ours(l) }

// tar writes the uncompressed tar of a layer: from its files if Strata made it, else from a blob as it was pulled, for
// other tars of the same files have other digests. Without such a blob the files must do, and the digest tells. It returns the
// state of the files, 0 if the tar was not made of them.
func (p *Packer) tar(ctx context.Context, w io.Writer, l Layer) (state uint64, err error) {
	if p.keepsTar(l) {
		for _, v := range p.variants(l) {
			r, err := p.blob(ctx, l, v)
			if err != nil && diag.KindOf(err) == diag.NotFound {
				continue
			}
			if err != nil {
				return 0, err
			}
			return 0, inflate(w, r, l.DiffID)
		}
	}
	if l.ID == 0 {
		return 0, diag.Errorf(diag.NotFound, "the layer %s is neither unpacked nor kept as a blob", l.DiffID).WithHint("pull the image again")
	}
	stats, err := layer.WriteTar(ctx, w, p.store.LayerDir(l.ID), layer.TarOptions{Epoch: l.clamp})
	if err != nil {
		return 0, err
	}
	return stats.State, nil
}

// verified notes that a layer's files make the tar of its diff_id, as the meter has seen it.
func (p *Packer) verified(l Layer, tar *meter) {
	if l.ID != 0 && tar.state != 0 {
		p.store.NoteVerifiedLayer(l.ID, l.DiffID, tar.state)
	}
}

// inflate writes what a compressed blob holds, and fails if that is not the tar with the digest.
func inflate(w io.Writer, r io.ReadCloser, want graph.Digest) error {
	defer r.Close()
	z, _, err := layer.Decompress(r)
	if err != nil {
		return err
	}
	defer z.Close()
	m := newMeter()
	if _, err := io.Copy(io.MultiWriter(w, m), z); err != nil {
		return err
	}
	if got := m.digest(); got != want {
		return diag.Errorf(diag.Conflict, "a layer's blob holds %s, not %s as recorded", got, want).WithHint("pull the image again")
	}
	return nil
}

// blob opens a blob of the layer: of the store, or from where it was pulled.
func (p *Packer) blob(ctx context.Context, l Layer, d image.Descriptor) (io.ReadCloser, error) {
	b, err := p.store.OpenVerified(ctx, d.Digest)
	if err == nil {
		return readCloser{b.Reader(), b}, nil
	}
	if diag.KindOf(err) != diag.NotFound {
		return nil, err
	}
	if c, ok := p.madeBefore(l, d); ok {
		return p.again(ctx, l, d, c, err)
	}
	if l.fetch != nil {
		return l.fetch(ctx, d)
	}
	return nil, err
}

// madeBefore returns the compression with which a packer has made a blob of the layer's files.
func (p *Packer) madeBefore(l Layer, d image.Descriptor) (c layer.Compression, ok bool) {
	for _, v := range p.variants(l) {
		as, ours := v.Annotations[madeAs]
		if v.Digest == d.Digest && ours && l.ID != 0 && !strings.HasSuffix(as, ofPulled) {
			return compressionOf(as)
		}
	}
	return c, false
}

// again makes a blob once more that was damaged or collected after it had been chosen. why is what the caller gets if another
// blob comes out.
func (p *Packer) again(ctx context.Context, l Layer, d image.Descriptor, c layer.Compression, why error) (io.ReadCloser, error) {
	hold := p.store.Hold()
	defer hold.Release() // an open blob is not collected
	m, err := p.make(ctx, l, &c, hold)
	if err != nil {
		return nil, err
	}
	if m.blob.Digest != d.Digest {
		return nil, why
	}
	b, err := p.store.OpenVerified(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	return readCloser{b.Reader(), b}, nil
}

type readCloser struct {
	io.Reader
	io.Closer
}

// tarSize returns the size of a layer's tar, making the tar for nobody if it was never noted.
func (p *Packer) tarSize(ctx context.Context, l Layer) (int64, error) {
	if l.TarSize > 0 {
		return l.TarSize, nil
	}
	c := &counter{Writer: io.Discard}
	_, err := p.tar(ctx, c, l)
	return c.n, err
}

// virtual reports whether a blob is the layer's tar itself, which is not kept but made.
func (l *Layer) virtual(d image.Descriptor) bool { return d.Digest == l.DiffID }

// Open returns a reader of a blob of a layer, as Blob has returned them.
func (p *Packer) Open(ctx context.Context, l Layer, d image.Descriptor) (io.ReadCloser, error) {
	if _, here := p.store.HasBlob(d.Digest); here || !l.virtual(d) {
		return p.blob(ctx, l, d)
	}
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(p.write(ctx, w, l, d))
	}()
	return readCloser{r, closer(func() error {
		cancel()
		err := r.Close()
		<-done
		return err
	})}, nil
}

type closer func() error

func (c closer) Close() error { return c() }

// write copies a blob of the layer to w.
func (p *Packer) write(ctx context.Context, w io.Writer, l Layer, d image.Descriptor) error {
	var n int64
	if _, here := p.store.HasBlob(d.Digest); here || !l.virtual(d) {
		r, err := p.blob(ctx, l, d)
		if err != nil {
			return err
		}
		defer r.Close()
		if n, err = copyBlob(w, r); err != nil {
			return err
		}
	} else {
		var err error
		if n, err = p.writeTar(ctx, w, l); err != nil {
			return err
		}
	}
	if n != d.Size {
		return diag.Errorf(diag.Conflict, "layer %d is %d bytes long, not %d: its files were changed behind the store's back", l.ID, n, d.Size)
	}
	return nil
}

// writeTar writes a layer's tar to somebody else, who gets what the store has promised or an error. Files that are in the state in
// which this process has hashed them are not hashed again; if they turn out to be in another one, they are hashed afterwards.
func (p *Packer) writeTar(ctx context.Context, w io.Writer, l Layer) (int64, error) {
	if known, ok := p.store.VerifiedLayer(l.ID, l.DiffID); ok {
		c := &counter{Writer: w}
		state, err := p.tar(ctx, c, l)
		if err != nil || state == known {
			return c.n, err
		}
		w = io.Discard
	}
	m := newMeter()
	var err error
	if m.state, err = p.tar(ctx, io.MultiWriter(w, m), l); err != nil {
		return 0, err
	}
	if got := m.digest(); got != l.DiffID && l.ID != 0 {
		return 0, p.damaged(ctx, l, got)
	}
	p.verified(l, m)
	return m.n, nil
}

// copyBlob lets the kernel copy when both ends are files.
func copyBlob(w io.Writer, r io.ReadCloser) (int64, error) {
	if rc, ok := r.(readCloser); ok {
		return io.Copy(w, rc.Reader)
	}
	return io.Copy(w, r)
}
