package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// Draft is a layer that is being written. It is held until it is committed (Batch.Layer) or discarded.
type Draft struct {
	ID   LayerID
	Dir  string // snapshots/N/fs, empty: the upper directory
	Work string // snapshots/N/work, empty: overlay's work directory
	s    *Store

	owner string
}

// begun is how a draft was begun.
type begun struct {
	epoch uint64
	owner string
}

// LayerDir returns the directory of a layer's files, whether it exists or not.
func (s *Store) LayerDir(id LayerID) string {
	return filepath.Join(s.layerRoot(id), "fs")
}

func (s *Store) layerRoot(id LayerID) string {
	return s.path("snapshots", strconv.FormatUint(uint64(id), 10))
}

// NewLayer makes an empty draft. The caller defers Discard. A store that is far above its cap is collected first; the
// error is of kind diag.Exhausted if the disk is nearly full even then.
func (s *Store) NewLayer(ctx context.Context) (*Draft, error) {
	return s.newLayer(ctx, nil)
}

func (s *Store) newLayer(ctx context.Context, h *Hold) (*Draft, error) {
	if err := s.makeRoom(ctx); err != nil {
		return nil, err
	}
	return s.makeDraft(h, ownerOf(ctx))
}

func (s *Store) makeDraft(h *Hold, owner string) (*Draft, error) {
	for {
		id, err := s.reserveDraft(h, owner)
		if err != nil {
			return nil, err
		}
		dir := s.layerRoot(id)
		err = os.Mkdir(dir, 0o700)
		if err == nil {
			d := &Draft{ID: id, Dir: filepath.Join(dir, "fs"), Work: filepath.Join(dir, "work"), s: s, owner: owner}
			if err = os.Mkdir(d.Dir, 0o755); err == nil {
				err = os.Mkdir(d.Work, 0o700)
			}
			if err == nil {
				return d, nil
			}
			os.RemoveAll(dir)
		}
		s.endDraft(id)
		if h != nil {
			h.drop(id)
		}
		if !errors.Is(err, os.ErrExist) { // else a dead owner's, not swept yet
			return nil, s.fail("cannot make a layer", err)
		}
	}
}

func (s *Store) reserveDraft(h *Hold, owner string) (LayerID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, s.fail("cannot make a layer", ErrClosed)
	}
	id := s.next
	s.next++
	s.drafts[id] = begun{s.failures.epoch.Load(), owner}
	if h != nil {
		h.Layers(id)
	}
	return id, nil
}

// endDraft reports whether the layer was still a draft.
func (s *Store) endDraft(id LayerID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, was := s.drafts[id]
	delete(s.drafts, id)
	return was
}

// Remove is Discard, and returns when the space is free again.
func (d *Draft) Remove() {
	if !d.s.endDraft(d.ID) {
		return
	}
	if err := removeAll(d.s.layerRoot(d.ID)); err != nil {
		d.s.trash.put(d.s.layerRoot(d.ID))
	}
}

// Discard deletes the draft. It does nothing if the draft was committed, so it may be deferred. Nothing may be mounted on
// or from the draft's directories any more.
func (d *Draft) Discard() {
	if d.s.endDraft(d.ID) {
		d.s.trash.put(d.s.layerRoot(d.ID))
	}
}

// LayersWithoutDiffID returns the committed layers whose diff_id nobody has computed yet, oldest first.
func (s *Store) LayersWithoutDiffID() (ids []LayerID, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, s.fail("cannot list layers", ErrClosed)
	}
	err = s.each(kindLayer, func(name string, _ uint64, b []byte, err error) {
		id, ok := layerOf(keyOf(kindLayer, name))
		if l, derr := decodeLayer(id, b); ok && err == nil && derr == nil && l.DiffID == "" {
			ids = append(ids, id)
		}
	})
	slices.Sort(ids)
	return ids, err
}
