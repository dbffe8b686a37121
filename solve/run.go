package solve

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
)

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
	if !n.forced() {
		if res, ok := b.lookup(n); ok {
			b.end(n, true, nil)
			return res, nil
		}
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
	return b.fly(n, in)
}

// fly joins the run of a node that is under way, or starts it.
func (b *Build[R, E]) fly(n *node[R], in *held[R]) (*shared[R], error) {
	in.origins = Union(n.claims, in.origins)
	fkey := string(OriginKey(n.key, in.origins)) + limitsOf(n.v)
	if n.forced() {
		// A forced run is not the run that another build began earlier.
		fkey += "@" + strconv.FormatInt(b.id, 10)
	}
	for own := false; ; {
		if err := context.Cause(n.ctx); err != nil {
			return nil, err
		}
		in.retain() // for the flight, which may outlive this build
		f, id := b.board(n.ctx, fkey, func(ctx context.Context, f *flight[R, E]) {
			defer in.release()
			b.run(ctx, n, in, f, own)
		})
		if id != 1 {
			in.release()
		}
		res, err := f.wait(n.ctx, id)
		if err != nil && id != 1 && n.ctx.Err() == nil && f.orphaned() {
			continue
		}
		if id != 1 && !own && n.ctx.Err() == nil && f.lacks(b.env) {
			if err == nil {
				res.release()
			}
			own, fkey = true, fkey+"@"+strconv.FormatInt(b.id, 10)
			continue
		}
		if err != nil {
			return nil, b.fail(n, err)
		}
		b.end(n, f.cached, nil)
		return res, nil
	}
}

// limitsOf returns what the limits of a step add to the name of its flight. Limits are in no key, but builds that share a run
// share its limits: one build would fail at the limits of another, or escape its own.
func limitsOf(v *graph.Vertex) string {
	e, ok := v.Op.(*graph.Exec)
	if !ok {
		return ""
	}
	return " " + string(graph.Canonical(e.Limits))
}

// forced reports whether a node runs in every build that asks for it. It is known once the node has a key.
func (n *node[R]) forced() bool { return n.pin.Volatile || n.anew != "" }

// held is what a run reads: the inputs, and the shares that keep them alive.
type held[R Result] struct {
	outs    []R
	from    []*shared[R]
	origins []string // of all that the result is made from
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
	outs, nodes, err := b.solveAll(n.v.In)
	if err != nil {
		return nil, err
	}
	h := &held[R]{outs: outs}
	for _, in := range nodes {
		if in != nil {
			h.from, h.origins = append(h.from, in.res), Union(h.origins, in.res.origins)
		}
	}
	h.retain()
	return h, nil
}

// run is the body of a flight. own tells that a result which another build has made just now is not wanted.
func (b *Build[R, E]) run(ctx context.Context, n *node[R], in *held[R], f *flight[R, E], own bool) {
	if !n.forced() && !own {
		// Another flight may have ended between the look-up and this one's start.
		if outs, err := b.s.cache.Lookup(ctx, OriginKey(n.key, in.origins)); err == nil {
			f.res, f.cached = newShared(outs, in.origins), true
			return
		}
	}
	if !n.pin.Light {
		release, err := b.s.slots.take(ctx, b.client, b.id)
		if err != nil {
			f.err = err
			return
		}
		defer release()
	}
	f.emit(event.Event{Kind: event.Started, Time: time.Now(), Vertex: n.v.ID, Reason: b.why(ctx, n)})
	outs, origins, err := b.runAndStore(ctx, n, in, f)
	if err == nil {
		f.res = newShared(outs, origins)
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
	if n.forced() {
		return n.anew
	}
	return b.s.cache.Why(ctx, n.v.Name, n.pre)
}

func (b *Build[R, E]) runAndStore(ctx context.Context, n *node[R], in *held[R], f *flight[R, E]) ([]R, []string, error) {
	start := time.Now()
	var mu sync.Mutex
	origins := in.origins
	outs, err := b.s.runner.Run(ctx, &Step[R, E]{
		V: n.v, Pin: n.pin, Key: n.key, In: in.outs, Env: b.env,
		Peers: func() []E {
			var envs []E
			for _, p := range b.peers(n.v.ID) {
				envs = append(envs, p.env)
			}
			return envs
		},
		Lacked: func(has func(E) bool) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.lacked = append(f.lacked, has)
		},
		Solve: func(edges ...graph.Edge) ([]R, error) {
			outs, from, err := b.nested(edges...)
			mu.Lock()
			defer mu.Unlock()
			origins = Union(origins, from)
			return outs, err
		},
		Emit: func(e event.Event) {
			if e.Vertex == "" {
				e.Vertex = n.v.ID
			}
			f.emit(e)
		},
	})
	if err != nil {
		return outs, nil, err
	}
	if len(outs) < n.v.Op.Outputs() {
		return outs, nil, fmt.Errorf("%s made %d outputs instead of %d", n.v.Name, len(outs), n.v.Op.Outputs())
	}
	if n.pin.Volatile {
		return outs, origins, nil
	}
	return outs, origins, b.s.cache.Store(ctx, &Entry[R]{
		Key: OriginKey(n.key, origins), Preimage: n.pre, Name: n.v.Name, Outputs: outs, Origins: origins, Cost: time.Since(start),
	})
}
