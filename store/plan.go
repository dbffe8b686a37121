package store

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/strata-build/strata/graph"
)

// What a Usage is about.
const (
	UsageResult  = "result"  // the layers that this result was the first to need
	UsageLayer   = "layer"   // a layer that no result names
	UsageBlob    = "blob"    // a file of blobs/
	UsageMount   = "mount"   // a cache mount
	UsageImage   = "image"   // an image that no person has named, and the layers that only it needs
	UsagePartial = "partial" // the start of a blob whose transfer broke off
)

// Usage is one thing that takes space. The sizes of all add up to what the store takes; nothing is counted twice.
type Usage struct {
	Kind     string // UsageResult, ...
	Owner    string // see WithOwner
	ID       string // key, layer number, digest, or directory below mounts/ or ingest/
	Label    string // for people: the result's label, the cache mount's key
	Size     int64  // bytes on disk
	Created  time.Time
	LastUsed time.Time // Created if it was never used
	Shared   bool      // other results build on its layers
	InUse    bool      // cannot be deleted now
	Why      string    // why it is in use, for people: "image docker.io/library/debian:12"
}

// item is a Usage with what the collector needs.
type item struct {
	Usage
	clock  uint64 // of its last use
	key    string // its record; "" if it has none
	path   string // its file or directory, unless it is a result
	layers []LayerID
	tops   []LayerID
	blobs  []graph.Digest // that a result needs
}

// layerNode is a layer as the collector sees it.
type layerNode struct {
	info  LayerInfo
	refs  int    // results that name it
	root  string // why it has to stay; "" = it has not
	used  uint64 // clock of the last use of a result that names it
	at    time.Time
	image string // an image that no person has named and that needs it; "" = none
	owned bool   // counted in an item's Size
}

// plan is the collector's view of the store, valid while mu is held.
type plan struct {
	s      *Store
	layers map[LayerID]*layerNode
	blobs  map[graph.Digest]string // why a blob has to stay
	pins   map[graph.Digest]int    // results that need a blob
	uses   map[string]use          // by useKey
	images map[string]foundImage   // that no person has named
	items  []*item                 // least recently used first
	space
}

// foundImage is the record of an image.
type foundImage struct {
	Image
	seq uint64
}

// plan looks at everything. The caller holds mu.
func (s *Store) plan() (*plan, error) {
	p := &plan{s: s, layers: map[LayerID]*layerNode{}, blobs: map[graph.Digest]string{}, pins: map[graph.Digest]int{}, uses: map[string]use{}, images: map[string]foundImage{}}
	for _, step := range []func() error{p.readUses, p.readLayers, p.readRoots, p.readResults, p.readLoose, p.readBlobs, p.readMounts, p.readPartials} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	for _, it := range p.items {
		switch {
		case it.Kind == UsagePartial && it.InUse: // see Growing
			p.bytes += it.Size
		case it.Kind == UsageBlob || it.Kind == UsageMount || it.Kind == UsagePartial:
			p.add(it.Owner, it.Size)
		}
	}
	for _, n := range p.layers {
		p.add(n.info.Owner, n.info.Size)
	}
	slices.SortStableFunc(p.items, func(a, b *item) int {
		return cmp.Or(cmp.Compare(a.clock, b.clock), cmp.Compare(len(b.layers), len(a.layers)), cmp.Compare(a.key, b.key))
	})
	return p, nil
}

func (p *plan) readUses() error {
	err := p.s.each(kindUse, func(name string, _ uint64, b []byte, err error) {
		if u, derr := decodeUse(b); err == nil && derr == nil {
			p.uses[keyOf(kindUse, name)] = u
		}
	})
	p.s.touchMu.Lock()
	defer p.s.touchMu.Unlock()
	for k, u := range p.s.touched {
		p.uses[useKey(k)] = u
	}
	return err
}

// used fills in when an item was last used. Without a use, that is when it was written.
func (p *plan) used(it *item, seq uint64) {
	it.clock, it.LastUsed = seq, it.Created
	if u, ok := p.uses[useKey(it.key)]; ok && u.clock > seq {
		it.clock, it.LastUsed = u.clock, u.at
	}
}

