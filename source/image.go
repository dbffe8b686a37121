package source

import (
	"context"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/store"
)

// Puller is what all builds over one store share: who is downloading or unpacking what.
type Puller struct {
	store *store.Store
	locks locks // chain ids being unpacked, repositories in use
	slots locks // layers in work at the same time, by client
	names namer // of logins
}

// gitDir is where a tenant's bare repositories of git sources are, one per remote.
func (p *Puller) gitDir(tenant string) string { return filepath.Join(p.store.OwnerDir(tenant), "git") }

// parallelLayers bounds the layers in work for one client: enough to hide the round trips of a registry, few enough to keep memory low.
const parallelLayers = 4

// NewPuller makes the Puller of a store.
func NewPuller(s *store.Store) *Puller {
	return &Puller{store: s, slots: locks{size: parallelLayers}, names: newNamer(s)}
}

// Images is one build's view of images: a name is looked up once, so that all of the build sees the same image.
type Images struct {
	*Puller
	env  Env
	mu   sync.Mutex
	seen map[question]*answer
	open map[string]*archive.Archive // by path; closed with the build
}

type question struct {
	kind, ref, store string
	mode             graph.ResolveMode
	platform         string
}

type answer struct {
	lock chan struct{}
	img  *Image
}

// Images starts a build's view. The caller closes it.
func (p *Puller) Images(env Env) *Images {
	return &Images{Puller: p, env: env, seen: map[question]*answer{}, open: map[string]*archive.Archive{}}
}

// Image is an image of which manifest and configuration are known. It is immutable.
type Image struct {
	Name         string       // full reference, or what else names it
	Digest       graph.Digest // what Name means: an index, a manifest; "" if the store has neither
	Platform     graph.Platform
	Config       *image.Config
	ConfigDigest graph.Digest
	Manifest     *image.Descriptor  // nil if there is no document, or none that fits the layers
	Index        *image.Descriptor  // nil if there is none
	Blobs        []image.Descriptor // layers as blobs, bottom first; empty if there are only unpacked ones
	Annotations  map[string]string  // of the manifest

	layers  []store.LayerID // already unpacked, all of them, or nil
	from    provider        // where Blobs are
	created []time.Time     // when layers were made, as far as that is known; nil = they were not made here
	byDiff  bool            // its layers are named by their diff_ids; Blobs are only how they come here
	record  string          // name under which the store remembers the image once it is unpacked; "" = not
}

// ChainIDs returns the chain id of every layer, bottom first. Source: image-spec config.md, "Layer ChainID".
func (i *Image) ChainIDs() []digest.Digest {
	ids := append([]digest.Digest(nil), i.Config.RootFS.DiffIDs...)
	return identity.ChainIDs(ids)
}

// Unpacked returns the layers that the store had of the image when it was found, all of them or none.
func (i *Image) Unpacked() []store.LayerID { return i.layers }

// Pin returns the digest that the lowest limit layers (0 = all) are keyed by: their chain id.
func (i *Image) Pin(limit int) graph.Digest {
	ids := i.ChainIDs()
	if limit > 0 && limit < len(ids) {
		ids = ids[:limit]
	}
	if len(ids) == 0 {
		return digest.FromString("")
	}
	return ids[len(ids)-1]
}

// Resolve finds an image and reads its configuration. In the default mode an image of that name in the store wins;
// graph.ResolvePull asks the registry, graph.ResolveLocal only the store. A missing platform is an error that lists those
// there are.
func (im *Images) Resolve(ctx context.Context, op *graph.Image, p graph.Platform) (*Image, error) {
	q := question{kind: "image", ref: op.Ref, mode: op.Mode, platform: graph.FormatPlatform(graph.NormalizePlatform(p)) + p.OSVersion}
	img, err := im.once(ctx, q, func() (*Image, error) { return im.lookup(ctx, op, p) })
	if err != nil {
		return nil, err
	}
	if op.Checksum != "" && op.Checksum != img.Digest && (img.Manifest == nil || op.Checksum != img.Manifest.Digest) {
		return nil, diag.Errorf(diag.Invalid, "image digest %s for %s does not match expected checksum %s", img.Digest, op.Ref, op.Checksum)
	}
	return img, nil
}

// Pin is Resolve followed by Image.Pin.
func (im *Images) Pin(ctx context.Context, op *graph.Image, p graph.Platform) (graph.Digest, error) {
	img, err := im.Resolve(ctx, op, p)
	if err == nil {
		err = im.proveLayers(ctx, img, op.LayerLimit)
	}
	if err != nil {
		return "", err
	}
	return img.Pin(op.LayerLimit), nil
}

// Fetch returns the image's layers in the store, bottom first, after downloading and unpacking what is missing.
func (im *Images) Fetch(ctx context.Context, op *graph.Image, p graph.Platform, vertex graph.Digest) ([]store.LayerID, *image.Config, error) {
	img, err := im.Resolve(ctx, op, p)
	if err != nil {
		return nil, nil, err
	}
	layers, err := im.Layers(ctx, img, op.LayerLimit, vertex)
	return layers, img.Config, err
}

// once runs f for the first to ask q, and again only if it failed.
func (im *Images) once(ctx context.Context, q question, f func() (*Image, error)) (*Image, error) {
	im.mu.Lock()
	a := im.seen[q]
	if a == nil {
		a = &answer{lock: make(chan struct{}, 1)}
		im.seen[q] = a
	}
	im.mu.Unlock()
	select {
	case a.lock <- struct{}{}:
		defer func() { <-a.lock }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if a.img == nil {
		img, err := f()
		if err != nil {
			return nil, err
		}
		a.img = img
	}
	return a.img, nil
}
