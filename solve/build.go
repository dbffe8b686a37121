package solve

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
)

// Build is the work of one client. Close it when its results are no longer needed.
type Build[R Result, E any] struct {
	s        *Solver[R, E]
	id       int64
	tenant   string
	env      E
	sink     event.Sink
	client   string          // whose steps count together when slots are divided
	started  context.Context // that the build was begun with
	parent   context.Context
	stop     context.CancelCauseFunc
	remote   atomic.Pointer[Remote[R]]
	branches atomic.Int32

	mu     sync.Mutex
	ctx    context.Context // of nodes that are added now; a failure ends it, and the next solve has another
	cancel context.CancelCauseFunc
	nodes  map[graph.Digest]*node[R]
	past   []*node[R] // of earlier contexts: they are no longer found, but may still run
}

// node is a vertex in a build. Equal vertices are one node.
type node[R Result] struct {
	v      *graph.Vertex
	ctx    context.Context
	wanted map[int]bool // outputs that the build uses; guarded by Build.mu
	whole  bool         // all outputs must be there

	// noCache is set if any of the equal vertices asks to run without the cache; guarded by Build.mu.
	noCache bool

	keyOnce sync.Once
	pin     Pin
	pre     *Preimage
	key     graph.Digest
	anew    string   // why a cached result must not be used; "" = it may be
	claims  []string // caches that have said what is in the key
	keyErr  error

	runOnce sync.Once
	res     *shared[R]
	err     error
	done    atomic.Bool // res is there

	mu    sync.Mutex
	ended bool // Done was sent
}

// BuildOptions are of one build.
type BuildOptions struct {
	Tenant string // part of every key: builds of different tenants share nothing
	Client string // the slots for running steps are divided among clients; see Options.Parallel
	Sink   event.Sink
}

// Build starts a build. The results of Solve are good until Close.
func (s *Solver[R, E]) Build(ctx context.Context, env E, opt BuildOptions) *Build[R, E] {
	started := ctx
	ctx, stop := context.WithCancelCause(ctx)
	b := &Build[R, E]{
		s: s, id: s.builds.Add(1), tenant: opt.Tenant, client: opt.Client, env: env, sink: opt.Sink,
		started: started, parent: ctx, stop: stop, nodes: map[graph.Digest]*node[R]{},
	}
	b.ctx, b.cancel = context.WithCancelCause(ctx)
	s.mu.Lock()
	s.live[b] = struct{}{}
	s.mu.Unlock()
	return b
}

