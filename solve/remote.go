package solve

import (
	"maps"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/graph"
)

// PartKey is the key of a single output of a vertex with several, where not all of them were found.
func PartKey(key graph.Digest, out int) graph.Digest {
	return digest.FromString(string(key) + "#" + strconv.Itoa(out))
}

// lookup returns the kept outputs of a node: all, or those of a vertex with several that the build wants.
func (b *Build[R, E]) lookup(n *node[R]) (res *shared[R], ok bool) {
	b.Trusted(n.ctx, func(origins []string) bool {
		var outs []R
		if outs, ok = b.lookupFrom(n, OriginKey(n.key, origins)); ok {
			res = newShared(outs, Union(n.claims, origins))
		}
		return ok
	})
	return res, ok
}

// lookupFrom is lookup under one key.
func (b *Build[R, E]) lookupFrom(n *node[R], key graph.Digest) ([]R, bool) {
	if outs, err := b.s.cache.Lookup(n.ctx, key); err == nil {
		return outs, true
	}
	if n.whole || n.v.Op.Outputs() < 2 {
		return nil, false
	}
	outs := make([]R, n.v.Op.Outputs())
	for _, i := range b.wantedOf(n) {
		part, err := b.s.cache.Lookup(n.ctx, PartKey(key, i))
		if err != nil || len(part) != 1 {
			newShared(outs, nil).release()
			return nil, false
		}
		outs[i] = part[0]
	}
	return outs, true
}

// Reach makes sure that the results of edges can be had: it is Solve for a build that reads none of them. What caches elsewhere
// have is not brought here.
func (b *Build[R, E]) Reach(edges ...graph.Edge) error {
	b.plan(edges)
	var missing []graph.Edge
	for _, e := range edges {
		if e.V != nil && !b.reached(e) {
			missing = append(missing, e)
		}
	}
	if _, _, err := b.solveAll(missing); err != nil {
		return err
	}
	graph.Walk(edges, func(v *graph.Vertex) { b.end(b.node(v), true, nil) })
	return nil
}

// reached reports whether an output is kept in a cache elsewhere, and only there.
func (b *Build[R, E]) reached(e graph.Edge) bool {
	r := b.remote.Load()
	n := b.node(e.V)
	if r == nil || b.keyOf(n) != nil || n.forced() {
		return false
	}
	if res, ok := b.lookup(n); ok {
		res.release()
		return false
	}
	return (*r).Has(n.ctx, e)
}

// wantedOf lists the outputs of a node that the build uses, sorted. Of one that nobody reads, it is the first.
func (b *Build[R, E]) wantedOf(n *node[R]) []int {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []int
	for _, i := range slices.Sorted(maps.Keys(n.wanted)) {
		if i >= 0 && i < n.v.Op.Outputs() {
			out = append(out, i)
		}
	}
	if len(out) == 0 {
		out = []int{0}
	}
	return out
}

// elsewhere looks into other caches, and keeps what they have. retry tells to ask again when the inputs are there.
func (b *Build[R, E]) elsewhere(n *node[R]) (res *shared[R], retry bool) {
	r := b.remote.Load()
	if r == nil || n.forced() || n.v.Op.Outputs() == 0 {
		return nil, false
	}
	wanted := b.wantedOf(n)
	if n.whole {
		wanted = wanted[:0]
		for i := range n.v.Op.Outputs() {
			wanted = append(wanted, i)
		}
	}
	found, retry := (*r).Find(n.ctx, n.v, wanted)
	if found == nil {
		return nil, retry
	}
	res = newShared(found.Outputs, Union(n.claims, OriginOf(found.Origin)))
	if err := b.keep(n, found, res.origins); err != nil {
		res.release()
		return nil, false // it is made here instead, and a lasting fault of the cache is told then
	}
	b.end(n, true, nil)
	return res, false
}

// keep stores what was found elsewhere: under the vertex's key and its origins, or, if there is only a part of it, under keys
// of the parts.
func (b *Build[R, E]) keep(n *node[R], f *Found[R], origins []string) error {
	e := &Entry[R]{Key: OriginKey(n.key, origins), Preimage: n.pre, Name: n.v.Name, Outputs: f.Outputs, Origins: origins, Created: f.Created}
	if !slices.ContainsFunc(f.Outputs, absent) {
		return b.s.cache.Store(n.ctx, e)
	}
	for i, r := range f.Outputs {
		if absent(r) {
			continue
		}
		part := *e
		part.Key, part.Outputs = PartKey(e.Key, i), []R{r}
		if err := b.s.cache.Store(n.ctx, &part); err != nil {
			return err
		}
	}
	return nil
}

// Forced reports whether a build makes an edge's vertex anew, so that nothing that was noted about earlier results counts.
func (b *Build[R, E]) Forced(e graph.Edge) bool {
	n := b.node(e.V)
	return b.keyOf(n) != nil || n.forced()
}

// Volatile reports whether an edge's key says nothing about its content.
func (b *Build[R, E]) Volatile(e graph.Edge) bool {
	n := b.node(e.V)
	return b.keyOf(n) != nil || n.pin.Volatile
}
