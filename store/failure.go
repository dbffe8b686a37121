package store

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/strata-build/strata/graph"
)

// failures is what the store knows of syncs that failed. The kernel reports a lost page once and then calls it clean, so after
// a failed sync nothing that was begun before it can be told from what is damaged. Each failed sync therefore begins an epoch:
// drafts, blobs and cache mounts of an earlier one are refused where they would become visible.
type failures struct {
	epoch   atomic.Uint64 // the number of failed syncs; changes under Store.mu
	err     error         // of the last one; guarded by Store.mu, as the rest
	dropped map[LayerID]bool
	unswept atomic.Int64 // how many of these still have a directory
	told    []func()
	// saving is closed when the images of this name have been written once more, or are lost; nil = there are none.
	saving map[string]chan struct{}
}

// syncError says that the file system could not write what it had taken.
type syncError struct{ err error }

func (e *syncError) Error() string { return e.err.Error() }
func (e *syncError) Unwrap() error { return e.err }

// lost reports whether a failed sync means that written pages are gone. A lack of syncfs itself does not.
func lost(err error) bool {
	return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EROFS)
}

// OnFailure registers a function that is called after each failed sync: it drops what its owner has written below the root
// and would believe later. Register before the store is used by builds.
func (s *Store) OnFailure(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures.told = append(s.failures.told, f)
}

// Sound fails with the disk's error if one of the layers was dropped after a failed sync. What was read of it may be wrong, so
// whoever has read a layer asks before anybody relies on the outcome.
func (s *Store) Sound(ids ...LayerID) error {
	if s.failures.epoch.Load() == 0 {
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, id := range ids {
		if s.failures.dropped[id] {
			return s.diskError()
		}
	}
	return nil
}

// Epoch returns how many syncs have failed so far, for Since.
func (s *Store) Epoch() uint64 { return s.failures.epoch.Load() }

// Since fails with the disk's error if a sync has failed since an epoch. It is Sound for files below the root that are not
// layers.
func (s *Store) Since(epoch uint64) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.begunBefore(epoch)
}

