package pack

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/outfile"
	"github.com/strata-build/strata/strictjson"
)

// Format is how an image is written.
type Format string

const (
	OCI           Format = "oci"            // an OCI layout, as a directory
	OCIArchive    Format = "oci-archive"    // an OCI layout, as a tar
	DockerArchive Format = "docker-archive" // what docker load reads since 1.10
	DockerLegacy  Format = "docker-legacy"  // what every docker load reads
	Dir           Format = "dir"            // skopeo's dir:
)

// Formats are the formats of files.
func Formats() []string {
	return []string{string(OCIArchive), string(OCI), string(DockerArchive), string(DockerLegacy), string(Dir)}
}

// Target is where and how images are written.
type Target struct {
	Format Format
	Path   string    // a file, or a directory for OCI and Dir
	Out    io.Writer // instead of Path, for archives
	Push   bool      // send it to the registries that Names name; Format and Path are not used
	Names  []string  // full or short references. The tag "auto" stands for one made of the image's digest
	// Compression of all layers. nil keeps what exists, and takes gzip for new ones; docker's archives are not compressed.
	Compression *layer.Compression
	// Reuse lists images whose blobs are taken for layers with the same diff_id, so that nothing is compressed twice.
	Reuse []*Image
	Index *archive.Blob // kept if it lists exactly what is written
	Exact *Source       // copied as it is, instead of images; no other setting changes anything
}

// Receipt says what was written.
type Receipt struct {
	Digest graph.Digest `json:"digest"`           // of the index or manifest
	Config graph.Digest `json:"config,omitempty"` // of the configuration, which is the image's id; "" of several
	Names  []string     `json:"names"`            // with the tag that "auto" became
	Sent   int64        `json:"sent"`             // bytes that went to a registry
	Kept   int64        `json:"kept"`             // bytes that it had already
	Layers []Written    `json:"layers"`           // of all images, bottom first
}

// Written is one layer of what was written.
type Written struct {
	Name   string       `json:"name,omitempty"`
	DiffID graph.Digest `json:"diffID"`
	Digest graph.Digest `json:"digest"`
	Size   int64        `json:"size"`
	Sent   bool         `json:"sent"` // to a registry, which did not have it
}

// Write writes images of one name, one for each platform.
//
//	r, err := w.Write(ctx, []*pack.Image{im}, pack.Target{Format: pack.OCIArchive, Path: "app.tar", Names: []string{"app:1"}})
func (w *Workspace) Write(ctx context.Context, images []*Image, t Target) (*Receipt, error) {
	if t.Exact != nil {
		return w.copyExact(ctx, t)
	}
	if len(images) == 0 {
		return nil, diag.Errorf(diag.Invalid, "there is no image to write")
	}
	p := &packing{w: w, t: t, known: map[graph.Digest]*Layer{}}
	if t.Format == OCI && !t.Push {
		var err error
		if p.layout, err = outfile.OpenDir(t.Path); err != nil {
			return nil, err
		}
		defer p.layout.Close()
		if err := p.layout.MkdirAll(blobDir); err != nil {
			return nil, diag.Errorf(diag.Denied, "cannot write to %s: %w", t.Path, err)
		}
	}
	for _, im := range t.Reuse {
		for _, l := range im.Layers {
			if l.diffID != "" && l.blob.Digest != "" {
				p.known[l.diffID] = l
			}
		}
	}
	var set archive.Set
	r := &Receipt{}
	for _, im := range images {
		x, err := p.image(ctx, im, r)
		if err != nil {
			return nil, err
		}
		set.Images = append(set.Images, x)
	}
	if err := w.checked(ctx); err != nil {
		return nil, err
	}
	if err := p.index(&set); err != nil {
		return nil, err
	}
	r.Digest = set.Top.Digest
	if len(set.Images) == 1 {
		r.Config = set.Images[0].Config.Digest
	}
	var err error
	if r.Names, err = fullNames(t.Names, r.Digest); err != nil {
		return nil, err
	}
	set.Names = r.Names
	if t.Push {
		return r, w.push(ctx, &set, images, r)
	}
	return r, p.files(ctx, &set)
}

