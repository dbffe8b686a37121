package solve

import (
	"context"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/graph"
)

// OriginKey is the key of a result that came from caches elsewhere, or was made from such results. Nobody can verify that a
// record of a cache belongs to its step, so what a cache has said must not serve builds that do not name the cache: their
// keys are others. Origins are sorted names; without any it is the plain key.
func OriginKey(key graph.Digest, origins []string) graph.Digest {
	if len(origins) == 0 {
		return key
	}
	return digest.FromString(string(key) + "\x00from\x00" + strings.Join(origins, "\x00"))
}

// Union merges sets of origins.
func Union(sets ...[]string) []string {
	var all []string
	for _, s := range sets {
		if len(all) == 0 {
			all = s
			continue
		}
		all = slices.Concat(all, s)
	}
	if len(all) < 2 {
		return all
	}
	all = slices.Clone(all)
	slices.Sort(all)
	return slices.Compact(all)
}

// OriginOf is the set of one cache; "" is none that matters.
func OriginOf(name string) []string {
	if name == "" {
		return nil
	}
	return []string{name}
}

// Trusted calls f with the sets of origins whose results a build may use, until f returns true: none, each of the caches that
// the build names, and all of them. Which caches can be read is only asked when there is nothing without them.
func (b *Build[R, E]) Trusted(ctx context.Context, f func(origins []string) bool) bool {
	if f(nil) {
		return true
	}
	r := b.remote.Load()
	if r == nil {
		return false
	}
	all := Union((*r).Origins(ctx))
	for _, o := range all {
		if f([]string{o}) {
			return true
		}
	}
	return len(all) > 1 && f(all)
}

// Keys returns the keys that results of an edge's vertex may be kept under for this build, those of its result first.
func (b *Build[R, E]) Keys(e graph.Edge) ([]graph.Digest, error) {
	n := b.node(e.V)
	if err := b.keyOf(n); err != nil {
		return nil, err
	}
	var keys []graph.Digest
	if n.done.Load() {
		keys = append(keys, OriginKey(n.key, n.res.origins))
	}
	b.Trusted(n.ctx, func(o []string) bool {
		if k := OriginKey(n.key, o); !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
		return false
	})
	return keys, nil
}

// Origins returns the caches that an edge's key and, if it is there, its result came from.
func (b *Build[R, E]) Origins(e graph.Edge) []string {
	n := b.node(e.V)
	if b.keyOf(n) != nil || !n.done.Load() {
		return n.claims
	}
	return n.origins()
}

// origins is Origins of a node that has its result.
func (n *node[R]) origins() []string { return Union(n.claims, n.res.origins) }