func (p *plan) readLayers() error {
	return p.s.each(kindLayer, func(name string, seq uint64, b []byte, err error) {
		if len(name) != 8 {
			return
		}
		id := LayerID(binary.BigEndian.Uint64([]byte(name)))
		n := &layerNode{used: seq}
		if err == nil {
			n.info, _ = decodeLayer(id, b)
		}
		n.info.ID = id
		p.layers[id] = n
	})
}

func (p *plan) keep(id LayerID, why string) {
	if n := p.layers[id]; n != nil && n.root == "" {
		n.root = why
	}
}

func (p *plan) readRoots() error {
	h := &p.s.holds
	h.mu.Lock()
	for id := range h.layers {
		p.keep(id, "a build")
	}
	for d := range h.blobs {
		p.blobs[d] = "a build"
	}
	h.mu.Unlock()
	return p.s.each(kindImage, func(name string, seq uint64, b []byte, err error) {
		var im Image
		if err != nil || json.Unmarshal(b, &im) != nil {
			return
		}
		if dangling(name) || im.Pulled {
			p.images[name] = foundImage{im, seq}
			return
		}
		why := "image " + name
		for _, pl := range im.Platforms {
			for _, id := range pl.Layers {
				p.keep(id, why)
				// Without the blob a layer that was not made here could not be exported with its diff_id.
				if n := p.layers[id]; n != nil && n.info.Blob != "" && p.blobs[n.info.Blob] == "" {
					p.blobs[n.info.Blob] = why
				}
			}
		}
		im.blobs(func(d graph.Digest) {
			if p.blobs[d] == "" {
				p.blobs[d] = why
			}
		})
	})
}

func (p *plan) readResults() error {
	var results []*item
	err := p.s.each(kindResult, func(name string, seq uint64, b []byte, err error) {
		it := &item{Usage: Usage{Kind: UsageResult, ID: name}, key: keyOf(kindResult, name)}
		r, derr := decodeResult(b)
		if err != nil || derr != nil {
			it.Label = "a damaged record"
			results = append(results, it)
			return
		}
		it.Label, it.Created, it.Owner = r.Label, r.Created, r.Owner
		if len(r.Origins) > 0 {
			it.Label += " (from " + strings.Join(r.Origins, ", ") + ")"
		}
		p.used(it, seq)
		it.blobs = r.Blobs
		for _, d := range r.Blobs {
			p.pins[d]++
		}
		seen := map[LayerID]bool{}
		for _, stack := range r.Outputs {
			for _, id := range stack {
				if n := p.layers[id]; n != nil && !seen[id] {
					seen[id] = true
					n.refs++
					if it.clock > n.used {
						n.used, n.at = it.clock, it.LastUsed
					}
					it.layers = append(it.layers, id)
				}
			}
			if len(stack) > 0 {
				it.tops = append(it.tops, stack[len(stack)-1])
			}
		}
		results = append(results, it)
	})
	for name, im := range p.images {
		results = append(results, p.unnamed(name, im))
	}
	// The shortest stack that has a layer is the result that made it.
	slices.SortStableFunc(results, func(a, b *item) int { return cmp.Compare(len(a.layers), len(b.layers)) })
	for _, it := range results {
		p.own(it)
	}
	p.items = append(p.items, results...)
	return err
}

// unnamed is an image without a name, as if it were a result.
func (p *plan) unnamed(name string, im foundImage) *item {
	it := &item{Usage: Usage{Kind: UsageImage, ID: name, Label: "an image without a name", Created: im.Updated}, key: keyOf(kindImage, name)}
	if im.Pulled {
		it.Label = "pulled for a build: " + name
	}
	p.used(it, im.seq)
	pin := func(d graph.Digest) {
		if d != "" && !slices.Contains(it.blobs, d) {
			it.blobs = append(it.blobs, d)
			p.pins[d]++
		}
	}
	im.blobs(pin)
	for _, pl := range im.Platforms {
		for i, id := range pl.Layers {
			n := p.layers[id]
			if n == nil || slices.Contains(it.layers, id) {
				continue
			}
			n.refs++
			n.image = name
			pin(n.info.Blob)
			it.layers = append(it.layers, id)
			if i == len(pl.Layers)-1 {
				it.tops, it.Owner = append(it.tops, id), n.info.Owner
			}
		}
	}
	return it
}

