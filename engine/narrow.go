package engine

import (
	"maps"
	"path"
	"slices"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/session"
)

// narrow makes the directories of a client on another machine smaller: only what the plan's steps read of them is asked for.
// A directory of this machine is read in place, and needs no such care.
func (b *build) narrow(plan *image.Plan) {
	if _, ok := b.session.(session.Syncer); !ok {
		return
	}
	roots := make([]graph.Edge, len(plan.Targets))
	for i, t := range plan.Targets {
		roots[i] = t.Root
	}
	follow := pathsRead(roots)
	if len(follow) == 0 {
		return
	}
	r := replacer{made: map[*graph.Vertex]*graph.Vertex{}, op: func(v *graph.Vertex) graph.Op {
		if paths := follow[v.ID]; len(paths) > 0 {
			local := *v.Op.(*graph.Local)
			local.Follow = paths
			return &local
		}
		return v.Op
	}}
	for i := range plan.Targets {
		plan.Targets[i].Root = r.edge(plan.Targets[i].Root)
	}
}

// pathsRead lists, by the directory's vertex, the paths that a graph reads of it. Directories that are read as a whole are
// left out.
func pathsRead(roots []graph.Edge) map[graph.Digest][]string {
	read := map[graph.Digest]map[string]bool{}
	whole := map[graph.Digest]bool{}
	for _, e := range roots {
		if e.V != nil {
			whole[e.V.ID] = true
		}
	}
	graph.Walk(roots, func(v *graph.Vertex) {
		for i, e := range v.In {
			if e.V == nil {
				continue
			}
			o, ok := e.V.Op.(*graph.Local)
			if !ok || len(o.Include)+len(o.Follow) > 0 || o.Metadata {
				continue
			}
			sel := v.Op.Uses(i)
			if sel == nil || sel.Layers {
				whole[e.V.ID] = true
				continue
			}
			if read[e.V.ID] == nil {
				read[e.V.ID] = map[string]bool{}
			}
			for _, s := range sel.Paths {
				read[e.V.ID][path.Clean("/"+s.Path)] = true
			}
		}
	})
	out := map[graph.Digest][]string{}
	for id, paths := range read {
		if whole[id] || paths["/"] {
			continue
		}
		for _, p := range slices.Sorted(maps.Keys(paths)) {
			out[id] = append(out[id], p[1:])
		}
	}
	return out
}

// replacer rebuilds a graph in which some vertices do something else.
type replacer struct {
	op   func(*graph.Vertex) graph.Op
	made map[*graph.Vertex]*graph.Vertex
}

func (r *replacer) edge(e graph.Edge) graph.Edge {
	graph.Walk([]graph.Edge{e}, r.vertex)
	return r.of(e)
}

// of is an edge whose vertex was replaced.
func (r *replacer) of(e graph.Edge) graph.Edge {
	if e.V != nil {
		e.V = r.made[e.V]
	}
	return e
}

// vertex replaces a vertex whose inputs were replaced.
func (r *replacer) vertex(v *graph.Vertex) {
	if r.made[v] != nil {
		return
	}
	op := r.op(v)
	changed := op != v.Op
	in := make([]graph.Edge, len(v.In))
	for i, e := range v.In {
		in[i] = r.of(e)
		changed = changed || in[i] != e
	}
	n := v
	if changed {
		n = graph.New(op, in, func(n *graph.Vertex) {
			*n = *v
			n.Op, n.In = op, in
		})
	}
	r.made[v] = n
}
