package source

import (
	"context"
	"io"
	"maps"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/strictjson"
)

// provider is where blobs and documents of an image are read.
type provider interface {
	// open reads a blob from offset. A provider does not verify what it reads: who asks does.
	open(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error)
	// place names where it reads, for facts; "" is one that everybody may read.
	place() string
}

// remote is a repository of a registry.
type remote struct {
	client *registry.Client
	ref    registry.Ref
}

func (r remote) open(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error) {
	return r.client.FetchUnverified(ctx, r.ref, d, offset)
}

func (r remote) place() string { return repository(r.ref) }

// inStore is the store itself: it is only asked for what it does not have.
type inStore struct{ name string }

func (s inStore) open(_ context.Context, d image.Descriptor, _ int64) (io.ReadCloser, error) {
	return nil, diag.Errorf(diag.NotFound, "%s: the store has neither the layer nor the blob %s", s.name, d.Digest).WithHint("pull or import the image again")
}

func (inStore) place() string { return "" }

// lookup finds an image by its reference.
func (im *Images) lookup(ctx context.Context, op *graph.Image, p graph.Platform) (*Image, error) {
	ref, err := registry.ParseRef(op.Ref)
	if err != nil {
		return nil, err
	}
	if op.Mode != graph.ResolvePull {
		img, err := im.stored(ctx, ref, p)
		if err == nil {
			return img, nil
		}
		if op.Mode == graph.ResolveLocal || diag.KindOf(err) != diag.NotFound {
			return nil, err
		}
	}
	if im.env.Registry == nil {
		return nil, diag.Errorf(diag.NotFound, "%s: not in the store, and there is no registry to ask", ref)
	}
	return im.remote(ctx, ref, p)
}

// stored finds an image in the store, by name or, for a pinned reference, by name and digest.
func (im *Images) stored(ctx context.Context, ref registry.Ref, p graph.Platform) (*Image, error) {
	names := []string{ref.String()}
	if ref.Digest != "" {
		names = []string{ref.Name() + "@" + ref.Digest.String(), ref.String()}
		if ref.Tag != "" {
			names = append(names, ref.Name()+":"+ref.Tag)
		}
	}
	var missing error
	for _, name := range names {
		rec, err := im.env.Hold.Image(im.env.Client.ImageName(name))
		if err != nil {
			missing = diag.Errorf(diag.NotFound, "%s: not in the store: %w", ref, err)
			continue
		}
		rec.Name = name
		img, err := im.fromRecord(ctx, rec, p)
		if err == nil && ref.Digest != "" && img.Digest != ref.Digest && (img.Manifest == nil || img.Manifest.Digest != ref.Digest) {
			err = diag.Errorf(diag.NotFound, "%s: the store has another version, %s", ref, img.Digest)
		}
		if err == nil && !rec.Made {
			err = im.stillReadable(ctx, ref, img)
		}
		if err == nil {
			return img, nil
		}
		missing = err
	}
	return nil, missing
}

// stillReadable asks the registry of an image that was pulled whether this client may have it. If not, the store has none for it.
func (im *Images) stillReadable(ctx context.Context, ref registry.Ref, img *Image) error {
	ref.Tag, ref.Digest = "", img.Digest
	err := im.mayRead(ctx, ref, img.Digest, func() error {
		if img.Digest == "" {
			return diag.Errorf(diag.NotFound, "nobody knows its manifest")
		}
		_, err := im.env.Registry.Resolve(ctx, ref)
		return err
	})
	if err != nil && ctx.Err() == nil {
		return diag.Errorf(diag.NotFound, "%s: not in the store for this client: %w", ref, err)
	}
	return err
}

func (im *Images) fromRecord(ctx context.Context, rec store.Image, p graph.Platform) (*Image, error) {
	have := make([]graph.Platform, len(rec.Platforms))
	for i, pi := range rec.Platforms {
		have[i] = pi.Platform
	}
	i, ok := image.ChoosePlatform(p, have)
	if !ok && len(have) == 1 && rec.Index == nil {
		i, ok = 0, true // an image without a choice serves every platform, as in a registry
	}
	if !ok {
		return nil, image.NoPlatform(rec.Name, p, have)
	}
	pi := rec.Platforms[i]
	raw, err := im.blob(ctx, image.Descriptor{Digest: pi.Config}, registry.MaxConfig, inStore{rec.Name})
	if err != nil {
		return nil, err
	}
	cfg, err := registry.DecodeConfig(raw)
	if err != nil {
		return nil, err
	}
	img := &Image{
		Name: rec.Name, Platform: pi.Platform, Config: cfg, ConfigDigest: pi.Config, Manifest: pi.Manifest, Index: rec.Index,
		Blobs: pi.Blobs, Annotations: pi.Annotations, from: inStore{rec.Name},
	}
	switch {
	case rec.Index != nil:
		img.Digest = rec.Index.Digest
	case pi.Manifest != nil:
		img.Digest = pi.Manifest.Digest
	}
	if len(pi.Layers) == len(cfg.RootFS.DiffIDs) {
		img.layers = pi.Layers
	} else {
		img.record = rec.Name
	}
	return img, nil
}

