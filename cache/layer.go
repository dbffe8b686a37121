package cache

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/session"
)

// Layer is one layer of a result, as a blob somewhere.
type Layer struct {
	Desc    image.Descriptor // without annotations
	DiffID  graph.Digest
	Created time.Time // zero = not known
	// Open reads the blob. Whoever reads it verifies it.
	Open func(ctx context.Context, offset int64) (io.ReadCloser, error)
	// Exists asks whether the blob is still there.
	Exists func(context.Context) bool
}

// The annotations of layers in manifests.
const (
	diffIDKey  = "containerd.io/uncompressed"
	createdKey = "buildkit/createdat"
)

// described returns the layer's descriptor with annotations.
func (l *Layer) described() image.Descriptor {
	d := l.Desc
	if l.DiffID == "" { // of a cache mount
		return d
	}
	d.Annotations = map[string]string{diffIDKey: l.DiffID.String()}
	if !l.Created.IsZero() {
		d.Annotations[createdKey] = l.Created.UTC().Format(time.RFC3339Nano)
	}
	return d
}

// fromDescriptor makes a layer of a descriptor with annotations.
func fromDescriptor(d image.Descriptor) Layer {
	l := Layer{DiffID: digest.Digest(d.Annotations[diffIDKey]), Desc: image.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}}
	l.Created, _ = time.Parse(time.RFC3339Nano, d.Annotations[createdKey])
	if l.DiffID.Validate() != nil {
		l.DiffID = ""
	}
	return l
}

// Spec names a cache, as clients write it.
type Spec struct {
	Type  string
	Attrs map[string]string
}

// Env is what a build lets its caches use.
type Env struct {
	Registry *registry.Client // with the build's credentials
	Session  session.Session  // nil = no client
	Events   event.Sink
	Rules    Rules
	Client   string // who has named the caches
	// Owner means that the client can read the store anyway: what an earlier build found in a cache is used before the cache is
	// read, and even if it cannot be.
	Owner bool
}

// blobs is a place that blobs are read from.
type blobs interface {
	stat(ctx context.Context, d graph.Digest) (size int64, err error)
	open(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error)
}

// at lets a layer be read from a place.
func (l *Layer) at(b blobs) {
	desc := l.Desc
	l.Open = func(ctx context.Context, offset int64) (io.ReadCloser, error) { return b.open(ctx, desc, offset) }
	l.Exists = func(ctx context.Context) bool {
		_, err := b.stat(ctx, desc.Digest)
		return err == nil
	}
}