// peers returns the other builds of the tenant that have a vertex in their graphs, oldest first.
func (b *Build[R, E]) peers(id graph.Digest) []*Build[R, E] {
	b.s.mu.Lock()
	all := slices.SortedFunc(maps.Keys(b.s.live), func(x, y *Build[R, E]) int { return cmp.Compare(x.id, y.id) })
	b.s.mu.Unlock()
	return slices.DeleteFunc(all, func(p *Build[R, E]) bool {
		if p == b || p.tenant != b.tenant {
			return true
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.nodes[id] == nil
	})
}

// Close ends the build and gives up its results.
func (b *Build[R, E]) Close() {
	b.s.mu.Lock()
	delete(b.s.live, b)
	b.s.mu.Unlock()
	b.stop(context.Canceled)
	b.mu.Lock()
	nodes := slices.AppendSeq(b.past, maps.Values(b.nodes))
	b.mu.Unlock()
	for _, n := range nodes {
		// A node that never ran must not start after this; one that runs is waited for.
		n.runOnce.Do(func() { n.err = context.Canceled })
		if n.res != nil {
			n.res.release()
			n.res = nil
		}
	}
}

// Solve returns the results of edges, solved in parallel; scratch gives the zero R. The first error stops what the build
// is doing, other solves of it included. A later Solve begins again with the vertices that have no result.
func (b *Build[R, E]) Solve(edges ...graph.Edge) ([]R, error) {
	b.plan(edges)
	out, _, err := b.solveAll(edges)
	if err != nil {
		return nil, err
	}
	// What was not looked at, because what is above it was found, is reported as cached.
	graph.Walk(edges, func(v *graph.Vertex) { b.end(b.node(v), true, nil) })
	return out, nil
}

// nested solves a graph for a step of this build, and says which caches the results came from.
func (b *Build[R, E]) nested(edges ...graph.Edge) (out []R, origins []string, err error) {
	b.plan(edges)
	out, nodes, err := b.solveAll(edges)
	if err != nil {
		return nil, nil, err
	}
	for _, n := range nodes {
		if n != nil {
			origins = Union(origins, n.origins())
		}
	}
	return out, origins, nil
}

// Known returns an edge's result if it is there already: nothing is run for it. The edge must be below one that was solved.
func (b *Build[R, E]) Known(e graph.Edge) (R, bool) {
	var none R
	n := b.node(e.V)
	if err := b.keyOf(n); err != nil {
		return none, false
	}
	if !n.done.Load() && !n.forced() {
		if found, ok := b.lookup(n); ok {
			n.runOnce.Do(func() { n.res, found = found, nil; n.done.Store(true) })
			if found != nil {
				found.release()
			}
		}
	}
	if !n.done.Load() || e.Out >= len(n.res.outs) || absent(n.res.outs[e.Out]) {
		return none, false
	}
	return n.res.outs[e.Out], true
}

// Key returns the cache key of an edge's vertex.
func (b *Build[R, E]) Key(e graph.Edge) (graph.Digest, error) {
	n := b.node(e.V)
	err := b.keyOf(n)
	return n.key, err
}

// solveAll returns the outputs of edges, and the nodes that have them: zero and nil where an edge is scratch.
func (b *Build[R, E]) solveAll(edges []graph.Edge) ([]R, []*node[R], error) {
	out, nodes := make([]R, len(edges)), make([]*node[R], len(edges))
	err := b.together(edges, func(i int) (err error) {
		out[i], nodes[i], err = b.output(edges[i])
		return err
	})
	return out, nodes, err
}

// maxBranches bounds the goroutines of one build that follow the inputs of its vertices. A step of 50,000 inputs would have
// as many stacks otherwise, of 8 KiB and more.
const maxBranches = 1000

// together calls f with the index of every edge that is not scratch, in parallel. The first error stops what the others do:
// the client would throw their work away, though not the cache. If the build has maxBranches already, f is called here: the
// graph has no circles, so an edge never waits for one that comes later in a list.
func (b *Build[R, E]) together(edges []graph.Edge, f func(i int) error) error {
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	for i, e := range edges {
		if e.IsScratch() {
			continue
		}
		one := func() {
			if err := f(i); err != nil {
				once.Do(func() { first = err })
				b.abandon(b.ctxOf(e.V), err)
			}
		}
		if len(edges) == 1 || b.branches.Add(1) > maxBranches {
			if len(edges) > 1 {
				b.branches.Add(-1)
			}
			one()
			continue
		}
		wg.Go(func() {
			defer b.branches.Add(-1)
			one()
		})
	}
	wg.Wait()
	return first
}

// output returns one output of a vertex, and the node that has it. A caller must not look the node up again: when another
// vertex fails, the build forgets a node that is just ending, and has a new one without a result in its place.
func (b *Build[R, E]) output(e graph.Edge) (R, *node[R], error) {
	var none R
	n := b.node(e.V)
	outs, err := b.resultOf(n)
	if err == nil && e.Out >= 0 && e.Out < len(outs) && absent(outs[e.Out]) {
		n = b.again(n) // only the other outputs were found
		outs, err = b.resultOf(n)
	}
	if err != nil {
		return none, nil, err
	}
	if e.Out < 0 || e.Out >= len(outs) {
		return none, nil, diag.Errorf(diag.Invalid, "%s has no output %d", e.V.Name, e.Out)
	}
	return outs[e.Out], n, nil
}

// absent reports whether an output was not wanted, and so not found.
func absent[R Result](r R) bool { return any(r) == nil }

// again replaces a node of which not all outputs were found.
func (b *Build[R, E]) again(n *node[R]) *node[R] {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := b.nodes[n.v.ID]; now != n && now != nil {
		return now
	}
	b.past = append(b.past, n)
	whole := &node[R]{v: n.v, ctx: b.ctx, wanted: n.wanted, whole: true, noCache: n.noCache, ended: true}
	b.nodes[n.v.ID] = whole
	return whole
}

// UseRemote lets the build look into caches elsewhere. It must be called before what shall use them is solved.
func (b *Build[R, E]) UseRemote(r Remote[R]) { b.remote.Store(&r) }

// At returns an output of a vertex if it is there already.
func (b *Build[R, E]) At(e graph.Edge) (r R, ok bool) {
	b.mu.Lock()
	n := b.nodes[e.V.ID]
	b.mu.Unlock()
	if n == nil || !n.done.Load() || e.Out < 0 || e.Out >= len(n.res.outs) || absent(n.res.outs[e.Out]) {
		return r, false
	}
	return n.res.outs[e.Out], true
}

// ctxOf returns the context of a vertex's node, nil if it is no longer found.
func (b *Build[R, E]) ctxOf(v *graph.Vertex) context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.nodes[v.ID]; n != nil {
		return n.ctx
	}
	return nil
}

