package export

import (
	"context"
	"io"
	"slices"
	"strings"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/strictjson"
	"github.com/strata-build/strata/tree"
)

// FromStore returns the set of an image of the store. The caller releases it.
func FromStore(ctx context.Context, s *store.Store, name string) (*Set, error) {
	hold := s.Hold()
	full := name
	if n, err := normalNames([]string{name}); err == nil && len(n) == 1 {
		full = n[0]
	}
	im, err := hold.Image(full)
	if err != nil && full != name {
		im, err = hold.Image(name) // an image without a name is stored by its id
	}
	if err != nil {
		hold.Release()
		return nil, err
	}
	set := &Set{hold: hold, Name: full, Index: im.Index, Multi: len(im.Platforms) > 1}
	for _, p := range im.Platforms {
		raw, err := readBlob(ctx, s, p.Config)
		if err != nil {
			set.Release()
			return nil, err
		}
		c, err := registry.DecodeConfig(raw)
		if err != nil {
			set.Release()
			return nil, err
		}
		x := Image{
			Platform: p.Platform, Config: c, Tree: tree.NewStack(s, p.Layers), Annotations: p.Annotations,
			Manifest: p.Manifest, rawConf: raw, blobs: p.Blobs, diffIDs: c.RootFS.DiffIDs, proof: p.Proof, proofs: p.Proofs,
		}
		if len(x.blobs) != len(x.diffIDs) {
			x.blobs = nil
		}
		if p.Manifest != nil {
			x.Base = &image.Base{Name: full} // where it came from, and where its blobs are if they are gone here
		}
		set.Images = append(set.Images, x)
	}
	return set, nil
}

// Release ends the use of the set's trees.
func (s *Set) Release() {
	if s.hold != nil {
		s.hold.Release()
	}
	for _, im := range s.Images {
		im.Tree.Release()
	}
}

func readBlob(ctx context.Context, s *store.Store, d graph.Digest) ([]byte, error) {
	b, err := s.OpenBlob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if b.Size() > registry.MaxConfig {
		return nil, diag.Errorf(diag.Exhausted, "%s has %d bytes, which is no configuration or manifest", d, b.Size())
	}
	raw, err := io.ReadAll(b.Reader())
	if err == nil && d.Algorithm().FromBytes(raw) != d {
		return nil, diag.Errorf(diag.Conflict, "the blob %s is damaged", d).WithHint("pull or build the image again")
	}
	return raw, err
}

func (e *Env) read(ctx context.Context, d image.Descriptor) ([]byte, error) {
	return readBlob(ctx, e.Store, d.Digest)
}

// keeps reports whether an image that exists already may go out with its own manifest.
func (o *packing) keeps(im *Image) bool {
	return !o.virtual && !o.Force && !o.Chosen && !o.Rewrite && o.Epoch == nil && len(o.Configs) == 0 && len(im.Attestation) == 0 &&
		len(annotations(o.Annotations, onManifest, im.Platform)) == 0 &&
		(o.OCI == nil || *o.OCI == (im.Manifest.MediaType == ocispec.MediaTypeImageManifest))
}

// existing packs an image as its own manifest says. It fails with diag.NotFound if that needs a blob that cannot be had.
func (e *Env) existing(ctx context.Context, im *Image, o *packing) (packedImage, error) {
	out := packedImage{platform: im.Platform}
	raw, err := e.read(ctx, *im.Manifest)
	if err != nil {
		return out, err
	}
	var m ocispec.Manifest
	if err := strictjson.Unmarshal(raw, &m); err != nil {
		return out, diag.Errorf(diag.Conflict, "the manifest %s: %w", im.Manifest.Digest, err)
	}
	out.config = piece{Descriptor: m.Config, data: im.rawConf}
	out.manifest = piece{Descriptor: *im.Manifest, data: raw}
	out.manifest.Annotations = annotations(o.Annotations, onManifestDescriptor, im.Platform)
	out.manifest.Platform = ociPlatform(im.Platform)
	out.diffIDs = im.Config.RootFS.DiffIDs
	if len(m.Layers) != len(out.diffIDs) {
		return out, diag.Errorf(diag.Conflict, "the manifest %s has %d layers, its configuration %d", im.Manifest.Digest, len(m.Layers), len(out.diffIDs))
	}
	layers := e.packedLayers(im, out.diffIDs)
	for i, d := range m.Layers {
		e.hold.Blobs(d.Digest)
		if _, here := e.Store.HasBlob(d.Digest); !here && d.Digest != out.diffIDs[i] && (layers[i].fetch == nil || e.Packer.ours(layers[i])) {
			return out, diag.Errorf(diag.NotFound, "the layer %s is not kept as a blob", d.Digest)
		}
	}
	for i, d := range m.Layers {
		x := piece{Descriptor: d, layer: &layers[i]}
		out.layers = append(out.layers, x)
		if o.ready != nil {
			if err := o.ready(ctx, im, x); err != nil {
				return out, err
			}
		}
	}
	return out, e.stored(ctx, im, o, &out)
}

