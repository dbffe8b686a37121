package source

import (
	"context"
	"encoding/json"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
)

// Format is a way to keep images in files.
type Format string

const (
	FormatAuto   Format = ""       // whatever it is
	FormatOCI    Format = "oci"    // OCI layout, as a directory or a tar; docker save since 25
	FormatDocker Format = "docker" // docker save up to 24: manifest.json, or only json and layer.tar per layer
	FormatDir    Format = "dir"    // skopeo's dir:
	FormatRootFS Format = "rootfs" // a tar of a root file system
)

// archive is an opened set of images.
type archive struct {
	files
	format Format
}

// entry is one image of an archive: a document of a layout, or an image of docker save.
type entry struct {
	names  []string          // references, in full if the archive says so
	tag    string            // only a tag, or another short name
	desc   *image.Descriptor // oci, dir
	docker *dockerImage      // docker
}

// detect finds out the format. An OCI layout is one even if it has a manifest.json for older loaders.
func detect(f files) Format {
	switch {
	case has(f, ocispec.ImageLayoutFile) && has(f, ocispec.ImageIndexFile):
		return FormatOCI
	case has(f, "manifest.json"):
		if b, err := readFile(f, "manifest.json", registry.MaxManifest); err == nil && strings.HasPrefix(strings.TrimSpace(string(b)), "{") {
			return FormatDir
		}
		return FormatDocker
	case has(f, "repositories"):
		return FormatDocker
	}
	for _, n := range f.names() {
		if id, ok := strings.CutSuffix(n, "/json"); ok && hexName.MatchString(id) && has(f, id+"/layer.tar") {
			return FormatDocker
		}
	}
	return FormatRootFS
}

// entries lists the images of an archive.
func (a *archive) entries() ([]entry, error) {
	switch a.format {
	case FormatOCI:
		return a.ociEntries()
	case FormatDocker:
		return a.dockerEntries()
	case FormatDir:
		raw, err := readFile(a, "manifest.json", registry.MaxManifest)
		if err != nil {
			return nil, err
		}
		return []entry{{desc: &image.Descriptor{Digest: digest.FromBytes(raw), Size: int64(len(raw))}}}, nil
	case FormatRootFS:
		return nil, diag.Errorf(diag.Invalid, "this is a tar of files, not of images").WithHint("import it with the format rootfs to make an image of it")
	}
	return nil, diag.Errorf(diag.Invalid, "unknown image format %q", a.format).WithHint("oci, docker, dir and rootfs are known")
}

// ociEntries reads index.json. Source: image-spec image-layout.md. Docker and containerd write the full reference into an
// annotation of their own and only the tag into the specification's.
func (a *archive) ociEntries() ([]entry, error) {
	raw, err := readFile(a, ocispec.ImageIndexFile, registry.MaxManifest)
	if err != nil {
		return nil, err
	}
	doc, err := registry.Decode(raw, ocispec.MediaTypeImageIndex)
	if err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "index.json: %w", err)
	}
	var out []entry
	at := map[graph.Digest]int{}
	for _, d := range doc.Index.Manifests {
		i, ok := at[d.Digest]
		if !ok {
			i = len(out)
			at[d.Digest] = i
			out = append(out, entry{desc: &image.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Platform: d.Platform}})
		}
		e := &out[i]
		ref := d.Annotations[ocispec.AnnotationRefName]
		switch full := d.Annotations["io.containerd.image.name"]; {
		case full != "":
			e.names = append(e.names, full)
		case strings.ContainsAny(ref, "/:"):
			e.names = append(e.names, ref)
		}
		if ref != "" {
			e.tag = ref
		}
	}
	return out, nil
}

// blobs is an archive as a provider of blobs that are named by digest.
type blobs struct{ a *archive }

func (b blobs) open(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, diag.Errorf(diag.Invalid, "invalid digest %q: %w", d.Digest, err)
	}
	name := "blobs/" + d.Digest.Algorithm().String() + "/" + d.Digest.Encoded()
	if b.a.format == FormatDir {
		name = d.Digest.Encoded()
	}
	return openAt(ctx, b.a, name, d, offset)
}

