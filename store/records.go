package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// generation is a set of changes that are in the log but not yet in the database. Nil values are deletions.
type generation struct {
	vals map[string][]byte
	made map[string]bool // the keys of layers and blobs whose files were made since the last flush
	hard bool            // there is more than uses
}

func newGeneration() *generation {
	return &generation{vals: map[string][]byte{}, made: map[string]bool{}}
}

func (g *generation) set(c change) {
	g.vals[c.key] = c.val
	g.hard = g.hard || kind(c.key[0]) != kindUse
}

func layerOf(key string) (LayerID, bool) {
	if len(key) != 9 || kind(key[0]) != kindLayer {
		return 0, false
	}
	return LayerID(binary.BigEndian.Uint64([]byte(key[1:]))), true
}

// sealed returns the newest stored form of a record, nil if there is none. The caller holds mu.
func (s *Store) sealed(key string) ([]byte, error) {
	if v, ok := s.cur.vals[key]; ok {
		return v, nil
	}
	if s.frozen != nil {
		if v, ok := s.frozen.vals[key]; ok {
			return v, nil
		}
	}
	v, err := s.db.get(key)
	if err != nil {
		s.damaged(err)
	}
	return v, err
}

// value returns a record's payload, nil if there is none. The caller holds mu.
func (s *Store) value(key string) ([]byte, error) {
	v, err := s.sealed(key)
	if err != nil || v == nil {
		return nil, err
	}
	p, _, err := unseal(key, v)
	return p, err
}

