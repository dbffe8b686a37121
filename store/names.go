package store

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/strictjson"
)

// The names of images that a person gave are in the root's index.json too, with the records of the image and of its layers.
// When the database is lost, an image gets its name back if its blobs and its layers still have the digests of these records.
// The names of the others are recorded as lost, and Check reports them until somebody gives the name again.

// recordAnnotation is a savedImage in index.json: JSON, sealed as a record under the image's name, in base64.
const recordAnnotation = "dev.strata.image"

// savedImage is what is needed to use an image again.
type savedImage struct {
	Image  Image
	Layers map[LayerID][]byte // records of its layers
}

// listedImage is an entry of index.json and the record that it was made of.
type listedImage struct {
	record []byte
	entry  image.Descriptor
}

// indexUnknown reports whether index.json lacks the names: it is gone, or as empty as layout makes it.
func (s *Store) indexUnknown() bool {
	fi, err := os.Stat(s.path("index.json"))
	return err != nil || fi.Size() <= int64(len(emptyIndex))
}

// saveNames writes index.json. A flush calls it after it has changed images. It is not synced: the next flush does that, and
// only who loses the database as well needs it.
func (s *Store) saveNames() {
	idx := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []image.Descriptor{}}
	idx.SchemaVersion = 2
	s.mu.RLock()
	listed := map[string]listedImage{}
	err := s.each(kindImage, func(name string, _ uint64, b []byte, err error) {
		l := s.listed[name]
		if err != nil || dangling(name) {
			return
		}
		if !bytes.Equal(l.record, b) {
			var ok bool
			if l, ok = s.list(name, b); !ok {
				return
			}
		}
		listed[name] = l
		idx.Manifests = append(idx.Manifests, l.entry)
	})
	s.mu.RUnlock()
	s.listed = listed
	var b []byte
	if err == nil {
		b, err = json.Marshal(idx)
	}
	if err == nil {
		err = os.WriteFile(s.path("tmp", "index.json"), b, 0o644)
	}
	if err == nil {
		err = os.Rename(s.path("tmp", "index.json"), s.path("index.json"))
	}
	if err != nil {
		s.log.Warn("cannot write the names of images to index.json", "cause", err)
	}
}

// list makes the entry of an image, unless it was only pulled for a build. The caller holds mu.
func (s *Store) list(name string, record []byte) (l listedImage, ok bool) {
	x := savedImage{Layers: map[LayerID][]byte{}}
	if json.Unmarshal(record, &x.Image) != nil || x.Image.Pulled {
		return l, false
	}
	if l.entry, ok = s.descriptorOf(&x.Image); !ok {
		return l, false
	}
	for _, p := range x.Image.Platforms {
		for _, id := range p.Layers {
			if b, err := s.value(layerKey(id)); err == nil && b != nil {
				x.Layers[id] = b
			}
		}
	}
	b, err := json.Marshal(x)
	if err != nil {
		return l, false
	}
	l.record = record
	l.entry.Annotations = map[string]string{
		ocispec.AnnotationRefName: name,
		recordAnnotation:          base64.StdEncoding.EncodeToString(seal(keyOf(kindImage, name), 0, b)),
	}
	return l, true
}

// descriptorOf returns the descriptor that index.json has of an image: of its index or manifest, and for an image that has
// neither as a blob, of its configuration. The caller holds mu.
func (s *Store) descriptorOf(im *Image) (image.Descriptor, bool) {
	if im.Index != nil {
		return *im.Index, true
	}
	if len(im.Platforms) == 0 {
		return image.Descriptor{}, false
	}
	p := im.Platforms[0]
	if p.Manifest != nil {
		return *p.Manifest, true
	}
	size, _ := s.blobSize(p.Config)
	return image.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: p.Config, Size: size}, p.Config != ""
}