// stored adds what the store keeps of the statements about an image.
func (e *Env) stored(ctx context.Context, im *Image, o *packing, out *packedImage) error {
	if im.proof == nil || !o.indexed {
		return nil
	}
	var pieces []piece
	for _, d := range append(slices.Clone(im.proofs), *im.proof) {
		raw, err := e.read(ctx, d)
		if err != nil {
			return err
		}
		e.hold.Blobs(d.Digest)
		pieces = append(pieces, piece{Descriptor: d, data: raw})
	}
	out.proofs, out.proof = pieces[:len(pieces)-1], &pieces[len(pieces)-1]
	return nil
}

// packedLayers describes the layers of an image by its diff_ids; the files may not be there.
func (e *Env) packedLayers(im *Image, diffIDs []graph.Digest) []Layer {
	ids, _ := im.Tree.Layers()
	layers := make([]Layer, len(diffIDs))
	for i, d := range diffIDs {
		layers[i] = Layer{DiffID: d, fetch: e.fetcher(im)}
		if i < len(im.blobs) {
			layers[i].pulled = &im.blobs[i]
		}
		if len(ids) == len(diffIDs) {
			layers[i].ID = ids[i]
		}
	}
	return layers
}

// fetcher reads blobs of a base image from where it was pulled.
func (e *Env) fetcher(im *Image) func(context.Context, image.Descriptor) (io.ReadCloser, error) {
	if im.Fetch != nil {
		return im.Fetch
	}
	base := im.Base
	if base == nil || base.Name == "" || e.Registry == nil {
		return nil
	}
	ref, err := registry.ParseRef(base.Name)
	if err != nil {
		return nil
	}
	return func(ctx context.Context, d image.Descriptor) (io.ReadCloser, error) {
		return e.Registry.Fetch(ctx, ref, d, 0)
	}
}

// sameLayers reports whether a configuration names exactly these diff_ids.
func sameLayers(conf []byte, diffIDs []graph.Digest) bool {
	var c image.Config
	return strictjson.Unmarshal(conf, &c) == nil && slices.Equal(c.RootFS.DiffIDs, diffIDs)
}

// Formats of Save. The names of containers-transports(5), docker-archive and oci-archive, mean the same.
const (
	DockerArchive = "docker"
	LegacyArchive = "docker,legacy=1"
	OCIArchive    = "oci"
)

// Save writes images of the store into one archive. A name may stand for an image that another name has too.
func Save(ctx context.Context, e *Env, names []string, format string, w io.Writer) error {
	format = strings.Replace(format, "-archive", "", 1)
	x := &Docker{legacy: format == LegacyArchive}
	x.uncompress()
	switch format {
	case DockerArchive, LegacyArchive, OCIArchive:
	default:
		return suggest(diag.Errorf(diag.Invalid, "no such archive format: %s: it must be docker, docker,legacy=1 or oci", format),
			format, []string{DockerArchive, LegacyArchive, OCIArchive})
	}
	env := *e
	env.hold = e.Store.Hold()
	defer env.hold.Release()
	var sets []archive.Set
	for _, n := range names {
		set, err := FromStore(ctx, e.Store, n)
		if err != nil {
			return err
		}
		defer set.Release()
		o := env.packing(x.imageOptions, set)
		if format == OCIArchive {
			o = packing{oci: true}
			o.Compression = defaultCompression
		}
		p, err := env.pack(ctx, set, o)
		if err != nil {
			return diag.Errorf(diag.KindOf(err), "%s: %w", n, err)
		}
		sets = append(sets, env.set(p, savedNames(set.Name)))
	}
	var list []archive.Output
	var err error
	if format == OCIArchive {
		list, err = archive.OCIFiles(sets)
	} else {
		list, err = x.files(sets)
	}
	if err != nil {
		return err
	}
	return archive.WriteTar(ctx, w, list)
}

// savedNames returns the name that an archive gives an image: none if it was asked for by its id.
func savedNames(name string) []string {
	if r, err := reference.ParseNormalizedNamed(name); err == nil {
		if _, ok := r.(reference.Tagged); ok {
			return []string{name}
		}
	}
	return nil
}

// Push sends an image of the store to the registry that its name, or another one, names.
func Push(ctx context.Context, e *Env, name string, to ...string) (*Receipt, error) {
	set, err := FromStore(ctx, e.Store, name)
	if err != nil {
		return nil, err
	}
	defer set.Release()
	if len(to) == 0 {
		to = []string{set.Name}
	}
	names, err := normalNames(to)
	if err != nil {
		return nil, err
	}
	x := &ImageStore{push: true}
	x.Names, x.Compression = names, defaultCompression
	r, err := Run(ctx, e, set, []Exporter{x})
	if err != nil {
		return nil, err
	}
	return r[0], nil
}
