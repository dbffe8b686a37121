package export

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/store"
)

// ImageStore names the image in the store and, if asked, pushes it. A configuration needs diff_ids only: unless the image is
// pushed, named by digest, asked for its manifest, or has attestations, no layer blob and no manifest are made, and containerimage.digest is
// missing from the receipt.
type ImageStore struct {
	imageOptions
	push      bool
	byDigest  bool
	store     bool
	insecure  bool
	manifest  bool   // make the manifest, and thereby the layers' blobs, even if nobody needs them yet
	canonical bool   // also name it NAME@DIGEST
	dangling  string // name it PREFIX@DIGEST
	fallback  bool   // … only if it has no name
}

// NewImage reads the attributes of type=image.
func NewImage(o Output) (*ImageStore, error) {
	a := newAttrs(o)
	x := &ImageStore{
		imageOptions: a.image(),
		push:         a.flag("push", false),
		byDigest:     a.flag("push-by-digest", false),
		store:        a.flag("store", o.Type != "registry"),
		insecure:     a.flag("registry.insecure", false),
		manifest:     a.flag("manifest", false),
		canonical:    a.flag("name-canonical", false),
		fallback:     a.flag("danging-name-empty-only", false), // BuildKit's spelling
	}
	a.flag("unpack", true) // layers are always unpacked here
	x.dangling, _ = a.take("dangling-name-prefix")
	x.push = x.push || x.byDigest
	if x.push && len(x.Names) == 0 && !x.NameFromBuild {
		a.fail(diag.Errorf(diag.Invalid, "output %s: an image needs a name to be pushed", o.Type).WithHint("add name=REGISTRY/REPOSITORY:TAG"))
	}
	return x, a.done()
}

// Name implements Exporter.
func (x *ImageStore) Name() string { return "exporting to image" }

// Export implements Exporter.
func (x *ImageStore) Export(ctx context.Context, e *Env, set *Set) (*Receipt, error) {
	x2 := *x
	if err := x2.nameFrom(set); err != nil {
		return nil, err
	}
	o := e.packing(x2.imageOptions, set)
	named := x.canonical || x.dangling != "" && (!x.fallback || len(x2.Names) == 0)
	o.virtual = !x.push && !x.manifest && !named && !o.attested(set) && len(o.Annotations)+len(set.annotations) == 0
	var p *packed
	var err error
	if x.push {
		if x.insecure {
			e2 := *e
			e2.Registry = e.Registry.Trusting(hosts(x2.Names)...)
			e = &e2
		}
		p, err = e.push(ctx, set, o, x.byDigest)
	} else {
		p, err = e.pack(ctx, set, o)
	}
	if err != nil {
		return nil, err
	}
	if x.store {
		if err := e.record(ctx, set, p, x2.names(p)); err != nil {
			return nil, err
		}
	}
	return receipt(x2.Names, p)
}

// names returns the names that the store gets.
func (x *ImageStore) names(p *packed) []string {
	if x.byDigest {
		return nil
	}
	names := slices.Clone(x.Names)
	if x.dangling != "" && (!x.fallback || len(names) == 0) {
		names = append(names, x.dangling+"@"+p.top.Digest.String())
	}
	if x.canonical {
		for _, n := range x.Names {
			if r, err := reference.ParseNormalizedNamed(n); err == nil && !strings.Contains(n, "@") {
				names = append(names, r.Name()+"@"+p.top.Digest.String())
			}
		}
	}
	return names
}

// record writes the documents of a set as blobs and names it, all names or none. An image without a name is stored under
// its id, the digest of its configuration, until it is collected.
func (e *Env) record(ctx context.Context, set *Set, p *packed, names []string) error {
	im := store.Image{Updated: time.Now(), Made: true}
	for i, x := range p.images {
		ids, _ := set.Images[i].Tree.Layers()
		pi := store.PlatformImage{
			Platform: x.platform, Config: x.config.Digest, Layers: ids, DiffIDs: x.diffIDs,
			Annotations: set.Images[i].Annotations,
		}
		if len(ids) == 0 {
			pi.Blobs = descriptors(x.layers) // an image that is kept packed
		}
		if x.manifest.Digest != "" {
			d := x.manifest.Descriptor
			pi.Manifest = &d
		}
		if x.proof != nil {
			d := x.proof.Descriptor
			pi.Proof, pi.Proofs = &d, descriptors(x.proofs)
		}
		im.Platforms = append(im.Platforms, pi)
	}
	if p.index != nil {
		im.Index = &p.index.Descriptor
	}
	packed := e.set(p, nil)
	err := packed.Blobs(func(x archive.Blob) error {
		if x.Data == nil {
			return nil
		}
		e.hold.Blobs(x.Digest)
		if _, ok := e.Store.HasBlob(x.Digest); ok {
			return nil
		}
		_, err := e.Store.PutBlob(ctx, x.Data)
		return err
	})
	if err != nil {
		return err
	}
	for _, x := range p.images {
		e.step("writing image " + x.config.Digest.String())()
	}
	if len(names) == 0 {
		names = []string{p.id().String()}
	}
	for _, n := range names {
		defer e.step("naming to " + n)()
	}
	return e.Store.Update(ctx, func(b *store.Batch) error {
		for _, n := range names {
			b.Image(e.Client.ImageName(n), im)
		}
		return nil
	})
}

// id is what a nameless image is found by: the digest of its configuration, or of its index if it has several.
func (p *packed) id() graph.Digest {
	if p.index != nil {
		return p.index.Digest
	}
	for _, im := range p.images {
		if archive.IsLocal(im.platform) {
			return im.config.Digest
		}
	}
	return p.images[0].config.Digest
}

// hosts returns the registries of some names.
func hosts(names []string) []string {
	var out []string
	for _, n := range names {
		if ref, err := registry.ParseRef(n); err == nil {
			out = append(out, ref.Host)
		}
	}
	return out
}

func descriptors(pieces []piece) []image.Descriptor {
	var out []image.Descriptor
	for _, x := range pieces {
		out = append(out, x.Descriptor)
	}
	return out
}
