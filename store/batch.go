package store

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// Batch collects the changes of one Update. Its methods only note what is wanted; what is wrong with it is Update's error.
type Batch struct {
	s       *Store
	changes []pending
	drafts  []*Draft
	named   []LayerID // by results and images: they have to exist
	blobs   []graph.Digest
	err     error
}

// pending is a change before it is sealed. merge, if set, makes the payload from the old one.
type pending struct {
	key     string
	payload []byte
	drop    bool
	merge   func(old []byte) []byte
}

func (b *Batch) put(k kind, name string, payload []byte) {
	b.changes = append(b.changes, pending{key: keyOf(k, name), payload: payload})
}

func (b *Batch) drop(key string) { b.changes = append(b.changes, pending{key: key, drop: true}) }

func (b *Batch) fail(format string, args ...any) {
	if b.err == nil {
		b.err = diag.Errorf(diag.Internal, format, args...)
	}
}

// Layer commits a draft: it becomes the layer that info describes. ID is the draft's; Created is now if it is zero.
func (b *Batch) Layer(d *Draft, info LayerInfo) {
	info.ID, info.Owner = d.ID, d.owner
	if d.s != b.s {
		b.fail("the draft of layer %d is of another store", d.ID)
	}
	if info.Created.IsZero() {
		info.Created = time.Now()
	}
	b.drafts = append(b.drafts, d)
	b.changes = append(b.changes, pending{key: layerKey(d.ID), payload: encodeLayer(info)})
}

// SetLayer replaces what is known of a committed layer, such as its diff_id once that has been computed.
func (b *Batch) SetLayer(info LayerInfo) {
	b.named = append(b.named, info.ID)
	b.changes = append(b.changes, pending{key: layerKey(info.ID), payload: encodeLayer(info)})
}

// Chain records the top layer of an unpacked image by its chain id.
func (b *Batch) Chain(chainID graph.Digest, id LayerID) {
	b.named = append(b.named, id)
	b.put(kindChain, string(chainID), encodeUint(uint64(id)))
}

// Result records what the vertex with a key made. Created is now if it is zero.
func (b *Batch) Result(key graph.Digest, r Result) {
	if r.Created.IsZero() {
		r.Created = time.Now()
	}
	for _, stack := range r.Outputs {
		b.named = append(b.named, stack...)
	}
	b.put(kindResult, string(key), encodeResult(r))
}

// DropResult forgets a result. Its layers stay until they are collected.
func (b *Batch) DropResult(key graph.Digest) {
	b.drop(keyOf(kindResult, string(key)))
	b.drop(useKey(keyOf(kindResult, string(key))))
}

// Memo records the key of the vertex with a definition's digest.
func (b *Batch) Memo(def, key graph.Digest) { b.put(kindMemo, string(def), []byte(key)) }

// Preimage records what was hashed into a key, so that a miss can be explained.
func (b *Batch) Preimage(key graph.Digest, what []byte) { b.put(kindPreimage, string(key), what) }

// Image sets a named image. Its layers and blobs are kept until the image is deleted or replaced.
func (b *Batch) Image(name string, im Image) {
	im.Name = name
	for _, p := range im.Platforms {
		b.named = append(b.named, p.Layers...)
	}
	im.blobs(func(d graph.Digest) { b.blobs = append(b.blobs, d) })
	v, err := json.Marshal(im)
	if err != nil {
		b.fail("image %s has no JSON: %w", name, err)
	}
	b.put(kindImage, name, v)
	b.drop(keyOf(kindLost, name))
}

// DeleteImage forgets a name.
func (b *Batch) DeleteImage(name string) { b.drop(keyOf(kindImage, name)) }

// Variant records a form in which the layer with a diff_id is known.
func (b *Batch) Variant(diffID graph.Digest, d image.Descriptor) {
	b.changes = append(b.changes, pending{key: keyOf(kindVariant, string(diffID)), merge: func(old []byte) []byte { return addVariant(old, d) }})
}