// own counts layers that no item counts yet for this one, and raises its last use to that of the results that build on it.
func (p *plan) own(it *item) {
	for _, id := range it.layers {
		n := p.layers[id]
		if !n.owned {
			n.owned = true
			it.Size += n.info.Size
		}
	}
	for _, id := range it.tops {
		n := p.layers[id]
		if n == nil {
			continue
		}
		if n.used > it.clock {
			it.clock, it.LastUsed = n.used, n.at
		}
		it.Shared = it.Shared || n.refs > 1
		if n.root != "" {
			it.Why = n.root
			it.InUse = it.InUse || n.root == "a build"
		}
	}
}

// readLoose lists the layers that no result names.
func (p *plan) readLoose() error {
	for id, n := range p.layers {
		if n.refs > 0 {
			continue
		}
		it := &item{
			Usage: Usage{Kind: UsageLayer, ID: id.String(), Owner: n.info.Owner, Size: n.info.Size, Created: n.info.Created, InUse: n.root != "", Why: n.root},
			key:   layerKey(id), layers: []LayerID{id},
		}
		p.used(it, n.used)
		p.items = append(p.items, it)
	}
	return nil
}

func (p *plan) readBlobs() error {
	return p.s.each(kindBlob, func(name string, seq uint64, b []byte, err error) {
		d := graph.Digest(name)
		if d.Validate() != nil {
			return
		}
		size, owner, _ := decodeBlob(b)
		it := &item{
			Usage: Usage{Kind: UsageBlob, ID: name, Owner: owner, Size: size, Why: p.blobs[d], InUse: p.blobs[d] != ""},
			key:   keyOf(kindBlob, name), path: p.s.blobPath(d),
		}
		if fi, err := os.Lstat(it.path); err == nil {
			it.Created = fi.ModTime()
		}
		p.used(it, seq)
		p.items = append(p.items, it)
	})
}

// readMounts lists what is below mounts/, whether there is a record or not.
func (p *plan) readMounts() error {
	entries, err := os.ReadDir(p.s.path("mounts"))
	if err != nil {
		return err
	}
	p.s.mounts.mu.Lock()
	defer p.s.mounts.mu.Unlock()
	for _, e := range entries {
		it := &item{Usage: Usage{Kind: UsageMount, ID: e.Name()}, key: keyOf(kindMount, e.Name()), path: p.s.path("mounts", e.Name())}
		var m mountRecord
		if b, err := p.s.value(it.key); err == nil && b != nil && json.Unmarshal(b, &m) == nil {
			it.Label, it.Size, it.Created, it.Owner = m.Key, m.Size, m.Created, mountOwner(m.Key)
		}
		if l := p.s.mounts.leases[e.Name()]; l != nil {
			it.InUse, it.Why = true, "a build"
		}
		p.used(it, 0)
		p.items = append(p.items, it)
	}
	return nil
}

func (p *plan) readPartials() error {
	entries, err := os.ReadDir(p.s.path("ingest"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			continue
		}
		it := &item{Usage: Usage{Kind: UsagePartial, ID: e.Name(), Size: fi.Size(), Created: fi.ModTime(), LastUsed: fi.ModTime()}, path: p.s.path("ingest", e.Name())}
		if strings.HasPrefix(e.Name(), unnamed) || p.s.writers.active(e.Name()) {
			it.InUse, it.Why = true, "a transfer"
		}
		it.Owner = p.s.writers.ownerOf(e.Name())
		p.items = append(p.items, it)
	}
	return nil
}

// Usage lists what takes space, least recently used first.
func (s *Store) Usage(ctx context.Context) ([]Usage, error) {
	s.measureMounts(ctx, true)
	if err := ctx.Err(); err != nil {
		return nil, s.fail("cannot list what takes space", err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	p, err := s.plan()
	if err != nil {
		return nil, s.fail("cannot list what takes space", err)
	}
	all := make([]Usage, len(p.items))
	for i, it := range p.items {
		all[i] = it.Usage
	}
	return all, nil
}