// copyExact writes what a source has as it is.
func (w *Workspace) copyExact(ctx context.Context, t Target) (*Receipt, error) {
	set, err := t.Exact.set(ctx)
	if err != nil {
		return nil, err
	}
	r := &Receipt{Digest: set.Top.Digest}
	for _, x := range set.Images {
		for _, l := range x.Layers {
			r.Layers = append(r.Layers, Written{Digest: l.Digest, Size: l.Size})
		}
	}
	if len(set.Images) == 1 && set.Index == nil {
		r.Config = set.Images[0].Config.Digest
	}
	if r.Names, err = fullNames(t.Names, r.Digest); err != nil {
		return nil, err
	}
	set.Names = r.Names
	if t.Push {
		return r, w.push(ctx, set, []*Image{{Layers: []*Layer{{at: t.Exact.exact.at}}}}, r)
	}
	p := &packing{w: w, t: t}
	return r, p.files(ctx, set)
}

// packing is one Write.
type packing struct {
	w     *Workspace
	t     Target
	known map[graph.Digest]*Layer

	layout *outfile.Dir // whose blobDir the blobs end up in, if they can be made there
}

// blobDir is where an OCI layout has its blobs.
const blobDir = "blobs/sha256"

func (p *packing) docker() bool {
	return !p.t.Push && (p.t.Format == DockerArchive || p.t.Format == DockerLegacy)
}

// each runs f for every layer, as many at a time as there are processors. The first error ends it.
func (w *Workspace) each(ctx context.Context, layers []*Layer, f func(*Layer, int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	for i, l := range layers {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return f(l, i)
		})
	}
	return g.Wait()
}

func (p *packing) image(ctx context.Context, im *Image, r *Receipt) (archive.Image, error) {
	out := archive.Image{Platform: im.Platform, Layers: make([]archive.Blob, len(im.Layers))}
	err := p.w.each(ctx, im.Layers, func(l *Layer, i int) (err error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if out.Layers[i], err = p.layer(ctx, l); err != nil {
			return diag.Errorf(diag.KindOf(err), "layer %d: %w", i+1, err)
		}
		return nil
	})
	if err != nil {
		return out, err
	}
	diffs := make([]graph.Digest, len(im.Layers))
	for i, l := range im.Layers {
		diffs[i] = l.diffID
		b := out.Layers[i]
		r.Layers = append(r.Layers, Written{Name: l.Name, DiffID: l.diffID, Digest: b.Digest, Size: b.Size})
	}
	conf := im.rawConfig
	if conf == nil || !slices.Equal(diffs, im.Config.RootFS.DiffIDs) {
		if conf, err = finished(im.Config, diffs).Encode(); err != nil {
			return out, diag.Errorf(diag.Invalid, "the image's configuration: %w", err)
		}
	}
	if im.manifest != nil && string(conf) == string(im.rawConfig) && im.unchanged(out.Layers) {
		out.Config, out.Manifest = archive.Bytes(ocispec.MediaTypeImageConfig, conf), *im.manifest
		out.Config.MediaType = configType(im.manifest.Data)
	} else {
		out.Config = archive.Bytes(ocispec.MediaTypeImageConfig, conf)
		for i := range out.Layers {
			t, _ := layer.TypeOf(out.Layers[i].MediaType)
			if out.Layers[i].MediaType, err = layer.MediaType(t, false); err != nil {
				return out, err
			}
		}
		if out.Manifest, err = manifest(im, &out); err != nil {
			return out, err
		}
	}
	pl := im.Platform
	out.Manifest.Platform = &ocispec.Platform{OS: pl.OS, Architecture: pl.Architecture, Variant: pl.Variant, OSVersion: pl.OSVersion, OSFeatures: pl.OSFeatures}
	return out, nil
}

func finished(c *image.Config, diffs []graph.Digest) *image.Config {
	extra := c.Extra
	c = c.Clone()
	c.Extra = extra
	c.RootFS = image.RootFS{Type: "layers", DiffIDs: diffs}
	c.History = image.MatchHistory(c.History, len(diffs), 0)
	return c
}

