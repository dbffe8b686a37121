package export

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/strictjson"
)

// rewritten is BuildKit's annotation of a layer whose times are not later than SOURCE_DATE_EPOCH: its seconds.
const rewritten = "buildkit/rewritten-timestamp"

// piece is one blob that an exported image consists of: bytes in memory, or a layer.
type piece struct {
	image.Descriptor
	data  []byte
	layer *Layer
}

// packedImage is one image with all its pieces known.
type packedImage struct {
	platform graph.Platform
	config   piece
	layers   []piece // bottom first
	diffIDs  []graph.Digest
	created  *time.Time
	manifest piece   // no digest if manifests were not wanted
	proofs   []piece // blobs of the attestation manifest
	proof    *piece  // the attestation manifest
}

// packed is a set that is ready to be written.
type packed struct {
	images []packedImage
	index  *piece
	top    image.Descriptor // what names the whole; no digest if manifests were not wanted
}

// packing says how a set is packed.
type packing struct {
	imageOptions
	oci     bool // the media types
	virtual bool // diff_ids are enough: no manifest, no blobs
	indexed bool // there will be an index
	// ready is called as soon as a layer's blob exists, from many goroutines.
	ready func(context.Context, *Image, piece) error
}

// pack finds or makes everything that the set's images consist of.
func (e *Env) pack(ctx context.Context, set *Set, o packing) (*packed, error) {
	p := &packed{images: make([]packedImage, len(set.Images))}
	if len(set.Images) == 0 {
		return nil, diag.Errorf(diag.Invalid, "there is nothing to export: the build has no result")
	}
	if err := e.compatible(&o); err != nil {
		return nil, err
	}
	o.Annotations = slices.Concat(set.annotations, o.Annotations) // of two values the output's own counts
	o.indexed = len(set.Images) > 1 || set.Multi || o.attested(set)
	g, gctx := errgroup.WithContext(ctx)
	for i := range set.Images {
		g.Go(func() (err error) {
			p.images[i], err = e.packImage(gctx, &set.Images[i], &o)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if o.virtual {
		return p, nil
	}
	if err := e.packIndex(ctx, p, set, &o); err != nil {
		return nil, err
	}
	p.date()
	return p, nil
}

// date notes on the descriptor of the whole when it was made, as BuildKit does, if that is known.
func (p *packed) date() {
	var last *time.Time
	for _, im := range p.images {
		if im.created != nil && (last == nil || im.created.After(*last)) {
			last = im.created
		}
	}
	if _, given := p.top.Annotations[ocispec.AnnotationCreated]; last != nil && !given {
		p.top.Annotations = merge(p.top.Annotations, map[string]string{ocispec.AnnotationCreated: last.UTC().Format(time.RFC3339)})
	}
}

func (e *Env) packImage(ctx context.Context, im *Image, o *packing) (packedImage, error) {
	var none packedImage
	if im.Manifest != nil && o.keeps(im) {
		if out, err := e.existing(ctx, im, o); err == nil || diag.KindOf(err) != diag.NotFound {
			return out, err
		}
	}
	epoch := o.epoch(im)
	layers, pieces, err := e.packLayers(ctx, im, o, epoch)
	if err != nil {
		return none, err
	}
	out := packedImage{platform: im.Platform, layers: pieces}
	for _, l := range layers {
		out.diffIDs = append(out.diffIDs, l.DiffID)
	}
	conf := im.rawConf
	if conf == nil || !sameLayers(conf, out.diffIDs) {
		c := finish(o.config(im), layers, im, epoch)
		if out.created = c.Created; epoch != nil {
			out.created = epoch
		}
		if err := im.addCache(ctx, c, layers); err != nil {
			return none, err
		}
		if conf, err = c.Encode(); err != nil {
			return none, diag.Errorf(diag.Invalid, "the image's configuration: %w", err)
		}
	}
	out.config = bytesPiece(pick(o.oci, ocispec.MediaTypeImageConfig, image.DockerConfig), conf)
	if o.virtual {
		return out, nil
	}
	m := ocispec.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   pick(o.oci, ocispec.MediaTypeImageManifest, image.DockerManifest),
		Config:      out.config.Descriptor,
		Layers:      make([]image.Descriptor, len(pieces)),
		Annotations: merge(im.Annotations, annotations(o.Annotations, onManifest, im.Platform)),
	}
	given := image.ParseLayerNames(im.Annotations)
	for i, l := range pieces {
		m.Layers[i] = l.Descriptor
		m.Layers[i].Annotations = merge(l.Annotations, given[out.diffIDs[i]].Annotations)
		if t := layers[i].clamp; t != nil && o.oci {
			m.Layers[i].Annotations = merge(m.Layers[i].Annotations, map[string]string{rewritten: strconv.FormatInt(t.Unix(), 10)})
		}
	}
	raw, err := encode(m)
	if err != nil {
		return none, err
	}
	out.manifest = bytesPiece(m.MediaType, raw)
	out.manifest.Annotations = annotations(o.Annotations, onManifestDescriptor, im.Platform)
	out.manifest.Platform = ociPlatform(im.Platform)
	return out, e.attest(ctx, &out, im, o)
}

// epoch returns SOURCE_DATE_EPOCH for an image: the output's, or the build's.
func (o *packing) epoch(im *Image) *time.Time {
	if o.Epoch != nil || o.NoEpoch {
		return o.Epoch
	}
	return im.Epoch
}

// config returns the configuration to start from: the output's, the build's, or an empty one.
func (o *packing) config(im *Image) *image.Config {
	c := im.Config
	if x := o.Configs[PlatformName(im.Platform)]; x != nil {
		c = x
	} else if x := o.Configs[""]; x != nil {
		c = x
	}
	if c == nil {
		c = &image.Config{}
		c.Config.WorkingDir = "/"
		if im.Platform.OS != "windows" {
			c.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
		}
	}
	if c.OS == "" || c.Architecture == "" {
		c = c.Clone()
		c.OS, c.Architecture, c.Variant = im.Platform.OS, im.Platform.Architecture, im.Platform.Variant
		c.OSVersion, c.OSFeatures = im.Platform.OSVersion, im.Platform.OSFeatures
	}
	return c
}

// packLayers makes the layers' diff_ids and, unless the pack is virtual, blobs. Layers that stay uncompressed need none.
func (e *Env) packLayers(ctx context.Context, im *Image, o *packing, epoch *time.Time) ([]Layer, []piece, error) {
	reqs, err := e.requests(im, o, epoch)
	if err != nil {
		return nil, nil, err
	}
	defer e.step("exporting layers")()
	layers := make([]Layer, len(reqs))
	pieces := make([]piece, len(reqs))
	g, ctx := errgroup.WithContext(ctx)
	for i, req := range reqs {
		g.Go(func() error {
			if o.virtual {
				l, err := e.Packer.Layer(ctx, req)
				layers[i] = l
				return err
			}
			l, desc, err := e.Packer.Blob(ctx, req)
			if err != nil {
				return err
			}
			desc = o.distributed(desc)
			layers[i], pieces[i] = l, piece{Descriptor: desc, layer: &layers[i]}
			e.hold.Blobs(desc.Digest)
			if o.ready != nil {
				return o.ready(ctx, im, pieces[i])
			}
			return nil
		})
	}
	return layers, pieces, g.Wait()
}

// requests says what is wanted of each layer of an image.
func (e *Env) requests(im *Image, o *packing, epoch *time.Time) ([]Request, error) {
	ids, ok := im.Tree.Layers()
	if !ok {
		return nil, diag.Errorf(diag.Unsupported, "a client's directory cannot be exported as an image").
			WithHint("copy it into an image first, or use the local or tar output")
	}
	reqs := make([]Request, max(len(ids), len(im.blobs)))
	for i := range reqs {
		r := Request{Compression: o.Compression, Force: o.Force, Base: i < im.BaseLayers && !o.Chosen, Nondist: o.Nondist, Hold: e.hold, Fetch: e.fetcher(im)}
		if i < len(ids) {
			r.ID = ids[i]
		}
		if i < len(im.BaseBlobs) {
			r.Prefer = im.BaseBlobs[i]
		}
		if i < len(im.blobs) {
			r.Pulled, r.DiffID = &im.blobs[i], im.diffIDs[i]
		}
		if o.Rewrite && epoch != nil && i >= im.BaseLayers {
			r.Clamp = epoch
		}
		if r.Clamp == nil {
			r.Clamp = e.clampedAs(im, i, r.ID)
		}
		reqs[i] = r
	}
	return reqs, nil
}

// clampedAs returns the epoch with which a layer of an image of the store has the diff_id that the image promises, nil if it has it
// without one.
func (e *Env) clampedAs(im *Image, i int, id store.LayerID) *time.Time {
	if im.rawConf == nil || id == 0 || i >= len(im.diffIDs) || im.Config.Created == nil {
		return nil
	}
	if d, err := e.Store.Memo(clampKey(id, *im.Config.Created)); err != nil || d != im.diffIDs[i] {
		return nil
	}
	return im.Config.Created
}

func (e *Env) packIndex(ctx context.Context, p *packed, set *Set, o *packing) error {
	indexNotes := annotations(o.Annotations, onIndex, graph.Platform{})
	descNotes := annotations(o.Annotations, onIndexDescriptor, graph.Platform{})
	if !o.indexed {
		if len(indexNotes)+len(descNotes) > 0 {
			return diag.Errorf(diag.Invalid, "annotations of the index need an index: this image has a single platform").
				WithHint("use annotation-manifest or annotation-manifest-descriptor, or name several platforms")
		}
		p.top = p.images[0].manifest.Descriptor
		return nil
	}
	if set.Index != nil && len(indexNotes) == 0 {
		raw, err := e.read(ctx, *set.Index)
		if err == nil && indexOf(raw, p.images) {
			idx := piece{Descriptor: *set.Index, data: raw}
			p.index, p.top = &idx, idx.Descriptor
			return nil
		}
	}
	idx := ocispec.Index{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   pick(o.oci, ocispec.MediaTypeImageIndex, image.DockerManifestList),
		Annotations: indexNotes,
	}
	for _, im := range p.images {
		idx.Manifests = append(idx.Manifests, im.manifest.Descriptor)
	}
	for _, im := range p.images {
		if im.proof != nil {
			idx.Manifests = append(idx.Manifests, im.proof.Descriptor)
		}
	}
	raw, err := encode(idx)
	if err != nil {
		return err
	}
	x := bytesPiece(idx.MediaType, raw)
	x.Annotations = descNotes
	p.index, p.top = &x, x.Descriptor
	return nil
}

// indexOf reports whether an index names the manifests of exactly these images, and what is stated about them, in any order.
func indexOf(raw []byte, images []packedImage) bool {
	var idx ocispec.Index
	if strictjson.Unmarshal(raw, &idx) != nil {
		return false
	}
	var want []graph.Digest
	for _, im := range images {
		want = append(want, im.manifest.Digest)
	}
	for _, im := range images {
		if im.proof != nil {
			want = append(want, im.proof.Digest)
		}
	}
	var have []graph.Digest
	for _, m := range idx.Manifests {
		have = append(have, m.Digest)
	}
	slices.Sort(want) // an index may list what is stated about an image beside it
	slices.Sort(have)
	return slices.Equal(have, want)
}

// open returns a reader of the piece's bytes.
func (e *Env) open(ctx context.Context, p piece) (io.ReadCloser, error) {
	if p.layer == nil {
		return io.NopCloser(bytes.NewReader(p.data)), nil
	}
	return e.Packer.Open(ctx, *p.layer, p.Descriptor)
}

// write copies the piece's bytes to w; a number of bytes other than the descriptor's is an error.
func (e *Env) write(ctx context.Context, w io.Writer, p piece) error {
	if p.layer == nil {
		_, err := w.Write(p.data)
		return err
	}
	return e.Packer.write(ctx, w, *p.layer, p.Descriptor)
}

// encode writes a manifest or an index, whose field order is that of the specification.
func encode(v any) ([]byte, error) { return json.MarshalIndent(v, "", "  ") }

// layerType translates between the two families of layer media types, of layers that are distributed.
func layerType(oci bool, mediaType string) string {
	switch typeOf(mediaType) {
	case layer.Gzip:
		return pick(oci, ocispec.MediaTypeImageLayerGzip, image.DockerLayerGzip)
	case layer.Zstd:
		return pick(oci, ocispec.MediaTypeImageLayerZstd, image.DockerLayerZstd)
	}
	return pick(oci, ocispec.MediaTypeImageLayer, image.DockerLayer)
}

// typeOf reads the compression off a layer's media type; estargz counts as gzip.
func typeOf(mediaType string) layer.Type {
	switch mediaType {
	case ocispec.MediaTypeImageLayer, image.DockerLayer, image.NondistLayer, image.DockerForeignLayer:
		return layer.Uncompressed
	case ocispec.MediaTypeImageLayerZstd, image.DockerLayerZstd, image.NondistLayerZstd:
		return layer.Zstd
	}
	return layer.Gzip
}

func pick(cond bool, a, b string) string {
	if cond {
		return a
	}
	return b
}

func merge(a, b map[string]string) map[string]string {
	if len(a)+len(b) == 0 {
		return nil
	}
	m := map[string]string{}
	for _, x := range []map[string]string{a, b} {
		for k, v := range x {
			m[k] = v
		}
	}
	return m
}

func ociPlatform(p graph.Platform) *ocispec.Platform {
	return &ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
}