// saved waits if an image of a name is just being written once more, and reports whether it did.
func (s *Store) saved(name string) bool {
	s.mu.RLock()
	done := s.failures.saving[name]
	s.mu.RUnlock()
	if done == nil {
		return false
	}
	select {
	case <-done:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// diskError is why something that was begun before the last failed sync is refused. The caller holds mu.
func (s *Store) diskError() error {
	return s.fail("the disk lost data while this was being made", s.failures.err)
}

// begunBefore fails if a sync has failed since an epoch. The caller holds mu.
func (s *Store) begunBefore(epoch uint64) error {
	if epoch == s.failures.epoch.Load() {
		return nil
	}
	return s.diskError()
}

// suspects is what a failed sync casts doubt on.
type suspects struct {
	layers map[LayerID]LayerInfo
	blobs  map[graph.Digest]string // where the file is now; "" = it is gone
	images []Image                 // that name some of these: they were promised to somebody
	done   chan struct{}           // closed when these are saved or lost
}

// syncFailed begins a new epoch: it drops the records of layers and blobs that were made since the last good sync, and the
// results, memos and images that rest on them. What does not depend on new files stays and is written again.
func (s *Store) syncFailed(batch *generation, files []string, err error) (*suspects, error) {
	s.mu.Lock()
	if !lost(err) {
		defer s.mu.Unlock()
		s.takeBack(batch, files)
		return nil, s.fail("cannot sync the file system", err)
	}
	s.failures.epoch.Add(1)
	s.failures.err = err
	made := batch.made
	maps.Copy(made, s.cur.made)
	maps.Copy(batch.vals, s.cur.vals)
	files = append(files, s.wal.files...)
	s.frozen, s.cur = nil, newGeneration()
	bad := s.suspect(batch.vals, made)
	kept := s.unaffected(batch.vals, made, bad)
	s.failures.saving = map[string]chan struct{}{}
	done := make(chan struct{})
	for _, im := range bad.images {
		s.failures.saving[im.Name] = done
	}
	bad.done = done
	werr := s.renew(kept, files)
	told := s.failures.told
	s.mu.Unlock()

	s.signAgain()
	s.verified.clear()
	s.mounts.distrust(s)
	s.dropPartials()
	for _, f := range told {
		f()
	}
	if werr != nil {
		s.log.Error("a dropped batch is still in the log", "cause", werr)
	}
	return bad, &syncError{s.fail("the disk did not take what was written; the newest results were dropped", err)}
}

// takeBack puts a batch that is not durable before what came since. The caller holds mu.
func (s *Store) takeBack(batch *generation, files []string) {
	maps.Copy(batch.vals, s.cur.vals) // newer changes win
	maps.Copy(batch.made, s.cur.made)
	batch.hard = true
	s.frozen, s.cur = nil, batch
	s.wal.files = append(files, s.wal.files...)
}

// suspect finds the layers and blobs that were made, and puts them out of the way. The caller holds mu.
func (s *Store) suspect(vals map[string][]byte, made map[string]bool) *suspects {
	bad := &suspects{layers: map[LayerID]LayerInfo{}, blobs: map[graph.Digest]string{}}
	if s.failures.dropped == nil {
		s.failures.dropped = map[LayerID]bool{}
	}
	for key := range made {
		if id, ok := layerOf(key); ok {
			if !s.failures.dropped[id] {
				s.failures.unswept.Add(1)
			}
			s.failures.dropped[id] = true
			s.untidy.Store(true) // the next owner sweeps its directory, if it is in use until the end
			if p, _, err := unseal(key, vals[key]); err == nil {
				bad.layers[id], _ = decodeLayer(id, p)
			}
			continue
		}
		d := graph.Digest(key[1:])
		if kind(key[0]) != kindBlob || d.Validate() != nil {
			continue
		}
		// Out of sight: a file without a record would be hashed through the page cache, and believed.
		aside := s.path("tmp", "suspect-"+d.Encoded()[:32]+"-"+strconv.FormatUint(s.failures.epoch.Load(), 10))
		if err := os.Rename(s.blobPath(d), aside); err != nil {
			aside = ""
		}
		bad.blobs[d] = aside
	}
	return bad
}

// unaffected returns the changes that may stay, and notes the images that may not. The caller holds mu.
func (s *Store) unaffected(vals map[string][]byte, made map[string]bool, bad *suspects) *generation {
	kept := newGeneration()
	for key, v := range vals {
		if v == nil {
			kept.set(change{key: key})
			continue
		}
		p, _, err := unseal(key, v)
		if err != nil {
			continue
		}
		switch kind(key[0]) {
		case kindLayer, kindBlob:
			if made[key] {
				kept.set(change{key: key}) // the database may know an earlier file of this name
				continue
			}
		case kindMemo, kindMount:
			continue // what was hashed, or measured, may have been damaged files
		case kindResult:
			if r, err := decodeResult(p); err != nil || bad.inResult(r) {
				continue
			}
		case kindChain:
			if n, err := decodeUint(p); err != nil || bad.has(LayerID(n)) {
				continue
			}
		case kindImage:
			var im Image
			if json.Unmarshal(p, &im) != nil {
				continue
			}
			if im.Name = key[1:]; bad.inImage(&im) {
				bad.images = append(bad.images, im)
				continue
			}
		}
		kept.set(change{key, v})
	}
	return kept
}

func (b *suspects) has(ids ...LayerID) bool {
	for _, id := range ids {
		if _, ok := b.layers[id]; ok {
			return true
		}
	}
	return false
}

func (b *suspects) inResult(r Result) bool {
	for _, stack := range r.Outputs {
		if b.has(stack...) {
			return true
		}
	}
	for _, d := range r.Blobs {
		if _, ok := b.blobs[d]; ok {
			return true
		}
	}
	return false
}

func (b *suspects) inImage(im *Image) (found bool) {
	for _, p := range im.Platforms {
		found = found || b.has(p.Layers...)
	}
	im.blobs(func(d graph.Digest) {
		_, ok := b.blobs[d]
		found = found || ok
	})
	return found
}

// renew begins with the changes that were kept: in memory, and in a log of their own that takes the place of files. The
// caller holds mu.
func (s *Store) renew(kept *generation, files []string) error {
	s.cur = kept
	s.presence.clear()
	s.usage.mu.Lock()
	s.usage.known = false
	s.usage.mu.Unlock()
	s.wal.rotate()
	s.wal.files = nil
	var werr error
	if len(kept.vals) > 0 {
		kept.hard = true
		changes := make([]change, 0, len(kept.vals))
		for k, v := range kept.vals {
			changes = append(changes, change{k, v})
		}
		werr = s.wal.append(s.clock.Load(), changes)
	}
	return errors.Join(werr, s.removeLogs(files))
}

// bury deletes the directories of dropped layers that nobody uses any more.
func (s *Store) bury() {
	if s.failures.unswept.Load() == 0 {
		return
	}
	s.durable.Lock() // not while images are being copied from them
	defer s.durable.Unlock()
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.holds.mu.Lock()
	defer s.holds.mu.Unlock()
	for id := range s.failures.dropped {
		if s.holds.layers[id] > 0 {
			continue
		}
		if _, err := os.Lstat(s.layerRoot(id)); err == nil {
			s.trash.put(s.layerRoot(id))
			s.failures.unswept.Add(-1)
		}
	}
}

// signAgain writes the lock anew, which may be among what was lost. The file is emptied first: ext4 may still take the blocks
// whose writing failed for holes after they were written over.
func (s *Store) signAgain() {
	word, _ := s.word.Load().(string)
	err := s.lock.Truncate(0)
	if err == nil {
		err = s.sign(word)
	}
	if err != nil {
		s.log.Warn("cannot write the lock", "cause", err)
	}
}

// dropPartials deletes the beginnings of blobs that nobody is writing. Those that somebody is writing are refused in the end.
func (s *Store) dropPartials() {
	entries, _ := os.ReadDir(s.path("ingest"))
	for _, e := range entries {
		if !s.writers.active(e.Name()) && !strings.HasPrefix(e.Name(), unnamed) {
			s.trash.put(s.path("ingest", e.Name()))
		}
	}
}
