package export

import (
	"context"
	"io"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/image"
)

// set describes a packed set for the writers of archives, whose contents come from the packer.
func (e *Env) set(p *packed, names []string) archive.Set {
	s := archive.Set{Top: p.top, Names: names}
	for _, im := range p.images {
		s.Images = append(s.Images, archive.Image{
			Platform: im.platform, Config: e.archived(im.config), Layers: e.archivedAll(im.layers), Manifest: e.archived(im.manifest),
			Proofs: e.archivedAll(im.proofs), Proof: e.archivedOne(im.proof),
		})
	}
	s.Index = e.archivedOne(p.index)
	return s
}

func (e *Env) archived(p piece) archive.Blob {
	b := archive.Blob{Descriptor: p.Descriptor, Data: p.data}
	if p.layer != nil {
		b.Copy = func(ctx context.Context, w io.Writer) error { return e.write(ctx, w, p) }
	}
	return b
}

func (e *Env) archivedOne(p *piece) *archive.Blob {
	if p == nil {
		return nil
	}
	b := e.archived(*p)
	return &b
}

func (e *Env) archivedAll(pieces []piece) []archive.Blob {
	out := make([]archive.Blob, len(pieces))
	for i, p := range pieces {
		out[i] = e.archived(p)
	}
	return out
}

func bytesPiece(mediaType string, b []byte) piece {
	x := archive.Bytes(mediaType, b)
	return piece{Descriptor: image.Descriptor(x.Descriptor), data: b}
}
