package source

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"runtime"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/store"
)

// ImportOptions say how an archive becomes images of the store.
type ImportOptions struct {
	// Name is the image's reference. If the archive has several images, or tags, its tag is theirs. "" = the archive's
	// own names, or the digest for an image without one.
	Name   string
	Format Format
	// Platform is unpacked at once; the others, or all if it is zero, when they are first used.
	Platform graph.Platform
}

// Import reads images of any format from a directory, a file or, if location is "", from r, and names them in the store.
// Whatever the archive says, the layers have the digests and diff_ids that they are recorded under.
func (im *Images) Import(ctx context.Context, location string, r io.Reader, opt ImportOptions) ([]store.Image, error) {
	a, err := archive.Open(ctx, location, r, im.store.TempDir)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	if opt.Format != FormatAuto {
		a.Format = opt.Format
	}
	if a.Format == FormatRootFS {
		return im.importRootFS(ctx, a, opt)
	}
	all, err := a.Entries()
	if err != nil {
		return nil, err
	}
	var out []store.Image
	for _, e := range all {
		names, err := importNames(e, opt.Name, len(all) > 1)
		if err != nil {
			return out, err
		}
		rec, err := im.importEntry(ctx, a, e, opt.Platform)
		if err != nil {
			return out, err
		}
		recs, err := im.name(ctx, rec, names)
		if err != nil {
			return out, err
		}
		out = append(out, recs...)
	}
	return out, nil
}

// name stores one image under its names; without any, under its digest.
func (im *Images) name(ctx context.Context, rec store.Image, names []string) ([]store.Image, error) {
	if len(names) == 0 {
		id := rec.Platforms[0].Config
		if rec.Index != nil {
			id = rec.Index.Digest
		} else if m := rec.Platforms[0].Manifest; m != nil {
			id = m.Digest
		}
		names = []string{id.String()}
	}
	var out []store.Image
	rec.Updated = time.Now()
	err := im.store.Update(ctx, func(b *store.Batch) error {
		for _, n := range names {
			rec.Name, rec.Made = n, true
			b.Image(n, rec)
			out = append(out, rec)
		}
		return nil
	})
	return out, err
}

