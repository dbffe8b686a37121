package store

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// verified remembers the blob files whose content this process has hashed, or written itself, and the layers whose tar it has
// hashed. A file that was changed since is another one: its ctime cannot be set back.
type verified struct {
	mu     sync.Mutex
	files  map[graph.Digest]fileState
	layers map[layerTar]uint64 // the state of the files, [layer.Stats.State]
}

// layerTar is a tar that a layer's files make: one layer has several, with and without clamped times.
type layerTar struct {
	id   LayerID
	diff graph.Digest
}

// VerifiedLayer returns the state in which the layer's files made the tar diff when this process last hashed it.
func (s *Store) VerifiedLayer(id LayerID, diff graph.Digest) (state uint64, ok bool) {
	s.verified.mu.Lock()
	defer s.verified.mu.Unlock()
	state, ok = s.verified.layers[layerTar{id, diff}]
	return state, ok
}

// NoteVerifiedLayer notes that the layer's files, in this state, make the tar diff.
func (s *Store) NoteVerifiedLayer(id LayerID, diff graph.Digest, state uint64) {
	s.verified.mu.Lock()
	defer s.verified.mu.Unlock()
	if s.verified.layers == nil {
		s.verified.layers = map[layerTar]uint64{}
	}
	s.verified.layers[layerTar{id, diff}] = state
}

type fileState struct {
	ino   uint64
	size  int64
	ctime syscall.Timespec
}

func stateOf(fi os.FileInfo) fileState {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fileState{}
	}
	return fileState{st.Ino, st.Size, st.Ctim}
}

func (v *verified) note(d graph.Digest, fi os.FileInfo) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.files == nil {
		v.files = map[graph.Digest]fileState{}
	}
	v.files[d] = stateOf(fi)
}

func (v *verified) has(d graph.Digest, fi os.FileInfo) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	known, ok := v.files[d]
	return ok && known == stateOf(fi)
}

func (v *verified) clear() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.files, v.layers = nil, nil
}

func (v *verified) forget(d graph.Digest) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.files, d)
}

// OpenVerified is OpenBlob for bytes that leave the store: nobody gets what the disk has damaged. A blob is hashed once, and
// again after its file was changed. One that is damaged is dropped, so that it is fetched or made again, and the error is
// of kind diag.NotFound.
func (s *Store) OpenVerified(ctx context.Context, d graph.Digest) (*Blob, error) {
	b, err := s.OpenBlob(ctx, d)
	if err != nil {
		return nil, err
	}
	fi, err := b.f.Stat()
	if err == nil && s.verified.has(d, fi) {
		return b, nil
	}
	if err == nil {
		_, err = hashFile(ctx, s.blobPath(d), d)
	}
	if err == nil {
		s.verified.note(d, fi)
		return b, nil
	}
	b.Close()
	if _, damaged := errors.AsType[*diag.Error](err); !damaged {
		return nil, s.fail("cannot read blob "+string(d), err)
	}
	s.log.Warn("a damaged blob was dropped", "cause", err)
	if err := s.dropBlob(d); err != nil {
		return nil, err
	}
	return nil, diag.Errorf(diag.NotFound, "the blob %s was damaged, and is gone now", d).WithHint("run the command again; if it fails, pull or build the image again")
}

// DropLayer drops a layer that was found to be damaged. What names it is made again.
func (s *Store) DropLayer(ctx context.Context, id LayerID) error {
	if err := s.Update(ctx, func(b *Batch) error { b.drop(layerKey(id)); return nil }); err != nil {
		return err
	}
	s.presence.set(id, layerGone)
	s.trash.put(s.layerRoot(id))
	return nil
}

func (s *Store) dropBlob(d graph.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &Batch{s: s}
	b.drop(keyOf(kindBlob, string(d)))
	if err := s.commit(b); err != nil {
		return err
	}
	s.verified.forget(d)
	s.trash.put(s.blobPath(d))
	return nil
}
