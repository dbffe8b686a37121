package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/store"
)

// defaultCompression is what registries and their clients have taken since the beginning.
var defaultCompression = layer.Compression{Type: layer.Gzip}

// madeAs marks, among the annotations of a blob's record in the store, blobs that a Packer made, with the compression.
// A blob without it was pulled. ofPulled is added to those that hold the tar of a pulled blob, which need not be the one
// that Strata writes of the same files. Neither leaves the store.
const (
	madeAs   = "strata.made-as"
	ofPulled = ", of a pulled tar"
)

// Packer turns layers into diff_ids and blobs. It is safe for concurrent use, and meant to be shared by all builds of a
// store: equal work that is asked for at the same time is done once, and what was made is found again.
type Packer struct {
	store   *store.Store
	slots   chan struct{} // layers that are being read at one time
	flights flights
}

// NewPacker returns a packer that reads as many layers at a time as there are processors.
func NewPacker(s *store.Store) *Packer {
	return &Packer{store: s, flights: flights{store: s}, slots: make(chan struct{}, max(2, runtime.GOMAXPROCS(0)))}
}

// Request asks for a layer in some form.
type Request struct {
	ID          store.LayerID
	Compression layer.Compression
	Force       bool         // also when the layer was pulled in another compression
	Base        bool         // it is the base image's, and stays as it was packed before, unless that is forced
	Nondist     bool         // a layer that may not be distributed keeps its media type and its URLs
	Prefer      graph.Digest // the blob that it is in the base image at hand; "" = not known
	Clamp       *time.Time   // no file is newer than this; nil leaves times alone
	// Pulled and DiffID describe a layer as it was pulled, if that is known; ID is 0 if only that is kept.
	Pulled *image.Descriptor
	DiffID graph.Digest
	Hold   *store.Hold // keeps the blobs that are made or found; nil = nobody needs them
	// Fetch reads a pulled blob that the store no longer has; nil if there is nowhere to fetch from.
	Fetch func(context.Context, image.Descriptor) (io.ReadCloser, error)
}

// Layer is a layer whose tar is known.
type Layer struct {
	ID      store.LayerID
	DiffID  graph.Digest
	TarSize int64     // bytes of the uncompressed tar; 0 = not known
	Created time.Time // zero if not known
	clamp   *time.Time
	pulled  *image.Descriptor
	blob    graph.Digest // that it was unpacked from; "" = made here
	fetch   func(context.Context, image.Descriptor) (io.ReadCloser, error)
}

// made is what one reading of a layer gives.
type made struct {
	layer Layer
	blob  image.Descriptor
}

// Layer returns a layer's diff_id, computing it if nobody has yet.
func (p *Packer) Layer(ctx context.Context, req Request) (Layer, error) {
	l, err := p.known(req)
	if err != nil || l.DiffID != "" {
		return l, err
	}
	// A compression of the same layer that is under way gives the diff_id too.
	if m, ok, err := p.flights.join(ctx, req.key(true), req.Hold); ok {
		m.layer.fetch = req.Fetch
		return m.layer, err
	}
	m, err := p.flights.do(ctx, req.key(false), req.Hold, func(ctx context.Context, hold *store.Hold) (made, error) { return p.make(ctx, l, nil, hold) })
	m.layer.fetch = req.Fetch
	return m.layer, err
}

// Blob returns a layer's blob in the compression that the request names, or, unless that is forced, as it was pulled. The
// descriptor has an OCI media type. An uncompressed layer's blob is not written anywhere: its tar is made when it is read.
func (p *Packer) Blob(ctx context.Context, req Request) (Layer, image.Descriptor, error) {
	l, err := p.known(req)
	if err != nil {
		return l, image.Descriptor{}, err
	}
	if l.DiffID != "" {
		req = p.before(l, req)
		if d, ok := p.reuse(l, req); ok {
			return l, d, nil
		}
	}
	if req.Compression.Type == layer.EStargz {
		return p.estargz(ctx, req)
	}
	if req.Compression.Type == layer.Uncompressed {
		if l, err = p.Layer(ctx, req); err != nil {
			return l, image.Descriptor{}, err
		}
		if l.TarSize, err = p.tarSize(ctx, l); err != nil {
			return l, image.Descriptor{}, err
		}
		return l, image.Descriptor{MediaType: layerType(true, image.DockerLayer), Digest: l.DiffID, Size: l.TarSize}, nil
	}
	m, err := p.flights.do(ctx, req.key(true), req.Hold, func(ctx context.Context, hold *store.Hold) (made, error) {
		return p.make(ctx, l, &req.Compression, hold)
	})
	m.layer.fetch = req.Fetch
	return m.layer, req.public(m.blob), err
}