// findNames gives images the names of index.json that have no record, and records those as lost whose images are not
// complete. Open calls it when the database is new or was made of what could be read of a damaged one.
func (s *Store) findNames() error {
	b, err := os.ReadFile(s.path("index.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return s.fail("cannot read the names of images", err)
	}
	var idx ocispec.Index
	if err := strictjson.Unmarshal(b, &idx); err != nil {
		s.log.Warn("the names of images in index.json cannot be read", "cause", err)
		return nil
	}
	lost := &Batch{s: s}
	for _, d := range idx.Manifests {
		name := d.Annotations[ocispec.AnnotationRefName]
		if name == "" {
			continue
		}
		s.mu.RLock()
		old, err := s.value(keyOf(kindImage, name))
		s.mu.RUnlock()
		if err == nil && old != nil {
			continue
		}
		err = s.restore(s.ctx, name, d.Annotations[recordAnnotation])
		if cause := context.Cause(s.ctx); cause != nil {
			return cause
		}
		if err == nil {
			s.log.Warn("an image that was lost with the database was found again", "image", name)
			continue
		}
		lost.put(kindLost, name, []byte(err.Error()))
		s.log.Error("an image was lost with the database", "image", name, "cause", err, "fix", "build or pull it again")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.namesChanged = s.namesChanged || len(lost.changes) > 0
	return s.commit(lost)
}

// restore gives an image its name back if all that it consists of still has the digests of its records.
func (s *Store) restore(ctx context.Context, name, saved string) error {
	var x savedImage
	b, err := base64.StdEncoding.DecodeString(saved)
	if err == nil {
		b, _, err = unseal(keyOf(kindImage, name), b)
	}
	if err == nil {
		err = strictjson.Unmarshal(b, &x)
	}
	if err != nil {
		return diag.Errorf(diag.Conflict, "index.json does not say what it consists of: %w", err)
	}
	var gone graph.Digest
	x.Image.blobs(func(d graph.Digest) {
		if _, ok := s.HasBlob(d); !ok && gone == "" {
			gone = d
		}
	})
	if gone != "" {
		return diag.Errorf(diag.NotFound, "blob %s is not in the store", gone)
	}
	layers := &Batch{s: s}
	for i := range x.Image.Platforms {
		p := &x.Image.Platforms[i]
		for _, id := range p.Layers {
			err = errors.Join(err, s.restoreLayer(ctx, layers, id, x.Layers[id]))
		}
		if err != nil && len(p.DiffIDs) > 0 && len(p.Blobs) == len(p.DiffIDs) {
			p.Layers, err = nil, nil // they are unpacked from the blobs again
		}
		if err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.commit(layers); err != nil {
		return err
	}
	s.presence.clear()
	im := &Batch{s: s}
	im.Image(name, x.Image)
	return s.commit(im)
}

// restoreLayer puts the record of a layer into a batch if its files still have the digest that the record says.
func (s *Store) restoreLayer(ctx context.Context, b *Batch, id LayerID, record []byte) error {
	s.mu.RLock()
	there := s.present(id)
	s.mu.RUnlock()
	if there {
		return nil
	}
	l, err := decodeLayer(id, record)
	if err != nil || l.DiffID == "" || s.opt.DiffID == nil || s.opt.Differs == nil {
		return diag.Errorf(diag.NotFound, "the digest of layer %d was in the database only", id)
	}
	if l.Blob != "" {
		if _, ok := s.HasBlob(l.Blob); !ok {
			return diag.Errorf(diag.NotFound, "blob %s, with which layer %d is compared, is not in the store", l.Blob, id)
		}
	}
	c := &checker{s: s, opt: CheckOptions{Full: true, DiffID: s.opt.DiffID, Differs: s.opt.Differs}}
	what, err := c.layer(ctx, l)
	if err == nil && what != "" {
		err = diag.Errorf(diag.Conflict, "layer %d cannot be used: %s", id, what)
	}
	if err != nil {
		return err
	}
	b.changes = append(b.changes, pending{key: layerKey(id), payload: record})
	s.mu.Lock()
	s.next = max(s.next, id+1)
	s.mu.Unlock()
	return nil
}
