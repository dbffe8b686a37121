package source

import (
	"context"
	"io"
	"time"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/store"
)

// Chain is a stack of layers that lies somewhere as blobs, bottom first: what a cache elsewhere has of a step.
type Chain struct {
	Name    string // for messages
	DiffIDs []graph.Digest
	Blobs   []image.Descriptor
	Created []time.Time // zero = not known
	Place   string      // that they lie at; see provider
	// Open reads a blob; it is verified here.
	Open func(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error)
}

// FetchChain returns a chain's layers in the store, after downloading and unpacking what is missing, as for images.
func (im *Images) FetchChain(ctx context.Context, c Chain, vertex graph.Digest) ([]store.LayerID, error) {
	img := &Image{Name: c.Name, Config: &image.Config{RootFS: image.RootFS{DiffIDs: c.DiffIDs}}, Blobs: c.Blobs, created: c.Created, from: opener{c.Open, c.Place}, byDiff: im.env.Client.Owner}
	return im.Layers(ctx, img, 0, vertex)
}

// opener is a provider that is a function.
type opener struct {
	f  func(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error)
	at string
}

func (o opener) open(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error) {
	return o.f(ctx, d, offset)
}

func (o opener) place() string { return o.at }
