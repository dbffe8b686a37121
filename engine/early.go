package engine

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/export"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// early starts what exporters will need of a layer as soon as it is made, while later steps still run.
type early struct {
	ctx   context.Context
	b     *build
	outs  []export.Exporter
	epoch *time.Time
	wants map[graph.Digest]graph.Edge // by vertex: those whose top layer is part of an image
	to    []*CacheExport
	steps map[graph.Digest][]graph.Edge // by vertex: the outputs that go into caches with the results of all steps

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// packEarly watches the build for layers of the targets' images. The returned function ends the watch and what it
// started; an exporter that has joined some of that work keeps it going.
func (b *build) packEarly(ctx context.Context, plan *image.Plan, outs []export.Exporter, to []*CacheExport) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	w := &early{ctx: ctx, b: b, outs: outs, wants: map[graph.Digest]graph.Edge{}, steps: map[graph.Digest][]graph.Edge{}}
	w.to = slices.DeleteFunc(slices.Clone(to), func(x *CacheExport) bool { return x.Inline })
	var roots []graph.Edge
	for _, t := range plan.Targets {
		w.epoch = t.Epoch // of all targets: where it is not, a layer is made that is not needed
		w.follow(t.Root)
		roots = append(roots, t.Root)
	}
	if slices.ContainsFunc(w.to, func(x *CacheExport) bool { return x.Max }) {
		graph.Walk(roots, func(v *graph.Vertex) {
			for _, e := range v.In {
				if e.V != nil && len(e.V.In) > 0 && !slices.Contains(w.steps[e.V.ID], e) {
					w.steps[e.V.ID] = append(w.steps[e.V.ID], e)
				}
			}
		})
	}
	b.made.Store(w)
	return func() {
		b.made.Store(nil)
		w.mu.Lock()
		w.closed = true
		w.mu.Unlock()
		cancel()
		w.wg.Wait()
	}
}

// follow collects the vertices that a tree's layers come from.
func (w *early) follow(e graph.Edge) {
	if e.V == nil || w.wants[e.V.ID].V != nil {
		return
	}
	switch e.V.Op.(type) {
	case *graph.Image, *graph.OCILayout:
		return // its layers go out as they are packed already
	}
	w.wants[e.V.ID] = e
	for _, in := range graph.Below(e) {
		w.follow(in)
	}
}

// rootSource returns the source at the bottom of a tree, nil for scratch.
func rootSource(e graph.Edge) *graph.Vertex {
	for e.V != nil {
		next := graph.Below(e)
		if len(next) == 0 {
			return e.V
		}
		e = next[0]
	}
	return nil
}

// done hears of a vertex that ran.
func (w *early) done(e event.Event) {
	edge, ok := w.wants[e.Vertex]
	steps := w.steps[e.Vertex]
	if !ok && steps == nil || e.Kind != event.Done || e.Cached || e.Error != "" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	if ok {
		w.wg.Go(func() { w.pack(edge, true) })
	}
	for _, step := range steps {
		if step != edge {
			w.wg.Go(func() { w.pack(step, false) })
		}
	}
}

// pack makes what is needed of the top layer of an edge that has just been solved.
func (w *early) pack(edge graph.Edge, inImage bool) {
	trees, err := w.b.work.Solve(edge)
	if err != nil || trees[0] == nil {
		return
	}
	ids, ok := trees[0].Layers()
	if !ok || len(ids) == 0 {
		return
	}
	top := ids[len(ids)-1]
	for _, x := range w.outs {
		if !inImage {
			break
		}
		if err := w.b.e.packer.Early(w.ctx, x, top, w.epoch, w.b.hold); err != nil {
			w.b.e.log.Debug("early export", "err", err) // the exporter meets the error again, and reports it
		}
	}
	for _, x := range w.to {
		if !inImage && !x.Max {
			continue
		}
		if _, err := w.b.caches.Pack(w.ctx, top, x.Pack); err != nil {
			w.b.e.log.Debug("early export to a cache", "err", err)
		}
	}
}
