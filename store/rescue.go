package store

import (
	"context"
	"errors"
	"os"
	"slices"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// A build may have been told that its image is in the store before the sync failed that would have made it durable. Such an
// image is written once more, from what the page cache and the disk have of it, if that still has the digests that were
// recorded when the image was made. The copies are new files: ext4 may take blocks whose writing failed for holes even after
// they were written over. Waiting for the disk before each success instead would cost a build of 2 GB some 5 s.

// errGaveUp is why an image is lost that was written several times.
var errGaveUp = errors.New("the disk did not take it either when it was written again")

// rescue writes the images that a failed sync casts doubt on once more, or gives them up if it is the last time. It reports
// whether the sync is worth repeating.
func (s *Store) rescue(bad *suspects, last bool) bool {
	r := &rescuer{s: s, bad: bad, layers: map[LayerID]LayerID{}}
	hold := s.Hold()
	defer hold.Release()
	saved := 0
	for _, im := range bad.images {
		err := errGaveUp
		if !last {
			err = r.image(s.ctx, hold, im)
		}
		if err != nil {
			s.log.Error("the disk lost an image", "image", im.Name, "cause", err, "fix", "check the disk, and build or pull the image again")
			continue
		}
		saved++
	}
	s.mu.Lock()
	s.failures.saving = nil
	s.mu.Unlock()
	close(bad.done)
	for _, aside := range bad.blobs {
		if aside != "" {
			s.trash.put(aside)
		}
	}
	if saved > 0 {
		s.log.Warn("the disk failed; images were written once more", "images", saved)
	}
	return saved > 0
}

type rescuer struct {
	s      *Store
	bad    *suspects
	layers map[LayerID]LayerID // copies by what they are copies of
}

func (r *rescuer) image(ctx context.Context, hold *Hold, im Image) error {
	var err error
	im.blobs(func(d graph.Digest) {
		hold.Blobs(d)
		if err == nil {
			err = r.blob(ctx, d)
		}
	})
	for i := range im.Platforms {
		p := &im.Platforms[i]
		p.Layers = slices.Clone(p.Layers)
		for j, id := range p.Layers {
			if err == nil {
				p.Layers[j], err = r.layer(ctx, hold, id)
			}
		}
	}
	if err != nil {
		return err
	}
	s := r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, err := s.value(keyOf(kindImage, im.Name)); err != nil || b != nil {
		return err // somebody has given the name to another image meanwhile
	}
	b := &Batch{s: s}
	b.Image(im.Name, im)
	return s.commit(b)
}

// blob writes a blob that was put aside once more.
func (r *rescuer) blob(ctx context.Context, d graph.Digest) error {
	aside, ok := r.bad.blobs[d]
	if !ok {
		return nil
	}
	s := r.s
	if _, have := s.HasBlob(d); have {
		return nil
	}
	if aside == "" {
		return diag.Errorf(diag.Conflict, "blob %s is gone", d)
	}
	f, err := os.Open(aside)
	if err != nil {
		return err
	}
	defer f.Close()
	w, err := s.newWriter(ctx, d)
	if err != nil {
		return err
	}
	defer w.Abort()
	if !w.Complete() {
		if err := w.Restart(); err != nil {
			return err
		}
		if _, err := f.WriteTo(w); err != nil {
			return err
		}
	}
	_, _, err = w.Commit(ctx)
	return err
}

// layer copies a layer that may be damaged, and compares what was read with what was recorded.
func (r *rescuer) layer(ctx context.Context, hold *Hold, id LayerID) (LayerID, error) {
	info, ok := r.bad.layers[id]
	if !ok {
		return id, nil
	}
	if copied, ok := r.layers[id]; ok {
		return copied, nil
	}
	s := r.s
	if s.opt.Copy == nil || info.DiffID == "" {
		return 0, errors.New("its content was not recorded")
	}
	if info.Blob != "" {
		if err := r.blob(ctx, info.Blob); err != nil {
			return 0, err
		}
		hold.Blobs(info.Blob)
	}
	d, err := s.makeDraft(hold, "")
	if err != nil {
		return 0, err
	}
	defer d.Discard()
	got, err := s.opt.Copy(ctx, s.LayerDir(id), d.Dir)
	if err != nil {
		return 0, err
	}
	if info.Blob != "" {
		err = r.compare(ctx, info.Blob, d.Dir)
	} else if got != info.DiffID {
		err = diag.Errorf(diag.Conflict, "layer %d is damaged: its diff_id is %s and not %s", id, got, info.DiffID)
	}
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &Batch{s: s}
	b.Layer(d, info)
	if err := s.commit(b); err != nil {
		return 0, err
	}
	r.layers[id] = d.ID
	return d.ID, nil
}

func (r *rescuer) compare(ctx context.Context, d graph.Digest, dir string) error {
	if r.s.opt.Differs == nil {
		return errors.New("its content was not recorded")
	}
	b, err := r.s.OpenVerified(ctx, d)
	if err != nil {
		return err
	}
	defer b.Close()
	what, err := r.s.opt.Differs(ctx, b.Reader(), dir)
	if err == nil && what != "" {
		err = diag.Errorf(diag.Conflict, "a layer of blob %s is damaged: %s", d, what)
	}
	return err
}