// unchanged reports whether the image's own manifest names exactly these layers.
func (im *Image) unchanged(layers []archive.Blob) bool {
	var m ocispec.Manifest
	return strictjson.Unmarshal(im.manifest.Data, &m) == nil && maps.Equal(m.Annotations, im.Annotations) &&
		slices.EqualFunc(m.Layers, layers, func(d image.Descriptor, b archive.Blob) bool {
			return d.Digest == b.Digest && maps.Equal(d.Annotations, b.Annotations)
		})
}

func configType(manifest []byte) string {
	var m ocispec.Manifest
	_ = strictjson.Unmarshal(manifest, &m) // it was decoded before
	return m.Config.MediaType
}

func manifest(im *Image, x *archive.Image) (archive.Blob, error) {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: x.Config.Descriptor,
		Layers: []image.Descriptor{}, Annotations: im.Annotations,
	}
	for _, l := range x.Layers {
		m.Layers = append(m.Layers, l.Descriptor)
	}
	raw, err := json.MarshalIndent(m, "", "  ")
	return archive.Bytes(m.MediaType, raw), err
}

// index makes the index of several images, or of one that came out of one.
func (p *packing) index(set *archive.Set) error {
	set.Top = set.Images[0].Manifest.Descriptor
	if len(set.Images) == 1 {
		return nil
	}
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, im := range set.Images {
		idx.Manifests = append(idx.Manifests, im.Manifest.Descriptor)
	}
	if p.t.Index != nil {
		var old ocispec.Index
		if strictjson.Unmarshal(p.t.Index.Data, &old) == nil && slices.EqualFunc(old.Manifests, idx.Manifests, func(a, b image.Descriptor) bool { return a.Digest == b.Digest }) {
			set.Index, set.Top = p.t.Index, p.t.Index.Descriptor
			return nil
		}
	}
	raw, err := json.MarshalIndent(idx, "", "  ")
	if err != nil {
		return err
	}
	x := archive.Bytes(idx.MediaType, raw)
	set.Index, set.Top = &x, x.Descriptor
	return nil
}

// files writes the set to files.
func (p *packing) files(ctx context.Context, set *archive.Set) error {
	var files []archive.Output
	var err error
	switch p.t.Format {
	case OCI, OCIArchive:
		files, err = archive.OCIFiles([]archive.Set{*set})
	case DockerArchive:
		files, err = archive.DockerFiles([]archive.Set{*set})
	case DockerLegacy:
		files, err = archive.LegacyFiles([]archive.Set{*set})
	case Dir:
		files, err = archive.DirFiles(set)
	default:
		err = diag.Errorf(diag.Invalid, "no such format: %q", p.t.Format).WithHint("it must be one of %s", strings.Join(Formats(), ", "))
	}
	if err != nil {
		return err
	}
	if p.t.Format == OCI || p.t.Format == Dir {
		return archive.WriteDir(ctx, p.t.Path, files)
	}
	if p.t.Out != nil {
		return archive.WriteTar(ctx, p.t.Out, files)
	}
	return WriteFile(p.t.Path, func(out io.Writer) error { return archive.WriteTar(ctx, out, files) })
}

// WriteFile makes an archive of what f writes; what goes to a name that ends in .gz or .zst is compressed.
func WriteFile(path string, f func(io.Writer) error) error {
	return outfile.Write(path, func(out io.Writer) error { return compressed(out, path, f) })
}

func compressed(out io.Writer, path string, f func(io.Writer) error) error {
	c := layer.Compression{}
	switch filepath.Ext(path) {
	case ".gz", ".tgz":
		c.Type = layer.Gzip
	case ".zst":
		c.Type = layer.Zstd
	default:
		return f(out)
	}
	z, err := layer.NewCompressor(out, c)
	if err != nil {
		return err
	}
	err = f(z)
	if cerr := z.Close(); err == nil {
		err = cerr
	}
	return err
}
