package source

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/store"
)

// Layers returns the lowest limit layers (0 = all) of an image, bottom first, and downloads and unpacks what the store
// lacks: layers in parallel, each in one pass. Progress goes to the vertex. When all layers are there, the store remembers
// the image by its name.
func (im *Images) Layers(ctx context.Context, img *Image, limit int, vertex graph.Digest) ([]store.LayerID, error) {
	n := len(img.Config.RootFS.DiffIDs)
	if limit > 0 && limit < n {
		n = limit
	}
	if img.layers != nil {
		return img.layers[:n], nil
	}
	u := &unpacking{im: im, img: img, vertex: vertex, chains: img.ChainIDs()[:n], layers: make([]store.LayerID, n), ready: make([]chan struct{}, n)}
	for i := range u.ready {
		u.ready[i] = make(chan struct{})
	}
	g, gctx := errgroup.WithContext(ctx)
	for i := range n {
		g.Go(func() error { return u.layer(gctx, i) })
	}
	if err := g.Wait(); err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "%s: %w", img.Name, err)
	}
	if n == len(img.Config.RootFS.DiffIDs) && img.record != "" {
		return u.layers, im.remember(ctx, img, u.layers)
	}
	return u.layers, nil
}

// unpacking is the work of one Layers.
type unpacking struct {
	im     *Images
	img    *Image
	vertex graph.Digest
	chains []graph.Digest
	layers []store.LayerID
	ready  []chan struct{} // closed when layers[i] is committed
}

