package op

import (
	"context"
	"io"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/store"
)

// reused finds a layer that the build did not make.
func (s *sealing) reused(p *part, d graph.Digest) error {
	for i := range s.known {
		k := &s.known[i]
		if k.Digest != d && k.DiffID != d {
			continue
		}
		p.known = k
		p.info = store.LayerInfo{DiffID: k.DiffID}
		if k.ID != 0 {
			if info, err := s.Store.Layer(k.ID); err == nil {
				p.info = info
			}
		}
		if k.Digest != k.DiffID {
			p.blob = image.Descriptor{MediaType: k.MediaType, Digest: k.Digest, Size: k.Size}
		}
		if p.decl.Name == "" && p.decl.Key == "" {
			p.decl.Name, p.decl.Key = k.Name, k.Key
		}
		s.findShared(p)
		return nil
	}
	// A step that ran with the input of an earlier build may name what only that build knew.
	diff := d
	if of, err := s.Store.Memo(s.verified(d)); err == nil {
		diff = of
	}
	for _, v := range append([]image.Descriptor{{}}, s.Store.Variants(diff)...) {
		p.info.DiffID, p.blob = diff, v
		if (diff == d || v.Digest == d) && s.findShared(p) {
			return nil
		}
	}
	err := diag.Errorf(diag.NotFound, "%s is in neither output/blobs nor input (%d blobs present)", d, len(s.dir.blobs()))
	return &diag.Error{Kind: diag.NotFound, Msg: err.Msg, Err: &Gone{d}, Hint: "name a blob by the sha256 of its bytes, or a layer of history.json by its digest or diff_id"}
}

// findShared looks for the part's tar among the layers that can lie on anything.
func (s *sealing) findShared(p *part) bool {
	id, err := s.hold.Chain(s.byItself(p.info.DiffID, p.blob.Digest))
	if err != nil {
		return false
	}
	info, err := s.Store.Layer(id)
	if err != nil || info.DiffID != p.info.DiffID {
		return false
	}
	p.id, p.info = id, info
	return true
}

// unpackKnown unpacks a layer once more, on other layers than before: from its blob, or from its files.
func (s *sealing) unpackKnown(ctx context.Context, p *part) error {
	want := p.info.DiffID
	r, err := s.openKnown(ctx, p)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := s.unpack(ctx, p, r, false); err != nil {
		return err
	}
	if p.info.DiffID != want {
		return diag.Errorf(diag.Conflict, "the layer is %s, not %s as recorded", p.info.DiffID, want).WithHint("leave it out of the next build's input with --previous=none")
	}
	if p.blob.Digest == "" {
		p.blob = image.Descriptor{} // made of the files: there is no blob to keep
	}
	return nil
}

func (s *sealing) openKnown(ctx context.Context, p *part) (io.ReadCloser, error) {
	if p.blob.Digest != "" {
		if _, ok := s.Store.HasBlob(p.blob.Digest); !ok && p.known != nil && p.known.Fetch != nil {
			if err := s.fetch(ctx, p); err != nil {
				return nil, err
			}
		}
		if b, err := s.Store.OpenBlob(ctx, p.blob.Digest); err == nil {
			return readCloser{b.Reader(), b}, nil
		}
	}
	id := p.id
	if p.known != nil && p.known.ID != 0 {
		id = p.known.ID
	}
	if id == 0 {
		return nil, &diag.Error{Kind: diag.NotFound, Msg: "the layer " + string(p.info.DiffID) + " is known, but its bytes are nowhere any more", Err: &Gone{p.info.DiffID}}
	}
	r, w := io.Pipe()
	go func() {
		_, err := layer.WriteTar(ctx, w, s.Store.LayerDir(id), layer.TarOptions{})
		w.CloseWithError(err)
	}()
	p.blob = image.Descriptor{}
	return r, nil
}

type readCloser struct {
	io.Reader
	io.Closer
}

// fetch brings a blob into the store.
func (s *sealing) fetch(ctx context.Context, p *part) error {
	s.hold.Blobs(p.blob.Digest)
	return registry.Again(ctx, func() error { return s.fetchOnce(ctx, p) })
}

func (s *sealing) fetchOnce(ctx context.Context, p *part) error {
	r, err := p.known.Fetch(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := s.hold.NewBlob(ctx, "")
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := io.Copy(w, contextReader{ctx, r}); err != nil {
		return err
	}
	got, _, err := w.Commit(ctx)
	if err == nil && got != p.blob.Digest {
		err = diag.Errorf(diag.Invalid, "%s hashes to %s", p.blob.Digest, got)
	}
	return err
}
