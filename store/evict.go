package store

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/strata-build/strata/graph"
)

// eviction carries a policy out on a plan.
type eviction struct {
	*plan
	policy Policy
	batch  *Batch
	used   int64
	limit  int64
	files  int64 // inodes that still have to go
	now    time.Time
	freed  Freed
	layers []LayerID // to be deleted
	paths  []string  // to be deleted

	unpinned map[graph.Digest]bool // blobs that no result needs any more
}

func (e *eviction) run() {
	e.pass(func(*item) bool { return true })
	// Blobs that results needed which are gone now.
	e.pass(func(it *item) bool { return e.unpinned[graph.Digest(it.ID)] && it.Kind == UsageBlob })
}

func (e *eviction) pass(of func(*item) bool) {
	for _, it := range e.items {
		if !of(it) {
			continue
		}
		why, ok := e.allows(it)
		if !ok {
			continue
		}
		before := e.freed.Bytes
		e.evict(it)
		it.Size = e.freed.Bytes - before
		e.freed.Items = append(e.freed.Items, FreedItem{it.Usage, why})
	}
}

// allows says whether and why an item is to go now.
func (e *eviction) allows(it *item) (why string, ok bool) {
	switch {
	case it.InUse, it.Kind == UsageBlob && e.pins[graph.Digest(it.ID)] > 0:
		return "", false
	case !e.policy.All && e.used <= e.limit && e.files <= 0:
		return "", false
	case e.policy.KeepDuration > 0 && e.now.Sub(it.LastUsed) < e.policy.KeepDuration:
		return "", false
	case !e.policy.All && it.Kind == UsageResult && e.rooted(it):
		return "", false // that would free nothing
	case e.policy.Filter != nil && !e.policy.Filter(it.Usage):
		return "", false
	}
	why = "not used since it was made"
	if !it.LastUsed.IsZero() && it.LastUsed.After(it.Created) {
		why = fmt.Sprintf("not used for %s", e.now.Sub(it.LastUsed).Round(time.Second))
	}
	if !e.policy.All {
		why = "least recently used: " + why
	}
	return why, true
}

// rooted reports that every layer of a result has to stay for another reason.
func (e *eviction) rooted(it *item) bool {
	for _, id := range it.layers {
		if e.plan.layers[id].root == "" {
			return false
		}
	}
	return len(it.layers) > 0
}

func (e *eviction) evict(it *item) {
	if it.key != "" {
		e.batch.drop(it.key)
		e.batch.drop(useKey(it.key))
	}
	for _, d := range it.blobs {
		if e.pins[d]--; e.pins[d] == 0 {
			if e.unpinned == nil {
				e.unpinned = map[graph.Digest]bool{}
			}
			e.unpinned[d] = true
		}
	}
	switch it.Kind {
	case UsageResult, UsageLayer:
		for _, id := range it.layers {
			n := e.plan.layers[id]
			if n.refs--; n.refs > 0 || n.root != "" {
				continue
			}
			e.batch.drop(layerKey(id))
			e.layers = append(e.layers, id)
			e.free(n.info.Size)
			e.freed.Files += n.info.Files
			e.files -= n.info.Files
		}
	default:
		e.paths = append(e.paths, it.path)
		e.free(it.Size)
	}
}

func (e *eviction) free(n int64) {
	e.freed.Bytes += n
	e.used -= n
}

// oldest returns the keys of the records of a kind that are beyond a limit, by when they were written. The caller holds mu.
func (s *Store) oldest(k kind, limit int) ([]string, error) {
	type rec struct {
		key string
		seq uint64
	}
	var all []rec
	add := func(key string, head []byte) {
		if len(head) >= sealedHead {
			all = append(all, rec{key, binary.LittleEndian.Uint64(head[4:])})
		}
	}
	if err := s.db.heads(string(rune(k)), add); err != nil {
		s.damaged(err)
		return nil, err
	}
	if len(all) <= limit {
		return nil, nil
	}
	slices.SortFunc(all, func(a, b rec) int { return cmp.Compare(a.seq, b.seq) })
	var keys []string
	for _, r := range all[:len(all)-limit] {
		keys = append(keys, r.key)
	}
	return keys, nil
}