// layer gets layer i. While it waits for the layers below it holds no slot, so they can always go on.
func (u *unpacking) layer(ctx context.Context, i int) error {
	if u.known(i) {
		return nil
	}
	// Nobody waits for another tenant's download, or for another place's: it may never end.
	release, err := u.im.locks.take(ctx, strings.Join([]string{"chain", u.chains[i].String(), u.im.env.Client.Tenant, u.img.from.place()}, "\x00"))
	if err != nil {
		return err
	}
	defer release()
	if u.known(i) { // another build was faster
		return nil
	}
	if id, err := u.im.env.Hold.Chain(u.chains[i]); err == nil {
		return u.verify(ctx, i, id)
	}
	draft, applied, err := u.fill(ctx, i)
	if err != nil {
		return err
	}
	defer draft.Discard()
	for _, below := range u.ready[:i] {
		select {
		case <-below:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	lower := make([]string, i)
	for k, id := range u.layers[:i] {
		lower[k] = u.im.store.LayerDir(id)
	}
	if err := layer.Finish(ctx, draft.Dir, applied, lower); err != nil {
		return err
	}
	id, err := u.commit(ctx, i, draft, applied)
	if err == nil {
		u.take(i, id)
	}
	return err
}

// fill makes a draft of layer i.
func (u *unpacking) fill(ctx context.Context, i int) (draft *store.Draft, applied *layer.Applied, err error) {
	done, err := u.slot(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer done()
	err = registry.Again(ctx, func() error {
		if draft, err = u.im.env.Hold.NewLayer(ctx); err != nil {
			return err
		}
		if applied, err = u.apply(ctx, i, draft); err != nil {
			draft.Discard()
		}
		return err
	})
	return draft, applied, err
}

// known takes a layer that is unpacked already, if the image's blob is known to be it.
func (u *unpacking) known(i int) bool {
	id, err := u.im.env.Hold.Chain(u.chains[i])
	if err != nil || !u.proven(i, id) || !u.im.env.sent(u.img.from.place(), u.img.Blobs[i].Digest) {
		return false
	}
	u.take(i, id)
	return true
}

func (u *unpacking) take(i int, id store.LayerID) {
	u.layers[i] = id
	close(u.ready[i])
}

// proven reports whether the blob of layer i was once seen to hold the tar of the layer's diff_id. That a configuration says
// so is not enough: it may name the diff_ids of another image.
func (u *unpacking) proven(i int, id store.LayerID) bool {
	blob, diff := u.img.Blobs[i].Digest, u.img.Config.RootFS.DiffIDs[i]
	if u.img.byDiff || blob == diff {
		return true
	}
	if info, err := u.im.store.Layer(id); err == nil && info.Blob == blob {
		return true
	}
	return slices.ContainsFunc(u.im.store.Variants(diff), func(v image.Descriptor) bool { return v.Digest == blob })
}

// verify reads a blob that is said to be a layer which is unpacked already, and takes the layer if it is.
func (u *unpacking) verify(ctx context.Context, i int, id store.LayerID) error {
	done, err := u.slot(ctx)
	if err != nil {
		return err
	}
	defer done()
	err = registry.Again(ctx, func() error { _, err := u.apply(ctx, i, nil); return err })
	if err != nil {
		return err
	}
	if err = u.note(ctx, i); err == nil {
		u.take(i, id)
	}
	return err
}

// note records that the blob of layer i was seen to hold it, and where it came from.
func (u *unpacking) note(ctx context.Context, i int) error {
	return u.im.store.Update(ctx, func(b *store.Batch) error {
		b.Variant(u.img.Config.RootFS.DiffIDs[i], u.img.Blobs[i])
		u.sent(b, i)
		return nil
	})
}

func (u *unpacking) slot(ctx context.Context) (func(), error) {
	return u.im.slots.take(ctx, u.im.env.Client.Tenant+"\x00"+u.im.env.Client.Name)
}

// commit returns the layer that the draft becomes, or the equal one that another tenant's build has made meanwhile.
func (u *unpacking) commit(ctx context.Context, i int, draft *store.Draft, applied *layer.Applied) (store.LayerID, error) {
	id, err := u.im.env.Hold.Chain(u.chains[i])
	if err == nil {
		return id, u.note(ctx, i)
	}
	diff, made := u.img.Config.RootFS.DiffIDs[i], time.Now()
	if i < len(u.img.created) && !u.img.created[i].IsZero() {
		made = u.img.created[i]
	}
	return draft.ID, u.im.store.Update(ctx, func(b *store.Batch) error {
		b.Layer(draft, store.LayerInfo{DiffID: diff, Blob: u.img.Blobs[i].Digest, Size: applied.Bytes, TarSize: applied.TarSize, Files: applied.Entries, Created: made})
		b.Chain(u.chains[i], draft.ID)
		b.Variant(diff, u.img.Blobs[i])
		u.sent(b, i)
		return nil
	})
}

// sent notes that the layer's blob came from where it is said to be.
func (u *unpacking) sent(b *store.Batch, i int) {
	if at := u.img.from.place(); at != "" {
		fact := sentFact(at, u.img.Blobs[i].Digest)
		b.Memo(fact, fact)
	}
}

// apply brings layer i into the draft, or only reads and verifies it if that is nil: from the store's blob, or from its source, whose bytes are then kept as a blob.
func (u *unpacking) apply(ctx context.Context, i int, draft *store.Draft) (*layer.Applied, error) {
	d := u.img.Blobs[i]
	u.im.env.Hold.Blobs(d.Digest)
	w, err := u.im.store.NewBlob(ctx, d.Digest) // waits if another build is at it
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	if w.Complete() {
		if err := u.im.prove(ctx, u.img.from, d); err != nil {
			return nil, err
		}
		return u.fromBlob(ctx, i, draft)
	}
	if err := u.im.resumable(ctx, w, u.img.from, d.Digest); err != nil {
		return nil, err
	}
	offset := w.Offset()
	if offset > d.Size {
		return nil, diag.Errorf(diag.Invalid, "%s: %d bytes were received, the manifest says %d", d.Digest, offset, d.Size)
	}
	body, err := u.img.from.open(ctx, d, offset)
	if err != nil {
		return nil, err
	}
	p := &progress{sink: u.im.env.Progress, vertex: u.vertex, item: short(d.Digest), action: "downloading", total: d.Size, sofar: offset}
	p.emit(false)
	src := &kept{&counted{body, p}, w}
	// Reading ahead takes network, digest and blob off the path of the decompressor.
	in := layer.NewReadAhead(src)
	stop := func() { in.Close(); in.Wait() } // nobody else reads src after that
	defer func() { body.Close(); stop() }()
	var applied *layer.Applied
	if offset == 0 {
		applied, err = u.stream(ctx, i, in, draft)
		if err != nil && (ctx.Err() != nil || diag.KindOf(err) != diag.Invalid) {
			return nil, err
		}
	}
	stop()
	// Wrong bytes also fail to unpack. That they are wrong is the better message.
	if _, rerr := io.Copy(io.Discard, src); err == nil {
		err = rerr
	}
	if got := w.Digest(); w.Offset() == d.Size && got != d.Digest {
		_, _, _ = w.Commit(ctx) // refuses them, and keeps nothing to resume from
		return nil, registry.Blame(body, d.Digest, got)
	}
	if err != nil {
		return nil, err
	}
	if _, _, err := w.Commit(ctx); err != nil {
		return nil, err
	}
	p.done()
	if offset > 0 { // a part came earlier: the blob is read from its begin
		return u.fromBlob(ctx, i, draft)
	}
	return applied, nil
}

// kept writes what is read through it to a blob.
type kept struct {
	r io.Reader
	w io.Writer
}

func (k *kept) Read(p []byte) (int, error) {
	n, err := k.r.Read(p)
	if n > 0 {
		if _, werr := k.w.Write(p[:n]); werr != nil {
			return n, werr
		}
	}
	return n, err
}

func (u *unpacking) fromBlob(ctx context.Context, i int, draft *store.Draft) (*layer.Applied, error) {
	b, err := u.im.store.OpenBlob(ctx, u.img.Blobs[i].Digest)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return u.stream(ctx, i, b.Reader(), draft)
}

// stream decompresses, verifies and unpacks. What it has read when it fails is in the draft, which is thrown away.
func (u *unpacking) stream(ctx context.Context, i int, r io.Reader, draft *store.Draft) (*layer.Applied, error) {
	packed := &tally{r: r}
	plain, _, err := layer.Decompress(packed)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	p := &progress{sink: u.im.env.Progress, vertex: u.vertex, item: short(u.img.Blobs[i].Digest), action: "extracting"}
	tar := layer.NewDigestReader(plain)
	defer tar.Close()
	var applied *layer.Applied
	if draft == nil {
		_, err = io.Copy(io.Discard, &counted{tar, p})
	} else {
		applied, err = layer.Apply(ctx, &counted{tar, p}, draft.Dir, layer.ApplyOptions{Packed: packed.n.Load})
	}
	if err != nil {
		if draft != nil && diag.KindOf(err) == diag.Exhausted {
			draft.Remove() // it may be large, and nobody else will need the room less
		}
		return nil, diag.Errorf(diag.KindOf(err), "layer %s: %w", short(u.img.Blobs[i].Digest), err)
	}
	if want, got := u.img.Config.RootFS.DiffIDs[i], tar.Digest(); got != want {
		return nil, diag.Errorf(diag.Invalid, "failed to verify layer %d (%s): it has the diff_id %s, but the configuration says %s", i+1, short(u.img.Blobs[i].Digest), got, want).
			WithHint("the image is damaged or forged; nothing of this layer was kept")
	}
	p.done()
	return applied, nil
}

// tally counts what is read through it.
type tally struct {
	r io.Reader
	n atomic.Int64
}

func (t *tally) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.n.Add(int64(n))
	return n, err
}

// remember records the image under its name. Platforms that the record has already stay, if the index is the same.
func (im *Images) remember(ctx context.Context, img *Image, layers []store.LayerID) error {
	mine := store.PlatformImage{
		Platform: img.Platform, Config: img.ConfigDigest, Layers: layers, DiffIDs: img.Config.RootFS.DiffIDs,
		Manifest: img.Manifest, Annotations: img.Annotations,
	}
	if im.haveAll(img.Blobs) {
		mine.Blobs = img.Blobs
	}
	release, err := im.locks.take(ctx, "image "+im.env.Client.ImageName(img.record))
	if err != nil {
		return err
	}
	defer release()
	rec := store.Image{Name: img.record, Updated: time.Now(), Pulled: true, Index: img.Index}
	old, err := im.env.Hold.Image(im.env.Client.ImageName(img.record))
	if err == nil {
		rec.Pulled = old.Pulled
	}
	if err == nil && sameDigest(old.Index, img.Index) {
		for _, p := range old.Platforms {
			if p.Config != mine.Config && img.Index != nil {
				rec.Platforms = append(rec.Platforms, p)
			}
		}
	}
	rec.Platforms = append(rec.Platforms, mine)
	im.sortPlatforms(ctx, rec)
	return im.store.Update(ctx, func(b *store.Batch) error {
		b.Image(im.env.Client.ImageName(img.record), rec)
		return nil
	})
}

// sortPlatforms puts an image's platforms into the order of its index: that in which pulls end is another each time.
func (im *Images) sortPlatforms(ctx context.Context, rec store.Image) {
	if rec.Index == nil {
		return
	}
	at := map[graph.Digest]int{}
	if raw, err := im.blob(ctx, *rec.Index, registry.MaxManifest, nil); err == nil {
		if doc, err := registry.Decode(raw, rec.Index.MediaType); err == nil && doc.Index != nil {
			for i, d := range doc.Index.Manifests {
				at[d.Digest] = i
			}
		}
	}
	slices.SortStableFunc(rec.Platforms, func(a, b store.PlatformImage) int {
		if a.Manifest == nil || b.Manifest == nil {
			return 0
		}
		return at[a.Manifest.Digest] - at[b.Manifest.Digest]
	})
}

func sameDigest(a, b *image.Descriptor) bool {
	return a != nil && b != nil && a.Digest == b.Digest
}

func (im *Images) haveAll(blobs []image.Descriptor) bool {
	for _, d := range blobs {
		if _, ok := im.store.HasBlob(d.Digest); !ok {
			return false
		}
	}
	return true
}