// abandon ends the work in a context, unless that has happened already. Vertices that have no result are forgotten.
func (b *Build[R, E]) abandon(ctx context.Context, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if ctx != b.ctx {
		return
	}
	b.cancel(err)
	b.ctx, b.cancel = context.WithCancelCause(b.parent)
	for id, n := range b.nodes {
		if !n.done.Load() {
			b.past = append(b.past, n)
			delete(b.nodes, id)
		}
	}
}

// plan announces the vertices below the edges.
func (b *Build[R, E]) plan(edges []graph.Edge) {
	graph.Walk(edges, func(v *graph.Vertex) {
		b.node(v)
		b.want(v.In)
	})
	b.want(edges)
}

// want notes which outputs are used.
func (b *Build[R, E]) want(edges []graph.Edge) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range edges {
		if e.V == nil {
			continue
		}
		if n := b.nodes[e.V.ID]; n != nil && !n.wanted[e.Out] {
			n.wanted[e.Out] = true
		}
	}
}

func (b *Build[R, E]) node(v *graph.Vertex) *node[R] {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.nodes[v.ID]
	if n == nil {
		n = &node[R]{v: v, ctx: b.ctx, wanted: map[int]bool{}, noCache: v.NoCache}
		b.nodes[v.ID] = n
		var in []graph.Digest
		for _, e := range v.In {
			if e.V != nil {
				in = append(in, e.V.ID)
			}
		}
		b.sink.Emit(event.Event{Kind: event.Planned, Vertex: v.ID, Name: v.Name, Group: v.Group, Inputs: in})
	}
	n.noCache = n.noCache || v.NoCache
	return n
}

// Failure is an error of a vertex. Its text is the cause's.
type Failure struct {
	V   *graph.Vertex
	Err error
}

func (f *Failure) Error() string { return f.Err.Error() }

func (f *Failure) Unwrap() error { return f.Err }

// fail reports that a node itself failed, and not only what it is made from. A node that was stopped because another one
// failed is reported as canceled, and the error stays that of the other one.
func (b *Build[R, E]) fail(n *node[R], err error) error {
	if _, other := err.(*Failure); other && err == context.Cause(n.ctx) {
		b.end(n, false, context.Canceled)
		return err
	}
	err = diag.At(err, n.v.At...)
	if n.v.Advice != "" && diag.KindOf(err) == diag.NotFound {
		err = diag.Advised(err, n.v.Advice)
	}
	b.end(n, false, err)
	return &Failure{V: n.v, Err: err}
}

func (b *Build[R, E]) end(n *node[R], cached bool, err error) {
	n.mu.Lock()
	first := !n.ended
	n.ended = true
	n.mu.Unlock()
	if !first {
		return
	}
	e := event.Event{Kind: event.Done, Vertex: n.v.ID, Cached: cached}
	if err != nil {
		e.Error = err.Error()
	}
	b.sink.Emit(e)
}
