package pack

import (
	"context"
	"io"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
)

// Exact reports whether Target.Exact can copy what was found as it is: it has documents, which archives of docker save lack.
func (s *Source) Exact() bool { return s.exact != nil }

// maxDepth bounds how deep indexes may be nested.
const maxDepth = 4

// maxCopied bounds how many documents one copy may have.
const maxCopied = 4096

// set lists everything that the source's documents name: manifests of any type with their blobs, attestations and inner
// indexes, each with the bytes and the digest that it has.
func (s *Source) set(ctx context.Context) (*archive.Set, error) {
	c := &copying{reading: *s.exact, set: &archive.Set{Top: s.found}, seen: map[graph.Digest]bool{}}
	if err := c.document(ctx, s.found, 0); err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "%s: %w", s.Name, err)
	}
	return c.set, nil
}

// copying is one exact copy.
type copying struct {
	reading
	set  *archive.Set
	seen map[graph.Digest]bool
}

// document adds a document to the set, after all that it names.
func (c *copying) document(ctx context.Context, d image.Descriptor, depth int) error {
	if c.seen[d.Digest] {
		return nil
	}
	if c.seen[d.Digest] = true; len(c.seen) > maxCopied || depth > maxDepth {
		return diag.Errorf(diag.Exhausted, "the index names more than %d documents, or is nested more than %d deep", maxCopied, maxDepth)
	}
	raw, err := c.reading.document(ctx, d)
	if err != nil {
		return err
	}
	doc, err := registry.Decode(raw, d.MediaType)
	if err != nil {
		return err
	}
	own := archive.Bytes(doc.MediaType, raw)
	if doc.Manifest != nil {
		x := archive.Image{Config: c.blob(doc.Manifest.Config), Manifest: own}
		for _, l := range doc.Manifest.Layers {
			x.Layers = append(x.Layers, c.blob(l))
		}
		c.set.Images = append(c.set.Images, x)
		return nil
	}
	for _, m := range doc.Index.Manifests {
		if err := c.document(ctx, m, depth+1); err != nil {
			return err
		}
	}
	if depth == 0 {
		c.set.Index = &own
		return nil
	}
	c.set.Images = append(c.set.Images, archive.Image{Manifest: own})
	return nil
}

// blob is a blob as it is, verified when it is copied.
func (c *copying) blob(d image.Descriptor) archive.Blob {
	return archive.Blob{Descriptor: d, Copy: func(ctx context.Context, w io.Writer) error {
		r, err := c.at.open(ctx, d)
		if err != nil {
			return err
		}
		defer r.Close()
		return verified(w, r, d.Digest)
	}}
}