// LayerBlobs returns the digests of an image's layers as its manifest has them, bottom first, nil if there is none at hand.
func (im *Images) LayerBlobs(ctx context.Context, img *Image) []graph.Digest {
	layers := img.Blobs
	if len(layers) == 0 && img.Manifest != nil {
		raw, err := im.blob(ctx, *img.Manifest, registry.MaxConfig, nil)
		var m ocispec.Manifest
		if err == nil && strictjson.Unmarshal(raw, &m) == nil {
			layers = m.Layers
		}
	}
	if len(layers) != len(img.Config.RootFS.DiffIDs) {
		return nil
	}
	var blobs []graph.Digest
	for _, d := range layers {
		blobs = append(blobs, d.Digest)
	}
	return blobs
}

// remote finds an image in its registry and reads manifest and configuration, which are kept as blobs.
func (im *Images) remote(ctx context.Context, ref registry.Ref, p graph.Platform) (*Image, error) {
	name := ref.String()
	from := remote{im.env.Registry, ref}
	// A digest is asked for too: what the store has from one repository, another may not have.
	desc, err := im.env.Registry.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := im.mayRead(ctx, ref, desc.Digest, func() error { return nil }); err != nil { // it could just now
		return nil, err
	}
	img := &Image{Name: name, Digest: desc.Digest, from: from, record: name}
	if ref.Digest != "" {
		img.record = ref.Name() + "@" + ref.Digest.String()
	}
	read := func(d image.Descriptor) ([]byte, error) {
		return im.manifest(ctx, from, d)
	}
	return im.describe(ctx, img, desc, describing{platform: p, read: read})
}

// describing is how describe reads documents, and for which platform.
type describing struct {
	platform graph.Platform
	read     func(image.Descriptor) ([]byte, error)
}

// describe fills in an image from its manifest, or from the manifest that its index has for the platform, and its
// configuration.
func (im *Images) describe(ctx context.Context, img *Image, desc image.Descriptor, by describing) (*Image, error) {
	var doc *registry.Document
	for depth := 0; ; depth++ {
		raw, err := by.read(desc)
		if err != nil {
			return nil, err
		}
		if doc, err = registry.Decode(raw, desc.MediaType); err != nil {
			return nil, diag.Errorf(diag.KindOf(err), "%s: %w", img.Name, err)
		}
		desc.MediaType, desc.Size = doc.MediaType, int64(len(raw))
		if doc.Manifest != nil {
			break
		}
		if depth > 3 {
			return nil, diag.Errorf(diag.Invalid, "%s: indexes are nested more than 4 deep", img.Name)
		}
		if img.Index == nil {
			img.Index = &image.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
		}
		if desc, err = image.ChooseManifest(img.Name, by.platform, doc.Index.Manifests); err != nil {
			return nil, err
		}
	}
	m := doc.Manifest
	if kind := registry.ArtifactType(m); kind != "" {
		return nil, diag.Errorf(diag.Unsupported, "%s is an artifact of type %s, not an image", img.Name, kind)
	}
	raw, err := im.blob(ctx, m.Config, registry.MaxConfig, img.from)
	if err != nil {
		return nil, err
	}
	if img.Config, err = registry.DecodeConfig(raw); err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "%s: %w", img.Name, err)
	}
	if len(img.Config.RootFS.DiffIDs) == 0 && img.Config.Architecture == "" {
		return nil, diag.Errorf(diag.Unsupported, "%s is an artifact of type %s, not an image: its configuration names no file systems", img.Name, m.Config.MediaType)
	}
	if len(m.Layers) != len(img.Config.RootFS.DiffIDs) {
		return nil, diag.Errorf(diag.Invalid, "%s: the manifest has %d layers, the configuration %d", img.Name, len(m.Layers), len(img.Config.RootFS.DiffIDs))
	}
	for _, l := range m.Layers {
		if !layerTypes[l.MediaType] {
			return nil, diag.Errorf(diag.Unsupported, "%s: a layer of type %s cannot be unpacked", img.Name, l.MediaType)
		}
	}
	img.Manifest = &image.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	img.ConfigDigest, img.Blobs, img.Platform = m.Config.Digest, m.Layers, img.Config.Platform()
	if d := desc.Platform; d != nil && img.Platform.Variant == "" && d.Architecture == img.Platform.Architecture {
		img.Platform.Variant = d.Variant // many configurations leave it to the index
	}
	img.Annotations = maps.Clone(m.Annotations)
	return img, nil
}

