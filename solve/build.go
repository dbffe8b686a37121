package solve

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
)

// Build is the work of one client. Close it when its results are no longer needed.
type Build[R Result, E any] struct {
	s      *Solver[R, E]
	id     int64
	env    E
	sink   event.Sink
	parent context.Context
	stop   context.CancelCauseFunc
	remote atomic.Pointer[Remote[R]]

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

	keyOnce sync.Once
	pin     Pin
	pre     *Preimage
	key     graph.Digest
	keyErr  error

	runOnce sync.Once
	res     *shared[R]
	err     error
	done    atomic.Bool // res is there

	mu    sync.Mutex
	ended bool // Done was sent
}

// Build starts a build. The results of Solve are good until Close.
func (s *Solver[R, E]) Build(ctx context.Context, env E, sink event.Sink) *Build[R, E] {
	ctx, stop := context.WithCancelCause(ctx)
	b := &Build[R, E]{s: s, id: s.builds.Add(1), env: env, sink: sink, parent: ctx, stop: stop, nodes: map[graph.Digest]*node[R]{}}
	b.ctx, b.cancel = context.WithCancelCause(ctx)
	return b
}

// Close ends the build and gives up its results.
func (b *Build[R, E]) Close() {
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
	out, err := b.solveAll(edges)
	if err != nil {
		return nil, err
	}
	// What was not looked at, because what is above it was found, is reported as cached.
	graph.Walk(edges, func(v *graph.Vertex) { b.end(b.node(v), true, nil) })
	return out, nil
}

// nested solves a graph for a step of this build.
func (b *Build[R, E]) nested(edges ...graph.Edge) ([]R, error) {
	b.plan(edges)
	return b.solveAll(edges)
}

