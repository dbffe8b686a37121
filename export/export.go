package export

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/span"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// Set is what a build made: one image per platform, in the order that the user asked for. An exporter reads it only.
type Set struct {
	Images []Image
	Multi  bool              // an index or one directory per platform is wanted even for a single image
	Name   string            // the frontend's idea of a name, for name=*
	Index  *image.Descriptor // an existing index of exactly these images

	annotations []Annotation // of the frontend
	hold        *store.Hold  // of an image of the store; nil = a build's
}

// Image is the built result for one platform.
type Image struct {
	Platform    graph.Platform
	Config      *image.Config // nil: an empty one for the platform
	Tree        tree.Tree
	Base        *image.Base     // what it is built on, for mounts between repositories
	BaseLayers  int             // how many of the lowest layers are the base's, which rewrite-timestamp leaves alone
	BaseBlobs   []graph.Digest  // as which these layers are in the base's manifest, bottom first; nil = not known
	BaseHistory []image.History // of the base's configuration
	// Fetch reads a blob of the base that the store no longer has from where the base is; nil = from the registry in Base.
	Fetch       func(context.Context, image.Descriptor) (io.ReadCloser, error)
	Epoch       *time.Time        // SOURCE_DATE_EPOCH; an exporter's own attribute wins
	Annotations map[string]string // of the manifest
	Attestation []Attestation
	ID          string // what the frontend calls it; "" = by its platform
	// Cache returns the records of a cache for the configuration of the image that these layers make, bottom first; nil = none.
	Cache func(ctx context.Context, ids []store.LayerID, diffIDs []graph.Digest) ([]byte, error)

	// Of an image that exists already, and goes out as it is unless an option forbids it.
	Manifest *image.Descriptor
	rawConf  []byte
	blobs    []image.Descriptor // the layers as pulled, if they are kept
	diffIDs  []graph.Digest
	proof    *image.Descriptor  // what was stated about it, as a manifest that goes along with Manifest
	proofs   []image.Descriptor // blobs of proof
}

// Attestation is a statement about an image whose tree was made. What only becomes known when the image is exported, such as the
// image's digest, is not in it.
type Attestation struct {
	image.Attestation
	Tree tree.Tree // has Path; nil if Make says it
	// Make writes the predicate. It gets the image's layers as blobs, bottom first; none if no image is made.
	Make func(ctx context.Context, layers []image.Descriptor) ([]byte, error)
}

// Exporter writes a Set somewhere.
type Exporter interface {
	// Name says what the exporter does, for progress and errors: "exporting to image".
	Name() string
	Export(ctx context.Context, env *Env, set *Set) (*Receipt, error)
}

// Receipt is what an exporter tells the client.
type Receipt struct {
	Metadata   map[string]string // with BuildKit's keys: containerimage.digest, containerimage.config.digest, image.name, …
	Descriptor *image.Descriptor // of the manifest or index, if one was made
}

// Env is what exporters work with. Vertex and Events are set by Run.
type Env struct {
	Store    *store.Store
	Packer   *Packer
	Registry *registry.Client // with the build's credentials
	Session  session.Session
	Client   session.Client // whose names those in the store are
	Events   event.Sink
	Vertex   graph.Digest // whose progress it is
	// Compatibility is the version of BuildKit's outputs that the client wants, see CompatibilityError; 0 = the current one.
	Compatibility int

	hold *store.Hold
}

// New makes the exporter that an output asks for. A type or attribute that does not exist is an Invalid error.
func New(o Output) (Exporter, error) {
	switch o.Type {
	case "image", "moby":
		return NewImage(o)
	case "registry":
		attrs := maps.Clone(o.Attrs)
		if attrs == nil {
			attrs = map[string]string{}
		}
		attrs["push"] = "true"
		return NewImage(Output{Type: o.Type, Attrs: attrs, Dest: o.Dest})
	case "oci":
		return NewOCI(o)
	case "docker":
		return NewDocker(o)
	case "local":
		return NewLocal(o)
	case "tar":
		return NewTar(o)
	case "cacheonly":
		return nothing{}, newAttrs(o).done()
	}
	types := []string{"image", "registry", "oci", "docker", "local", "tar", "cacheonly"}
	return nil, suggest(diag.Errorf(diag.Invalid, "no such output type: %q: it must be one of %s", o.Type, strings.Join(types, ", ")), o.Type, types)
}

// nothing is the exporter that leaves the result in the cache.
type nothing struct{}

// Idle reports whether an exporter needs nothing of the result.
func Idle(x Exporter) bool {
	_, ok := x.(nothing)
	return ok
}

func (nothing) Name() string { return "keeping the result in the cache" }

func (nothing) Export(context.Context, *Env, *Set) (*Receipt, error) {
	return &Receipt{Metadata: map[string]string{}}, nil
}

// Run exports a set with several exporters at once, and returns their receipts in order. The first failure, which names
// its exporter, ends the others. Nothing that is being exported is removed from the store meanwhile.
func Run(ctx context.Context, env *Env, set *Set, exporters []Exporter) ([]*Receipt, error) {
	hold := env.Store.Hold()
	defer hold.Release()
	for _, im := range set.Images {
		if ids, ok := im.Tree.Layers(); ok {
			hold.Layers(ids...)
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	receipts := make([]*Receipt, len(exporters))
	var wg sync.WaitGroup
	for i, x := range exporters {
		wg.Go(func() {
			e := *env
			e.hold = hold
			e.Vertex = digest.FromString(rand.Text())
			e.Events.Emit(event.Event{Kind: event.Planned, Vertex: e.Vertex, Name: x.Name()})
			e.Events.Emit(event.Event{Kind: event.Started, Vertex: e.Vertex})
			ctx, end := span.Start(ctx, x.Name())
			r, err := x.Export(ctx, &e, set)
			end(err)
			done := event.Event{Kind: event.Done, Vertex: e.Vertex}
			if err != nil {
				err = failed(x, err)
				done.Error = err.Error()
				cancel(err)
			}
			e.Events.Emit(done)
			receipts[i] = r
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	for _, im := range set.Images {
		if ids, ok := im.Tree.Layers(); ok {
			if err := env.Store.Sound(ids...); err != nil {
				return nil, err // what was written of them may be wrong
			}
		}
	}
	return receipts, nil
}

func failed(x Exporter, err error) error {
	return diag.Errorf(diag.KindOf(err), "%s: %w", x.Name(), err)
}

// step reports one activity of an export, and returns what reports its end.
func (e *Env) step(item string) func() {
	e.Events.Emit(event.Event{Kind: event.Progress, Vertex: e.Vertex, Item: item})
	return func() {
		e.Events.Emit(event.Event{Kind: event.Progress, Vertex: e.Vertex, Item: item, Complete: true})
	}
}

// receipt describes what was exported as BuildKit does.
func receipt(names []string, p *packed) (*Receipt, error) {
	r := &Receipt{Metadata: map[string]string{}}
	if len(names) > 0 {
		r.Metadata["image.name"] = strings.Join(names, ",")
	}
	if len(p.images) == 1 {
		r.Metadata["containerimage.config.digest"] = p.images[0].config.Digest.String()
	}
	if p.top.Digest == "" {
		return r, nil
	}
	d := p.top
	r.Descriptor = &d
	b, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	r.Metadata["containerimage.digest"] = d.Digest.String()
	r.Metadata["containerimage.descriptor"] = base64.StdEncoding.EncodeToString(b)
	return r, nil
}