// layerTypes are the media types of layers that can be unpacked. The compression itself is found in the bytes.
var layerTypes = map[string]bool{
	ocispec.MediaTypeImageLayer: true, ocispec.MediaTypeImageLayerGzip: true, ocispec.MediaTypeImageLayerZstd: true,
	image.NondistLayer: true, image.NondistLayerGzip: true, image.NondistLayerZstd: true,
	image.DockerLayer: true, image.DockerLayerGzip: true, image.DockerLayerZstd: true, image.DockerForeignLayer: true, image.DockerForeignGzip: true,
}

// manifest returns a manifest of a repository from the store, or else from the repository, and keeps it then.
func (im *Images) manifest(ctx context.Context, from remote, d image.Descriptor) ([]byte, error) {
	if im.env.sent(from.place(), d.Digest) {
		if raw, err := im.blob(ctx, d, registry.MaxManifest, nil); err == nil {
			return raw, nil
		}
	}
	raw, err := from.client.Manifest(ctx, from.ref, d)
	if err == nil {
		err = im.keep(ctx, d.Digest, raw)
	}
	if err == nil {
		err = im.env.learn(ctx, sentFact(from.place(), d.Digest))
	}
	return raw, err
}

// blob returns a small blob from the store, or else from where it is, and keeps it then. Its digest is verified.
func (im *Images) blob(ctx context.Context, d image.Descriptor, limit int64, from provider) ([]byte, error) {
	im.env.Hold.Blobs(d.Digest)
	if from != nil && !im.env.sent(from.place(), d.Digest) {
		return im.fetchBlob(ctx, d, limit, from)
	}
	if size, ok := im.store.HasBlob(d.Digest); ok && size <= limit {
		b, err := im.store.OpenBlob(ctx, d.Digest)
		if err == nil {
			defer b.Close()
			raw, err := io.ReadAll(io.LimitReader(b.Reader(), limit+1))
			if err == nil && d.Digest.Algorithm().FromBytes(raw) == d.Digest {
				return raw, nil
			}
		}
	}
	if from == nil {
		return nil, diag.Errorf(diag.NotFound, "the store has no blob %s", d.Digest)
	}
	return im.fetchBlob(ctx, d, limit, from)
}

// fetchBlob reads a small blob from where it is, and keeps it.
func (im *Images) fetchBlob(ctx context.Context, d image.Descriptor, limit int64, from provider) ([]byte, error) {
	if d.Size > limit {
		return nil, diag.Errorf(diag.Exhausted, "%s has %d bytes, the limit is %d", d.Digest, d.Size, limit)
	}
	var raw []byte
	err := registry.Again(ctx, func() error {
		r, err := from.open(ctx, d, 0)
		if err != nil {
			return err
		}
		defer r.Close()
		if raw, err = io.ReadAll(io.LimitReader(r, limit+1)); err != nil {
			return err
		}
		if int64(len(raw)) > limit {
			return diag.Errorf(diag.Exhausted, "%s has more than %d bytes", d.Digest, limit)
		}
		if got := d.Digest.Algorithm().FromBytes(raw); got != d.Digest {
			return registry.Blame(r, d.Digest, got)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := im.keep(ctx, d.Digest, raw); err != nil || from.place() == "" {
		return raw, err
	}
	return raw, im.env.learn(ctx, sentFact(from.place(), d.Digest))
}

// keep stores a verified document. The store names blobs by sha256: others are read again when they are needed.
func (im *Images) keep(ctx context.Context, d graph.Digest, raw []byte) error {
	im.env.Hold.Blobs(d)
	if d.Algorithm() != "sha256" {
		return nil
	}
	_, err := im.store.PutBlob(ctx, raw)
	return err
}

// watchedProvider reports what is read.
type watchedProvider struct {
	provider
	p *progress
}

func (w watchedProvider) open(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error) {
	r, err := w.provider.open(ctx, d, offset)
	if err != nil {
		return nil, err
	}
	w.p.sofar = offset
	return &watched{counted{r, w.p}, r}, nil
}

// watched is a reader of a watchedProvider.
type watched struct {
	counted
	r io.ReadCloser
}

func (w *watched) Close() error { return w.r.Close() }

// Blame is documented at [registry.Blame].
func (w *watched) Blame(got graph.Digest) error { return registry.Blame(w.r, "", got) }