// packed reports whether Blob would find the layer's blob without reading the layer.
func (p *Packer) packed(req Request) bool {
	l, err := p.known(req)
	if err != nil || l.DiffID == "" {
		return false
	}
	req = p.before(l, req)
	_, ok := p.reuse(l, req)
	return ok || req.Compression.Type == layer.Uncompressed
}

// key names the work of reading a layer, with or without compressing it.
func (r *Request) key(compress bool) string {
	k := fmt.Sprint(r.ID)
	if r.ID == 0 {
		k = string(r.DiffID)
	}
	if r.Clamp != nil {
		k += "@" + strconv.FormatInt(r.Clamp.Unix(), 10)
	}
	if compress {
		k += "/" + compressionName(r.Compression)
	}
	return k
}

// known returns what the store knows of a layer; the diff_id may be missing.
func (p *Packer) known(req Request) (Layer, error) {
	l := Layer{ID: req.ID, DiffID: req.DiffID, clamp: req.Clamp, pulled: req.Pulled, fetch: req.Fetch}
	if l.ID == 0 {
		l.clamp = nil // there are no files whose times could change
		return l, nil
	}
	info, err := p.store.Layer(req.ID)
	if err != nil {
		return l, err
	}
	l.DiffID, l.TarSize, l.Created, l.blob = info.DiffID, info.TarSize, info.Created, info.Blob
	if req.Clamp != nil {
		// Another tar than the layer's own. Where the files came from does not matter: a cache elsewhere has layers as they were
		// before their times were rewritten.
		l.pulled, l.blob = nil, ""
		l.DiffID, l.TarSize = p.clamped(req)
	}
	return l, nil
}

// A clamped layer is another tar of the same files; which one is noted as a memo.
func (p *Packer) clamped(req Request) (graph.Digest, int64) {
	d, err := p.store.Memo(clampKey(req.ID, *req.Clamp))
	if err != nil {
		return "", 0
	}
	return d, 0
}

func clampKey(id store.LayerID, t time.Time) graph.Digest {
	return digest.FromString(fmt.Sprintf("export: layer %d, no file newer than %d", id, t.Unix()))
}