// importNames returns the full references of an entry.
func importNames(e archive.Entry, name string, several bool) ([]string, error) {
	raw := e.Names
	if name != "" {
		raw = []string{name}
		if r, err := registry.ParseRef(name); err == nil && e.Tag != "" && e.Docker == nil && (several || r.Tag == "latest") && ocispecTag(e.Tag) {
			raw = []string{r.Name() + ":" + e.Tag}
		} else if several {
			return nil, diag.Errorf(diag.Invalid, "the archive has several images, so one name does not fit").WithHint("leave the name out, or choose one image")
		}
	}
	var out []string
	for _, n := range raw {
		r, err := registry.ParseRef(n)
		if err != nil {
			return nil, err
		}
		out = append(out, r.String())
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// ocispecTag reports whether s is a tag and not a whole reference.
func ocispecTag(s string) bool {
	r, err := registry.ParseRef("x:" + s)
	return err == nil && r.Tag == s
}

// importEntry brings all platforms of an image into the store.
func (im *Images) importEntry(ctx context.Context, a *archive.Archive, e archive.Entry, unpack graph.Platform) (store.Image, error) {
	var rec store.Image
	images, err := im.allPlatforms(ctx, a, e, &rec)
	if err != nil {
		return rec, err
	}
	have := make([]graph.Platform, len(images))
	for i, img := range images {
		have[i] = img.Platform
	}
	best, ok := -1, false
	if unpack.OS != "" {
		if best, ok = image.ChoosePlatform(unpack, have); !ok && len(have) == 1 {
			best = 0
		}
	}
	var last error
	for i, img := range images {
		p := store.PlatformImage{
			Platform: img.Platform, Config: img.ConfigDigest, DiffIDs: img.Config.RootFS.DiffIDs, Blobs: img.Blobs,
			Manifest: img.Manifest, Annotations: img.Annotations,
		}
		if i == best {
			p.Layers, err = im.Layers(ctx, img, 0, "")
		}
		if err == nil {
			err = im.copyBlobs(ctx, img)
		}
		if err != nil && len(images) > 1 && i != best && diag.KindOf(err) == diag.NotFound {
			last, err = err, nil // an archive need not have every platform of its index
			continue
		}
		if err != nil {
			return rec, err
		}
		rec.Platforms = append(rec.Platforms, p)
	}
	if len(rec.Platforms) == 0 {
		return rec, cmp.Or(last, error(diag.Errorf(diag.Invalid, "the archive has an index without images")))
	}
	return rec, nil
}

// allPlatforms describes every image of an entry of which the archive has the documents, and notes the index.
func (im *Images) allPlatforms(ctx context.Context, a *archive.Archive, e archive.Entry, rec *store.Image) ([]*Image, error) {
	if e.Desc == nil {
		img, err := im.archived(ctx, a, e, graph.Platform{})
		return []*Image{img}, err
	}
	raw, err := a.Document(*e.Desc)
	if err != nil {
		return nil, err
	}
	doc, err := registry.Decode(raw, e.Desc.MediaType)
	if err != nil {
		return nil, err
	}
	if doc.Manifest != nil {
		img, err := im.archived(ctx, a, e, graph.Platform{})
		return []*Image{img}, err
	}
	if err := im.keep(ctx, e.Desc.Digest, raw); err != nil {
		return nil, err
	}
	rec.Index = &image.Descriptor{MediaType: doc.MediaType, Digest: e.Desc.Digest, Size: int64(len(raw))}
	var out []*Image
	var last error
	for _, d := range doc.Index.Manifests {
		if d.Platform != nil && d.Platform.OS == "unknown" {
			continue // attestations
		}
		if registry.IsIndex(d.MediaType) {
			return nil, diag.Errorf(diag.Unsupported, "%s is an index of indexes", e.Desc.Digest).WithHint("import one of the inner ones by its digest")
		}
		img, err := im.archived(ctx, a, archive.Entry{Names: e.Names, Tag: e.Tag, Desc: &d}, graph.Platform{})
		if diag.KindOf(err) == diag.NotFound && err != nil {
			last = err
			continue
		}
		if err != nil {
			return nil, err
		}
		img.Digest, img.Index = e.Desc.Digest, rec.Index
		out = append(out, img)
	}
	if len(out) == 0 && last != nil {
		return nil, last
	}
	return out, nil
}

// copyBlobs stores the layers of an image as blobs, verified.
func (im *Images) copyBlobs(ctx context.Context, img *Image) error {
	for _, d := range img.Blobs {
		if err := im.copyBlob(ctx, img.from, d); err != nil {
			return err
		}
	}
	return nil
}

func (im *Images) copyBlob(ctx context.Context, from provider, d image.Descriptor) error {
	im.env.Hold.Blobs(d.Digest)
	if _, ok := im.store.HasBlob(d.Digest); ok {
		return im.prove(ctx, from, d)
	}
	proven := false
	err := registry.Again(ctx, func() error {
		w, err := im.store.NewBlob(ctx, d.Digest)
		if err != nil {
			return err
		}
		defer w.Abort()
		if w.Complete() {
			proven = true
			return im.prove(ctx, from, d)
		}
		if err := im.resumable(ctx, w, from, d.Digest); err != nil {
			return err
		}
		r, err := from.open(ctx, d, w.Offset())
		if err != nil {
			return err
		}
		defer r.Close()
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
		got := w.Digest()
		if _, _, err = w.Commit(ctx); err != nil && got != d.Digest { // nothing of it is kept
			return registry.Blame(r, d.Digest, got)
		}
		return err
	})
	if err != nil || proven || from.place() == "" {
		return err
	}
	return im.env.learn(ctx, sentFact(from.place(), d.Digest))
}

// importRootFS makes an image of one layer of a tar of files.
func (im *Images) importRootFS(ctx context.Context, a *archive.Archive, opt ImportOptions) ([]store.Image, error) {
	t, err := a.Tar()
	if err != nil {
		return nil, err
	}
	h := digest.SHA256.Digester()
	size, err := io.Copy(h.Hash(), &archive.Cancelable{Ctx: ctx, Reader: io.NewSectionReader(t, 0, t.Size())})
	if err != nil {
		return nil, err
	}
	diff := h.Digest()
	p := opt.Platform
	if p.OS == "" {
		p = graph.Platform{OS: "linux", Architecture: runtime.GOARCH}
	}
	cfg := &image.Config{
		OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, RootFS: image.RootFS{Type: "layers", DiffIDs: []digest.Digest{diff}},
		History: []image.History{{Comment: "imported from a root file system"}},
		Config:  image.RunConfig{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
	}
	raw, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	d := image.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: diff, Size: size}
	img := &Image{Name: opt.Name, Config: cfg, ConfigDigest: digest.FromBytes(raw), Platform: p, Blobs: []image.Descriptor{d}, from: whole{t}}
	if err := im.keep(ctx, img.ConfigDigest, raw); err != nil {
		return nil, err
	}
	names, err := importNames(archive.Entry{}, opt.Name, false)
	if err != nil {
		return nil, err
	}
	layers, err := im.Layers(ctx, img, 0, "")
	if err == nil {
		err = im.copyBlobs(ctx, img) // a layer that is here already may have lost its blob
	}
	if err != nil {
		return nil, err
	}
	rec := store.Image{Platforms: []store.PlatformImage{{Platform: p, Config: img.ConfigDigest, Layers: layers, DiffIDs: cfg.RootFS.DiffIDs, Blobs: img.Blobs}}}
	return im.name(ctx, rec, names)
}

// whole provides the tar itself as the only blob.
type whole struct{ t *io.SectionReader }

func (whole) place() string { return "" }

func (w whole) open(ctx context.Context, _ image.Descriptor, offset int64) (io.ReadCloser, error) {
	return io.NopCloser(&archive.Cancelable{Ctx: ctx, Reader: io.NewSectionReader(w.t, offset, w.t.Size()-offset)}), nil
}