// each calls f for every record of a kind, in the order of keys, with its payload, or with the reason why there is none.
// The caller holds mu.
func (s *Store) each(k kind, f func(name string, seq uint64, payload []byte, err error)) error {
	all := map[string][]byte{}
	err := s.db.each(string(rune(k)), func(key string, val []byte) { all[key] = val })
	if err != nil {
		s.damaged(err)
	}
	for _, g := range []*generation{s.frozen, s.cur} {
		if g == nil {
			continue
		}
		for key, v := range g.vals {
			if kind(key[0]) == k {
				all[key] = v
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if all[key] == nil {
			continue
		}
		p, seq, uerr := unseal(key, all[key])
		f(key[1:], seq, p, uerr)
	}
	return err
}

// lookup reads a record for a caller that wants a reason for a miss.
func (s *Store) lookup(key string) ([]byte, error) {
	if s.closed {
		return nil, s.fail("cannot read a record", ErrClosed)
	}
	p, err := s.value(key)
	k := kind(key[0])
	switch {
	case err != nil:
		return nil, miss("the record of this %s cannot be used: %w", k, err)
	case p == nil:
		return nil, miss("there is no such %s", k)
	}
	return p, nil
}

// touch remembers that a record was used. It is written along with the next flush.
func (s *Store) touch(key string) {
	u := use{clock: s.clock.Add(1), at: time.Now()}
	s.touchMu.Lock()
	s.touched[key] = u
	s.touchMu.Unlock()
}

// Layer returns what is known of a committed layer.
func (s *Store) Layer(id LayerID) (LayerInfo, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.failures.dropped[id] {
		return LayerInfo{}, s.diskError()
	}
	b, err := s.lookup(layerKey(id))
	if err != nil {
		return LayerInfo{}, err
	}
	l, err := decodeLayer(id, b)
	if err != nil {
		return l, miss("the record of layer %d cannot be used: %w", id, err)
	}
	if !s.present(id) {
		return l, miss("layer %d has lost its directory", id)
	}
	return l, nil
}

// Result returns the result of a key, whose layers all exist. What is returned may be collected before it is used:
// builds use [Hold.Result].
func (s *Store) Result(key graph.Digest) (Result, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.result(key)
}

func (s *Store) result(key graph.Digest) (Result, error) {
	k := keyOf(kindResult, string(key))
	b, err := s.lookup(k)
	if err != nil {
		return Result{}, err
	}
	r, err := decodeResult(b)
	if err != nil {
		return Result{}, miss("the record of this result cannot be used: %w", err)
	}
	for _, stack := range r.Outputs {
		if id, ok := s.allPresent(stack); !ok {
			return Result{}, miss("the result names layer %d, which is gone", id)
		}
	}
	for _, d := range r.Blobs {
		if _, ok := s.blobSize(d); !ok {
			return Result{}, miss("the result needs blob %s, which is gone", d)
		}
	}
	s.touch(k)
	return r, nil
}

// Memo returns the key that the vertex with a definition's digest had when its inputs were last known.
func (s *Store) Memo(def graph.Digest) (graph.Digest, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	b, err := s.lookup(keyOf(kindMemo, string(def)))
	return graph.Digest(b), err
}

// Preimage returns what was hashed into a key.
func (s *Store) Preimage(key graph.Digest) ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.lookup(keyOf(kindPreimage, string(key)))
}

// Chain returns the top layer of an unpacked image, by its chain id (OCI image-spec, config.md).
func (s *Store) Chain(chainID graph.Digest) (LayerID, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.chain(chainID)
}

func (s *Store) chain(chainID graph.Digest) (LayerID, error) {
	b, err := s.lookup(keyOf(kindChain, string(chainID)))
	if err != nil {
		return 0, err
	}
	v, err := decodeUint(b)
	if err != nil {
		return 0, miss("the record of this chain cannot be used: %w", err)
	}
	id := LayerID(v)
	if !s.present(id) {
		return 0, miss("the chain names layer %d, which is gone", id)
	}
	s.touch(layerKey(id))
	return id, nil
}

// Image returns an image by its name.
func (s *Store) Image(name string) (Image, error) {
	return s.readImage(name, func(*Image) {})
}

// readImage reads an image. then is called with one that is there, before the collector can see that it is not held.
func (s *Store) readImage(name string, then func(*Image)) (Image, error) {
	read := func() (Image, error) {
		s.mu.RLock()
		defer s.mu.RUnlock()
		im, err := s.image(name)
		if err == nil {
			then(&im)
			if im.Pulled || im.Dangling() {
				s.touch(keyOf(kindImage, name))
			}
		}
		return im, err
	}
	im, err := read()
	if err != nil && s.saved(name) {
		return read()
	}
	return im, err
}

func (s *Store) image(name string) (Image, error) {
	b, err := s.lookup(keyOf(kindImage, name))
	if err != nil {
		return Image{}, err
	}
	var im Image
	if err := json.Unmarshal(b, &im); err != nil {
		return Image{}, miss("the record of this image cannot be used: %w", err)
	}
	return im, s.imageWhole(&im)
}

// imageWhole says what an image lacks.
func (s *Store) imageWhole(im *Image) error {
	for _, p := range im.Platforms {
		if id, ok := s.allPresent(p.Layers); !ok {
			return miss("image %s names layer %d, which is gone", im.Name, id)
		}
	}
	var gone graph.Digest
	im.blobs(func(d graph.Digest) {
		if _, ok := s.blobSize(d); !ok && gone == "" {
			gone = d
		}
	})
	if gone != "" {
		return miss("image %s names blob %s, which is gone", im.Name, gone)
	}
	return nil
}

// Images returns all images that are whole, in the order of their names.
func (s *Store) Images() ([]Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []Image
	err := s.each(kindImage, func(name string, _ uint64, b []byte, err error) {
		var im Image
		if err == nil && json.Unmarshal(b, &im) == nil && s.imageWhole(&im) == nil {
			all = append(all, im)
		}
	})
	if err != nil {
		return all, s.fail("cannot list the images", err)
	}
	return all, nil
}

// Variants returns the forms in which a layer is known, by the digest of its uncompressed tar: compressed blobs, some of
// which the store may have (HasBlob) and others only a registry.
func (s *Store) Variants(diffID graph.Digest) []image.Descriptor {
	s.mu.RLock()
	defer s.mu.RUnlock()
	b, err := s.lookup(keyOf(kindVariant, string(diffID)))
	if err != nil {
		return nil
	}
	return decodeVariants(b)
}

func decodeVariants(b []byte) []image.Descriptor {
	var ds []image.Descriptor
	if json.Unmarshal(b, &ds) != nil {
		return nil
	}
	return ds
}

// maxVariants bounds how many forms of one layer are remembered; the oldest is forgotten first.
const maxVariants = 16

func addVariant(old []byte, d image.Descriptor) []byte {
	add := graph.Canonical(d)
	ds := decodeVariants(old)
	if i := slices.IndexFunc(ds, func(o image.Descriptor) bool { return o.Digest == d.Digest }); i >= 0 {
		if bytes.Equal(graph.Canonical(ds[i]), add) {
			return old
		}
		ds = slices.Delete(ds, i, i+1)
	}
	ds = append(ds, d)
	return graph.Canonical(ds[max(0, len(ds)-maxVariants):])
}

// presence remembers which layers have a record and a directory, so that a result with a stack of hundreds costs no
// system calls after the first. Layer numbers are dense: a byte each.
type presence struct {
	mu    sync.Mutex
	state []byte
}

const (
	layerUnknown = iota
	layerThere
	layerGone
)

// present reports whether a layer can be used. The caller holds mu.
func (s *Store) present(id LayerID) bool {
	_, ok := s.allPresent([]LayerID{id})
	return ok
}

// allPresent returns the first layer of a stack that cannot be used.
func (s *Store) allPresent(stack []LayerID) (LayerID, bool) {
	p := &s.presence
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range stack {
		if uint64(id) < uint64(len(p.state)) && p.state[id] == layerThere {
			continue
		}
		if id == 0 || id >= s.next {
			return id, false
		}
		if uint64(id) >= uint64(len(p.state)) {
			p.state = slices.Grow(p.state, int(s.next)-len(p.state))[:s.next]
		}
		if p.state[id] == layerUnknown {
			p.state[id] = layerGone
			if v, err := s.value(layerKey(id)); err == nil && v != nil {
				if unix.Faccessat(int(s.dir.Fd()), "snapshots/"+id.String()+"/fs", unix.F_OK, 0) == nil {
					p.state[id] = layerThere
				}
			}
		}
		if p.state[id] != layerThere {
			return id, false
		}
	}
	return 0, true
}

// set overrides what is known of a layer, if anything is.
func (p *presence) set(id LayerID, state byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if uint64(id) < uint64(len(p.state)) {
		p.state[id] = state
	}
}

// clear forgets everything.
func (p *presence) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = nil
}