// slot waits until a layer may be read.
func (p *Packer) slot(ctx context.Context) (release func(), err error) {
	select {
	case p.slots <- struct{}{}:
		return func() { <-p.slots }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// make reads a layer once, for its diff_id and, if c is not nil, a blob, and notes both in the store.
func (p *Packer) make(ctx context.Context, l Layer, c *layer.Compression, hold *store.Hold) (made, error) {
	release, err := p.slot(ctx)
	if err != nil {
		return made{}, err
	}
	defer release()
	tar := newMeter()
	var blob image.Descriptor
	if c == nil {
		tar.state, err = p.tar(ctx, tar, l)
	} else {
		blob, _, err = p.compress(ctx, l, *c, packingTo{hold, tar})
	}
	if err != nil {
		return made{}, err
	}
	if got := tar.digest(); got != l.DiffID {
		if l.DiffID != "" && !p.ours(l) {
			return made{}, diag.Errorf(diag.Conflict, "layer %d was pulled as %s, but its files make %s, and the blob is gone", l.ID, l.DiffID, got).
				WithHint("pull the image again")
		}
		if l.DiffID != "" && l.ID != 0 {
			return made{}, p.damaged(ctx, l, got)
		}
		l.DiffID = got
	}
	l.TarSize = tar.n
	p.verified(l, tar)
	return made{l, blob}, p.note(ctx, l, blob)
}

// damaged drops a layer that is not what the store has promised, so that it is made again, and says so.
func (p *Packer) damaged(ctx context.Context, l Layer, got graph.Digest) error {
	err := diag.Errorf(diag.Conflict, "layer %d is damaged: its files make %s, not %s as recorded", l.ID, got, l.DiffID).
		WithHint("the layer was dropped: build the image again, which makes it anew; strata check --full finds other damage")
	if derr := p.store.DropLayer(ctx, l.ID); derr != nil {
		return errors.Join(err, derr)
	}
	return err
}

// estargz finds or makes an eStargz blob. Its tar is another one of the same files, with a table of contents: which one is
// noted as a memo, and it is the layer's in the image that the blob is for.
func (p *Packer) estargz(ctx context.Context, req Request) (Layer, image.Descriptor, error) {
	l, err := p.Layer(ctx, req)
	if err != nil {
		return l, image.Descriptor{}, err
	}
	sealed := l
	sealed.pulled, sealed.blob = nil, ""
	memo := digest.FromString(fmt.Sprintf("export: %s as %s", l.DiffID, compressionName(req.Compression)))
	if sealed.DiffID, err = p.store.Memo(memo); err == nil {
		if d, ok := p.reuse(sealed, req); ok {
			return sealed, d, nil
		}
	}
	m, err := p.flights.do(ctx, req.key(true), req.Hold, func(ctx context.Context, hold *store.Hold) (made, error) {
		release, err := p.slot(ctx)
		if err != nil {
			return made{}, err
		}
		defer release()
		tar := newMeter()
		blob, diff, err := p.compress(ctx, l, req.Compression, packingTo{hold, tar})
		if err == nil && tar.digest() != l.DiffID {
			err = p.damaged(ctx, l, tar.digest())
		}
		if err != nil {
			return made{}, err
		}
		sealed.DiffID, sealed.TarSize = diff, 0
		return made{sealed, blob}, p.store.Update(ctx, func(b *store.Batch) error {
			b.Memo(memo, diff)
			b.Variant(diff, blob)
			return nil
		})
	})
	m.layer.fetch = req.Fetch
	return m.layer, req.public(m.blob), err
}

// packingTo is where a layer that is packed goes.
type packingTo struct {
	hold *store.Hold // of the blob
	tar  *meter      // gets the tar
}

// compress writes a layer's tar through a compressor into a new blob, and to.tar. The diff_id is that of an eStargz blob,
// empty for others, which hold just the tar.
func (p *Packer) compress(ctx context.Context, l Layer, c layer.Compression, to packingTo) (desc image.Descriptor, diff graph.Digest, err error) {
	none := image.Descriptor{}
	w, err := to.hold.NewBlob(ctx, "")
	if err != nil {
		return none, "", err
	}
	defer w.Abort()
	as := compressionName(c)
	if p.keepsTar(l) {
		as += ofPulled
	}
	z, err := layer.NewCompressor(w, c)
	if err != nil {
		return none, "", err
	}
	if to.tar.state, err = p.tar(ctx, io.MultiWriter(z, to.tar), l); err != nil {
		_ = z.Close() // it has goroutines; the first error matters
		return none, "", err
	}
	if err := z.Close(); err != nil {
		return none, "", err
	}
	d, n, err := w.Commit(ctx)
	desc = image.Descriptor{MediaType: layerType(true, mediaTypes[c.Type]), Digest: d, Size: n, Annotations: map[string]string{madeAs: as}}
	if e, ok := z.(*layer.EStargzWriter); ok {
		diff = e.DiffID()
		maps.Copy(desc.Annotations, e.Annotations())
	}
	return desc, diff, err
}

var mediaTypes = map[layer.Type]string{layer.Gzip: image.DockerLayerGzip, layer.EStargz: image.DockerLayerGzip, layer.Zstd: image.DockerLayerZstd}

// note records what was learned of a layer.
func (p *Packer) note(ctx context.Context, l Layer, blob image.Descriptor) error {
	return p.store.Update(ctx, func(b *store.Batch) error {
		switch {
		case l.ID == 0:
		case l.clamp != nil:
			b.Memo(clampKey(l.ID, *l.clamp), l.DiffID)
		default:
			info, err := p.store.Layer(l.ID)
			if err != nil {
				return err
			}
			info.DiffID, info.TarSize = l.DiffID, l.TarSize
			b.SetLayer(info)
		}
		if blob.Digest != "" {
			b.Variant(l.DiffID, blob)
		}
		return nil
	})
}
