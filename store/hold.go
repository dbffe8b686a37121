package store

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/strata-build/strata/graph"
)

// Hold keeps layers and blobs from being collected until it is released. It lives in memory: it ends with the process.
type Hold struct {
	s      *Store
	mu     sync.Mutex
	layers map[LayerID]int
	blobs  map[graph.Digest]int
	done   bool
}

// holds counts who holds what.
type holds struct {
	mu       sync.Mutex
	layers   map[LayerID]int
	blobs    map[graph.Digest]int
	released atomic.Uint64 // goes up when something may have become collectable
	tempDirs atomic.Int64
}

// Hold starts an empty hold.
func (s *Store) Hold() *Hold {
	return &Hold{s: s, layers: map[LayerID]int{}, blobs: map[graph.Digest]int{}}
}

// Layers holds layers, which may still be drafts: a draft stays held when it is committed. A layer that the caller does not
// hold in another way may just have been collected: to look up and hold in one step, use Result, Chain or Image.
func (h *Hold) Layers(ids ...LayerID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.done {
		return
	}
	h.s.holds.mu.Lock()
	defer h.s.holds.mu.Unlock()
	if h.s.holds.layers == nil {
		h.s.holds.layers = map[LayerID]int{}
	}
	for _, id := range ids {
		if h.layers[id]++; h.layers[id] == 1 {
			h.s.holds.layers[id]++
		}
	}
}

// Blobs holds blobs, which need not exist yet.
func (h *Hold) Blobs(digests ...graph.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.done {
		return
	}
	for _, d := range digests {
		if h.blobs[d]++; h.blobs[d] == 1 {
			h.s.holds.pin(d, 1)
		}
	}
}

func (p *holds) pin(d graph.Digest, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blobs == nil {
		p.blobs = map[graph.Digest]int{}
	}
	if p.blobs[d] += n; p.blobs[d] <= 0 {
		delete(p.blobs, d)
		p.released.Add(1)
	}
}

// drop takes back one layer.
func (h *Hold) drop(id LayerID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.layers[id]--; h.layers[id] == 0 {
		delete(h.layers, id)
		h.s.holds.mu.Lock()
		h.s.holds.unlayer(id)
		h.s.holds.mu.Unlock()
	}
}

func (p *holds) unlayer(id LayerID) {
	if p.layers[id]--; p.layers[id] <= 0 {
		delete(p.layers, id)
	}
	p.released.Add(1)
}

// Release ends the hold. It may be called more than once.
func (h *Hold) Release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.done {
		return
	}
	h.done = true
	h.s.holds.mu.Lock()
	for id := range h.layers {
		h.s.holds.unlayer(id)
	}
	h.s.holds.mu.Unlock()
	for d := range h.blobs {
		h.s.holds.pin(d, -1)
	}
	h.s.settle()
}

// NewLayer makes a draft that stays held after it is committed.
func (h *Hold) NewLayer(ctx context.Context) (*Draft, error) { return h.s.newLayer(ctx, h) }

// NewBlob is Store.NewBlob; the blob is held as soon as it is in the store.
func (h *Hold) NewBlob(ctx context.Context, expected graph.Digest) (*BlobWriter, error) {
	if expected != "" {
		h.Blobs(expected)
	}
	w, err := h.s.NewBlob(ctx, expected)
	if err == nil {
		w.hold = h
	}
	return w, err
}

// HasBlob is Store.HasBlob; the blob is held, whether it is there or not.
func (h *Hold) HasBlob(d graph.Digest) (int64, bool) {
	h.Blobs(d)
	return h.s.HasBlob(d)
}

// Result is Store.Result; the layers are held.
func (h *Hold) Result(key graph.Digest) (Result, error) {
	h.s.mu.RLock()
	defer h.s.mu.RUnlock()
	r, err := h.s.result(key)
	if err == nil {
		for _, stack := range r.Outputs {
			h.Layers(stack...)
		}
		h.Blobs(r.Blobs...)
	}
	return r, err
}

// Chain is Store.Chain; the layer is held.
func (h *Hold) Chain(chainID graph.Digest) (LayerID, error) {
	h.s.mu.RLock()
	defer h.s.mu.RUnlock()
	id, err := h.s.chain(chainID)
	if err == nil {
		h.Layers(id)
	}
	return id, err
}

// Image is Store.Image; the layers and blobs are held.
func (h *Hold) Image(name string) (Image, error) {
	return h.s.readImage(name, func(im *Image) {
		for _, p := range im.Platforms {
			h.Layers(p.Layers...)
		}
		im.blobs(func(d graph.Digest) { h.Blobs(d) })
	})
}