// Update makes the changes that f asks for, all or none. When it returns they survive the death of the process; within
// about two seconds they survive a power cut. f is called once, in the caller's goroutine, and may read the store. Errors:
// diag.Exhausted if there is no room, diag.Unavailable if the disk fails; the state is then as before.
func (s *Store) Update(ctx context.Context, f func(*Batch) error) error {
	if err := ctx.Err(); err != nil {
		return s.fail("cannot update the store", err)
	}
	b := &Batch{s: s}
	if err := f(b); err != nil {
		return err
	}
	if b.err != nil {
		return b.err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commit(b)
}

// commit does the work of Update. The caller holds mu.
func (s *Store) commit(b *Batch) error {
	if s.closed {
		return s.fail("cannot update the store", ErrClosed)
	}
	for _, d := range b.drafts {
		begun, ok := s.drafts[d.ID]
		if !ok {
			return diag.Errorf(diag.Internal, "layer %d is not a draft any more", d.ID)
		}
		if err := s.begunBefore(begun.epoch); err != nil {
			return err
		}
	}
	for _, id := range b.named {
		if s.failures.dropped[id] {
			return s.diskError()
		}
		if !s.present(id) && !b.commits(id) {
			return diag.Errorf(diag.Internal, "layer %d is named but does not exist", id)
		}
	}
	for _, d := range b.blobs {
		if _, ok := s.blobSize(d); !ok {
			return diag.Errorf(diag.Internal, "blob %s is named but does not exist", d)
		}
	}
	if err := s.unname(b); err != nil {
		return err
	}
	seq := s.clock.Add(1)
	changes, grown := s.seal(b, seq)
	if len(changes) == 0 {
		return nil
	}
	if err := s.wal.append(seq, changes); err != nil {
		return s.fail("cannot write to the log", err)
	}
	for _, c := range changes {
		s.cur.set(c)
		if kind(c.key[0]) == kindBlob && c.val != nil {
			s.cur.made[c.key] = true
		}
	}
	for _, d := range b.drafts {
		s.cur.made[layerKey(d.ID)] = true
		delete(s.drafts, d.ID)
		s.presence.set(d.ID, layerThere)
	}
	if s.cur.hard {
		kick(s.wake)
	}
	s.grew(grown)
	return nil
}

// unname keeps images whose name is given to another one, under their digest. The caller holds mu.
func (s *Store) unname(b *Batch) error {
	names := map[string]graph.Digest{} // that the batch gives
	for _, p := range b.changes {
		if kind(p.key[0]) == kindImage && !p.drop {
			var im Image
			_ = json.Unmarshal(p.payload, &im)
			names[p.key[1:]] = im.ID()
		}
	}
	for name, id := range names {
		old, err := s.image(name)
		was := old.ID()
		if err != nil || was == id || was == "" || old.Pulled || dangling(name) || names[string(was)] != "" {
			continue // it is new, the same, or not whole
		}
		named := false
		err = s.each(kindImage, func(other string, _ uint64, payload []byte, err error) {
			var im Image
			if _, changes := names[other]; !changes && err == nil && json.Unmarshal(payload, &im) == nil {
				named = named || im.ID() == was
			}
		})
		if err != nil {
			return err
		}
		if !named {
			b.Image(string(was), old)
			s.touch(keyOf(kindImage, string(was))) // its age counts from now
		}
	}
	return nil
}

func (b *Batch) commits(id LayerID) bool {
	for _, d := range b.drafts {
		if d.ID == id {
			return true
		}
	}
	return false
}

// seal turns a batch into stored form, leaves out what changes nothing, and counts the bytes that it adds to the store.
func (s *Store) seal(b *Batch, seq uint64) (changes []change, grown space) {
	made := make(map[string][]byte, len(b.changes)) // by earlier changes of the same batch
	for _, p := range b.changes {
		// A record that cannot be read is overwritten like one that is not there.
		old, ok := made[p.key]
		var err error
		if !ok {
			old, err = s.value(p.key)
		}
		if p.drop {
			if old != nil || err != nil {
				changes = append(changes, change{key: p.key})
				made[p.key] = nil
				grown.less(p.key, old)
			}
			continue
		}
		payload := p.payload
		if p.merge != nil {
			payload = p.merge(old)
		}
		if old != nil && bytes.Equal(old, payload) {
			continue
		}
		changes = append(changes, change{p.key, seal(p.key, seq, payload)})
		made[p.key] = payload
		grown.less(p.key, old)
		grown.more(p.key, payload)
	}
	return changes, grown
}
