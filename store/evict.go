package store

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
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
	stays := map[*item]string{}
	e.pass(stays, func(*item) bool { return true })
	// Blobs that results needed which are gone now.
	e.pass(stays, func(it *item) bool { return e.unpinned[graph.Digest(it.ID)] && it.Kind == UsageBlob })
	for _, it := range e.items {
		if why, ok := stays[it]; ok {
			e.freed.Kept = append(e.freed.Kept, FreedItem{it.Usage, why})
		}
	}
}

func (e *eviction) pass(stays map[*item]string, of func(*item) bool) {
	for _, it := range e.items {
		if !of(it) || e.policy.Owner != "" && it.Owner != e.policy.Owner || e.policy.Filter != nil && !e.policy.Filter(it.Usage) {
			continue
		}
		if why := e.forbids(it); why != "" {
			stays[it] = why
			continue
		}
		delete(stays, it)
		before := e.freed.Bytes
		e.evict(it)
		why := e.reason(it)
		it.Size = e.freed.Bytes - before
		e.freed.Items = append(e.freed.Items, FreedItem{it.Usage, why})
	}
}

// forbids says why an item is not to go now, "" if it is.
func (e *eviction) forbids(it *item) string {
	switch {
	case it.InUse && strings.HasPrefix(it.Why, "image "):
		return "needed by " + it.Why
	case it.InUse:
		return "in use by " + it.Why
	case it.Kind == UsageBlob && e.pins[graph.Digest(it.ID)] > 0:
		return "needed by a result or an image that is kept"
	case !e.policy.All && e.used <= e.limit && e.files <= 0:
		return "within the size that is kept"
	case e.policy.KeepDuration > 0 && e.now.Sub(it.LastUsed) < e.policy.KeepDuration:
		return "used in the last " + e.policy.KeepDuration.String()
	case e.policy.Unneeded && it.Kind == UsageMount && !e.policy.Mounts:
		return "cache mounts are removed with --all"
	case e.policy.Unneeded && it.Kind == UsageImage:
		return "images without a name are removed with: strata image prune"
	case e.policy.Unneeded && it.Kind != UsageMount:
		return e.needs(it)
	case !e.policy.All && (it.Kind == UsageResult || it.Kind == UsageImage) && e.rooted(it):
		return e.plan.layers[it.layers[0]].root // that would free nothing
	}
	return ""
}

// needs says which image needs all layers of an item, "" if none does.
func (e *eviction) needs(it *item) (why string) {
	for _, id := range it.layers {
		switch n := e.plan.layers[id]; {
		case strings.HasPrefix(n.root, "image "):
			why = "needed by " + n.root
		case n.root != "":
			why = "in use by " + n.root
		case n.image != "":
			why = "needed by image " + n.image
		default:
			return ""
		}
	}
	return why
}

// reason says why an item goes.
func (e *eviction) reason(it *item) string {
	why := "not used since it was made"
	if !it.LastUsed.IsZero() && it.LastUsed.After(it.Created) {
		why = fmt.Sprintf("not used for %s", e.now.Sub(it.LastUsed).Round(time.Second))
	}
	if !e.policy.All {
		why = "least recently used: " + why
	}
	return why
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
	case UsageResult, UsageLayer, UsageImage:
		for _, id := range it.layers {
			n := e.plan.layers[id]
			if n.refs--; n.refs > 0 || n.root != "" {
				continue
			}
			e.batch.drop(layerKey(id))
			e.layers = append(e.layers, id)
			e.free(n.info.Owner, n.info.Size)
			e.freed.Files += n.info.Files
			e.files -= n.info.Files
		}
	default:
		e.paths = append(e.paths, it.path)
		e.free(it.Owner, it.Size)
	}
}

func (e *eviction) free(owner string, n int64) {
	e.freed.Bytes += n
	if e.policy.Owner == "" || e.policy.Owner == owner {
		e.used -= n
	}
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