// openAt opens a file as the blob d, from offset.
func openAt(ctx context.Context, f files, name string, d image.Descriptor, offset int64) (io.ReadCloser, error) {
	r, size, err := f.open(name)
	if err != nil {
		return nil, err
	}
	if d.Size > 0 && size != d.Size {
		r.Close()
		return nil, diag.Errorf(diag.Invalid, "%s has %d bytes, its descriptor says %d", name, size, d.Size)
	}
	return struct {
		io.Reader
		io.Closer
	}{&cancelable{ctx, io.NewSectionReader(r, offset, size-offset)}, r}, nil
}

// document reads a manifest or an index of a layout.
func (b blobs) document(d image.Descriptor) ([]byte, error) {
	name := "blobs/" + d.Digest.Algorithm().String() + "/" + d.Digest.Encoded()
	if b.a.format == FormatDir {
		name = "manifest.json"
		if has(b.a, d.Digest.Encoded()+".manifest.json") {
			name = d.Digest.Encoded() + ".manifest.json"
		}
	}
	raw, err := readFile(b.a, name, registry.MaxManifest)
	if err != nil {
		return nil, err
	}
	if !d.Digest.Algorithm().Available() || d.Digest.Algorithm().FromBytes(raw) != d.Digest {
		return nil, diag.Errorf(diag.Invalid, "the content of %s does not have its digest", name)
	}
	return raw, nil
}

// image reads one image of an archive for a platform.
func (im *Images) archived(ctx context.Context, a *archive, e entry, p graph.Platform) (*Image, error) {
	if e.docker != nil {
		return im.dockerImage(ctx, a, e)
	}
	name := e.tag
	if len(e.names) > 0 {
		name = e.names[0]
	}
	if name == "" {
		name = e.desc.Digest.String()
	}
	b := blobs{a}
	read := func(d image.Descriptor) ([]byte, error) {
		raw, err := b.document(d)
		if err != nil {
			return nil, err
		}
		return raw, im.keep(ctx, d.Digest, raw)
	}
	img, err := im.describe(ctx, &Image{Name: name, Digest: e.desc.Digest, from: b}, *e.desc, describing{p, read})
	if err == nil {
		unshuffle(img)
	}
	return img, err
}

// unshuffle puts uncompressed layers, whose digest is their diff_id, into the order of the configuration: docker 25.0.0
// wrote them in a random one. The manifest is then no longer that of the image.
func unshuffle(img *Image) {
	diffs := img.Config.RootFS.DiffIDs
	at := map[graph.Digest]image.Descriptor{}
	moved := false
	for i, l := range img.Blobs {
		at[l.Digest] = l
		moved = moved || l.Digest != diffs[i]
	}
	if !moved {
		return
	}
	sorted := make([]image.Descriptor, len(diffs))
	for i, d := range diffs {
		l, ok := at[d]
		if !ok {
			return
		}
		sorted[i] = l
	}
	img.Blobs, img.Manifest, img.Index, img.Digest = sorted, nil, nil, ""
}

// pick finds the image that a reference means: by digest, by name or by tag; the only one if nothing is asked for.
func pick(all []entry, ref string) (entry, error) {
	name, dig, _ := strings.Cut(ref, "@")
	full := ""
	tag := name
	if r, err := registry.ParseRef(name); err == nil {
		full, tag = r.String(), r.Tag
	}
	for _, e := range all {
		if dig != "" && e.desc != nil && e.desc.Digest.String() == dig {
			return e, nil
		}
	}
	if dig != "" && len(all) > 0 && all[0].desc != nil { // inside of an index
		return entry{desc: &image.Descriptor{Digest: graph.Digest(dig)}, tag: tag}, graph.Digest(dig).Validate()
	}
	for _, e := range all {
		for _, n := range e.names {
			if r, err := registry.ParseRef(n); err == nil && r.String() == full {
				return e, nil
			}
		}
	}
	for _, e := range all {
		if e.tag != "" && (e.tag == tag || e.tag == name) {
			return e, nil
		}
	}
	if len(all) == 1 {
		return all[0], nil
	}
	var names []string
	for _, e := range all {
		names = append(names, append(e.names, e.tag)...)
	}
	return entry{}, diag.Errorf(diag.NotFound, "%s: the archive has no such image", ref).WithHint("it has: %s", strings.Join(names, ", "))
}

// decodeJSON decodes a small file.
func decodeJSON(f files, name string, v any) error {
	raw, err := readFile(f, name, registry.MaxManifest)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return diag.Errorf(diag.Invalid, "%s: %w", name, err)
	}
	return nil
}