// Known returns an edge's result if it is there already: nothing is run for it. The edge must be below one that was solved.
func (b *Build[R, E]) Known(e graph.Edge) (R, bool) {
	var none R
	n := b.node(e.V)
	if err := b.keyOf(n); err != nil {
		return none, false
	}
	if !n.done.Load() && !n.forced() {
		if outs, err := b.s.cache.Lookup(n.ctx, n.key); err == nil {
			found := newShared(outs)
			n.runOnce.Do(func() { n.res, found = found, nil; n.done.Store(true) })
			if found != nil {
				found.release()
			}
		}
	}
	if !n.done.Load() || e.Out >= len(n.res.outs) {
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

func (b *Build[R, E]) solveAll(edges []graph.Edge) ([]R, error) {
	out := make([]R, len(edges))
	var g errgroup.Group
	for i, e := range edges {
		if e.IsScratch() {
			continue
		}
		g.Go(func() error {
			r, err := b.output(e)
			if err != nil {
				// Stop the siblings now: their work would be thrown away by the client, though not by the cache.
				b.abandon(b.ctxOf(e.V), err)
				return err
			}
			out[i] = r
			return nil
		})
	}
	return out, g.Wait()
}

// output returns one output of a vertex.
func (b *Build[R, E]) output(e graph.Edge) (R, error) {
	var none R
	n := b.node(e.V)
	outs, err := b.resultOf(n)
	if err == nil && e.Out >= 0 && e.Out < len(outs) && absent(outs[e.Out]) {
		outs, err = b.resultOf(b.again(n)) // only the other outputs were found
	}
	if err != nil {
		return none, err
	}
	if e.Out < 0 || e.Out >= len(outs) {
		return none, diag.Errorf(diag.Invalid, "%s has no output %d", e.V.Name, e.Out)
	}
	return outs[e.Out], nil
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
	whole := &node[R]{v: n.v, ctx: b.ctx, wanted: n.wanted, whole: true, ended: true}
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
		n = &node[R]{v: v, ctx: b.ctx, wanted: map[int]bool{}}
		b.nodes[v.ID] = n
		var in []graph.Digest
		for _, e := range v.In {
			if e.V != nil {
				in = append(in, e.V.ID)
			}
		}
		b.sink.Emit(event.Event{Kind: event.Planned, Vertex: v.ID, Name: v.Name, Group: v.Group, Inputs: in})
	}
	return n
}

// Failure is an error of a vertex. Its text is the cause's.
type Failure struct {
	V   *graph.Vertex
	Err error
}

func (f *Failure) Error() string { return f.Err.Error() }

func (f *Failure) Unwrap() error { return f.Err }

// fail reports that a node itself failed, and not only what it is made from.
func (b *Build[R, E]) fail(n *node[R], err error) error {
	err = diag.At(err, n.v.At...)
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

// keyOf computes a node's key, and with it the keys below it.
func (b *Build[R, E]) keyOf(n *node[R]) error {
	n.keyOnce.Do(func() { n.keyErr = b.computeKey(n) })
	return n.keyErr
}

func (b *Build[R, E]) computeKey(n *node[R]) error {
	v := n.v
	pin, err := b.s.runner.Pin(n.ctx, v, b.env)
	if err != nil {
		return b.fail(n, err)
	}
	n.pin = pin
	if pin.Volatile {
		pin.Value = fmt.Sprintf("build %d", b.id)
	}
	p := &Preimage{Tenant: b.s.tenant, Kind: v.Op.Kind(), Platform: v.Platform, Pin: pin.Value, Inputs: make([]Input, len(v.In))}
	if !pin.Complete {
		p.Op = graph.Canonical(graph.Identity(v.Op))
	}
	var g errgroup.Group
	for i, e := range v.In {
		if e.IsScratch() {
			p.Inputs[i] = Input{Name: "scratch"}
			continue
		}
		in := b.node(e.V)
		one := func() (err error) {
			p.Inputs[i], err = b.token(n, in, i)
			return err
		}
		if len(v.In) == 1 {
			if err := one(); err != nil {
				return err
			}
			continue
		}
		g.Go(one)
	}
	if err := g.Wait(); err != nil {
		return err
	}
	n.pre, n.key = p, p.Key()
	return nil
}

// ContentError is why a step has no key: what it reads of an input cannot be told, most often since it is not there.
type ContentError struct {
	Input graph.Digest // the input's key
	Index int          // of the input
	Err   error
}

func (e *ContentError) Error() string { return e.Err.Error() }
func (e *ContentError) Unwrap() error { return e.Err }

// token says what an input contributes to the key of the node that uses it.
func (b *Build[R, E]) token(user, in *node[R], i int) (Input, error) {
	out, sel := user.v.In[i].Out, user.v.Op.Uses(i)
	if err := b.keyOf(in); err != nil {
		return Input{}, err
	}
	if sel == nil {
		if !in.pin.Volatile {
			return Input{Key: in.key, Out: out, Name: in.v.Name}, nil
		}
		sel = graph.All()
	}
	var memo graph.Digest
	if !in.pin.Volatile {
		memo = digest.FromBytes(graph.Canonical(struct {
			Key graph.Digest
			Out int
			Sel *graph.Selector
		}{in.key, out, sel}))
		if d, err := b.s.cache.Memo(user.ctx, memo); err == nil && !in.v.NoCache {
			return Input{Content: d, Name: in.v.Name}, nil
		}
		if r := b.remote.Load(); r != nil && !in.v.NoCache {
			if d, ok := (*r).Token(user.ctx, user.v, i); ok {
				if d == "" {
					d = digest.FromString("as it was made: " + memo.String())
				}
				return Input{Content: d, Name: in.v.Name}, b.s.cache.SetMemo(user.ctx, memo, d)
			}
		}
	}
	r, err := b.output(user.v.In[i])
	if err != nil {
		return Input{}, err
	}
	d, err := r.Content(user.ctx, *sel)
	if err != nil {
		return Input{}, b.fail(user, &ContentError{Input: in.key, Index: i, Err: err})
	}
	if memo != "" {
		if err := b.s.cache.SetMemo(user.ctx, memo, d); err != nil {
			return Input{}, err
		}
	}
	return Input{Content: d, Name: in.v.Name}, nil
}

// resultOf returns a node's outputs: found, joined, or run.
func (b *Build[R, E]) resultOf(n *node[R]) ([]R, error) {
	n.runOnce.Do(func() {
		n.res, n.err = b.solve(n)
		n.done.Store(n.err == nil)
	})
	if n.err != nil {
		return nil, n.err
	}
	return n.res.outs, nil
}

func (b *Build[R, E]) solve(n *node[R]) (*shared[R], error) {
	if err := context.Cause(n.ctx); err != nil {
		return nil, err
	}
	if err := b.keyOf(n); err != nil {
		return nil, err
	}
	fkey := string(n.key)
	if n.forced() {
		// A forced run is not the run that another build began earlier.
		fkey += "@" + strconv.FormatInt(b.id, 10)
	} else if outs, ok := b.lookup(n); ok {
		b.end(n, true, nil)
		return newShared(outs), nil
	}
	res, retry := b.elsewhere(n)
	if res != nil {
		return res, nil
	}
	in, err := b.inputs(n)
	if err != nil {
		return nil, err
	}
	defer in.release()
	if retry {
		if res, _ = b.elsewhere(n); res != nil {
			return res, nil
		}
	}
	for {
		if err := context.Cause(n.ctx); err != nil {
			return nil, err
		}
		in.retain() // for the flight, which may outlive this build
		f, id := b.s.board(n.ctx, fkey, b.sink, func(ctx context.Context, f *flight[R]) {
			defer in.release()
			b.run(ctx, n, in.outs, f)
		})
		if id != 1 {
			in.release()
		}
		res, err := f.wait(n.ctx, id)
		if err != nil && id != 1 && n.ctx.Err() == nil && f.orphaned() {
			continue
		}
		if err != nil {
			return nil, b.fail(n, err)
		}
		b.end(n, f.cached, nil)
		return res, nil
	}
}

// forced reports whether a node runs in every build that asks for it.
func (n *node[R]) forced() bool { return n.pin.Volatile || n.v.NoCache }

// held is what a run reads: the inputs, and the shares that keep them alive.
type held[R Result] struct {
	outs []R
	from []*shared[R]
}

func (h *held[R]) retain() {
	for _, s := range h.from {
		s.retain()
	}
}

func (h *held[R]) release() {
	for _, s := range h.from {
		s.release()
	}
}

// inputs solves what a node is made from and retains it for the caller.
func (b *Build[R, E]) inputs(n *node[R]) (*held[R], error) {
	outs, err := b.solveAll(n.v.In)
	if err != nil {
		return nil, err
	}
	h := &held[R]{outs: outs}
	for _, e := range n.v.In {
		if e.V != nil {
			h.from = append(h.from, b.node(e.V).res)
		}
	}
	h.retain()
	return h, nil
}

// run is the body of a flight.
func (b *Build[R, E]) run(ctx context.Context, n *node[R], in []R, f *flight[R]) {
	if !n.forced() {
		// Another flight may have ended between the look-up and this one's start.
		if outs, err := b.s.cache.Lookup(ctx, n.key); err == nil {
			f.res, f.cached = newShared(outs), true
			return
		}
	}
	if !n.pin.Light {
		select {
		case b.s.slots <- struct{}{}:
			defer func() { <-b.s.slots }()
		case <-ctx.Done():
			f.err = context.Cause(ctx)
			return
		}
	}
	f.emit(event.Event{Kind: event.Started, Time: time.Now(), Vertex: n.v.ID, Reason: b.why(ctx, n)})
	outs, err := b.runAndStore(ctx, n, in, f)
	if err == nil {
		f.res = newShared(outs)
		return
	}
	for _, r := range outs {
		r.Release()
	}
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
		err = cause
	}
	f.err = err
}

func (b *Build[R, E]) why(ctx context.Context, n *node[R]) string {
	switch {
	case n.pin.Volatile:
		return ""
	case n.v.NoCache:
		return "no cache was asked for"
	}
	return b.s.cache.Why(ctx, n.v.Name, n.pre)
}

func (b *Build[R, E]) runAndStore(ctx context.Context, n *node[R], in []R, f *flight[R]) ([]R, error) {
	start := time.Now()
	outs, err := b.s.runner.Run(ctx, &Step[R, E]{
		V: n.v, Pin: n.pin, Key: n.key, In: in, Env: b.env, Solve: b.nested,
		Emit: func(e event.Event) {
			if e.Vertex == "" {
				e.Vertex = n.v.ID
			}
			f.emit(e)
		},
	})
	if err != nil {
		return outs, err
	}
	if len(outs) < n.v.Op.Outputs() {
		return outs, fmt.Errorf("%s made %d outputs instead of %d", n.v.Name, len(outs), n.v.Op.Outputs())
	}
	if n.pin.Volatile {
		return outs, nil
	}
	return outs, b.s.cache.Store(ctx, &Entry[R]{Key: n.key, Preimage: n.pre, Name: n.v.Name, Outputs: outs, Cost: time.Since(start)})
}
