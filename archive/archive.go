package archive

import (
	"context"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/strictjson"
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

// Archive is an opened set of images. Close it when the last blob is read.
type Archive struct {
	Files
	Format Format
}

// Open opens a directory or a file, or, if location is "", the stream r. A compressed archive, and a stream, is first
// written to a temporary directory.
func Open(ctx context.Context, location string, r io.Reader, temp TempDir) (*Archive, error) {
	if location != "" {
		r = nil
	}
	f, err := openFiles(ctx, location, r, temp)
	if err != nil {
		return nil, err
	}
	return &Archive{Files: f, Format: detect(f)}, nil
}

// Entry is one image of an archive: a document of a layout, or an image of docker save. Exactly one of Desc and Docker is
// set.
type Entry struct {
	Names  []string          // references, in full if the archive says so
	Tag    string            // only a tag, or another short name
	Desc   *image.Descriptor // oci, dir
	Docker *DockerImage      // docker
}

// detect finds out the format. An OCI layout is one even if it has a manifest.json for older loaders.
func detect(f Files) Format {
	switch {
	case has(f, ocispec.ImageLayoutFile) && has(f, ocispec.ImageIndexFile):
		return FormatOCI
	case has(f, "manifest.json"):
		if b, err := ReadFile(f, "manifest.json", registry.MaxManifest); err == nil && strings.HasPrefix(strings.TrimSpace(string(b)), "{") {
			return FormatDir
		}
		return FormatDocker
	case has(f, "repositories"):
		return FormatDocker
	}
	for _, n := range f.Names() {
		if id, ok := strings.CutSuffix(n, "/json"); ok && hexName.MatchString(id) && has(f, id+"/layer.tar") {
			return FormatDocker
		}
	}
	return FormatRootFS
}

// Entries lists the images of an archive.
func (a *Archive) Entries() ([]Entry, error) {
	switch a.Format {
	case FormatOCI:
		return a.ociEntries()
	case FormatDocker:
		return a.dockerEntries()
	case FormatDir:
		raw, err := ReadFile(a, "manifest.json", registry.MaxManifest)
		if err != nil {
			return nil, err
		}
		return []Entry{{Desc: &image.Descriptor{Digest: digest.FromBytes(raw), Size: int64(len(raw))}}}, nil
	case FormatRootFS:
		return nil, diag.Errorf(diag.Invalid, "this is a tar of Files, not of images").WithHint("import it with the format rootfs to make an image of it")
	}
	return nil, diag.Errorf(diag.Invalid, "unknown image format %q", a.Format).WithHint("oci, docker, dir and rootfs are known")
}

// ociEntries reads index.json. Source: image-spec image-layout.md. Docker and containerd write the full reference into an
// annotation of their own and only the tag into the specification's.
func (a *Archive) ociEntries() ([]Entry, error) {
	raw, err := ReadFile(a, ocispec.ImageIndexFile, registry.MaxManifest)
	if err != nil {
		return nil, err
	}
	doc, err := registry.Decode(raw, ocispec.MediaTypeImageIndex)
	if err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "index.json: %w", err)
	}
	var out []Entry
	at := map[graph.Digest]int{}
	for _, d := range doc.Index.Manifests {
		i, ok := at[d.Digest]
		if !ok {
			i = len(out)
			at[d.Digest] = i
			out = append(out, Entry{Desc: &image.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Platform: d.Platform}})
		}
		e := &out[i]
		ref := d.Annotations[ocispec.AnnotationRefName]
		switch full := d.Annotations["io.containerd.image.name"]; {
		case full != "":
			e.Names = append(e.Names, full)
		case strings.ContainsAny(ref, "/:"):
			e.Names = append(e.Names, ref)
		}
		if ref != "" {
			e.Tag = ref
		}
	}
	return out, nil
}

// Blob opens a blob of an image that is no docker image, from offset.
func (a *Archive) Blob(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error) {
	return readFrom(ctx, a.BlobFile, d, offset)
}

// BlobFile is Blob for those who want to read at any place.
func (a *Archive) BlobFile(d image.Descriptor) (File, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, diag.Errorf(diag.Invalid, "invalid digest %q: %w", d.Digest, err)
	}
	name := "blobs/" + d.Digest.Algorithm().String() + "/" + d.Digest.Encoded()
	if a.Format == FormatDir {
		name = d.Digest.Encoded()
	}
	return blobFile(a, name, d)
}

// blobFile opens a file as the blob d.
func blobFile(f Files, name string, d image.Descriptor) (File, error) {
	r, size, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	if d.Size > 0 && size != d.Size {
		r.Close()
		return nil, diag.Errorf(diag.Invalid, "%s has %d bytes, its descriptor says %d", name, size, d.Size)
	}
	return r, nil
}

func readFrom(ctx context.Context, open func(image.Descriptor) (File, error), d image.Descriptor, offset int64) (io.ReadCloser, error) {
	f, err := open(d)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{&Cancelable{ctx, io.NewSectionReader(f, offset, 1<<62-offset)}, f}, nil
}

// Document reads a manifest or an index of a layout.
func (a *Archive) Document(d image.Descriptor) ([]byte, error) {
	name := "blobs/" + d.Digest.Algorithm().String() + "/" + d.Digest.Encoded()
	if a.Format == FormatDir {
		name = "manifest.json"
		if has(a, d.Digest.Encoded()+".manifest.json") {
			name = d.Digest.Encoded() + ".manifest.json"
		}
	}
	raw, err := ReadFile(a, name, registry.MaxManifest)
	if err != nil {
		return nil, err
	}
	if !d.Digest.Algorithm().Available() || d.Digest.Algorithm().FromBytes(raw) != d.Digest {
		return nil, diag.Errorf(diag.Invalid, "the content of %s does not have its digest", name)
	}
	return raw, nil
}

// SplitPath finds the longest part of s that is a file or a directory, and what is said behind it: PATH, PATH:NAME, PATH:TAG,
// PATH@DIGEST or PATH:TAG@DIGEST. The path may have colons and capitals itself.
func SplitPath(s string) (path, ref string, ok bool) {
	for i := len(s); i > 0; i-- {
		switch {
		case i < len(s) && s[i] != ':' && s[i] != '@':
		case !exists(s[:i]):
		case i == len(s):
			return s, "", true
		case s[i] == ':':
			return s[:i], s[i+1:], true
		default:
			return s[:i], s[i:], true
		}
	}
	return "", "", false
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

// Pick finds the image that a reference means: by digest, by name or by tag. The only image is taken if nothing is asked for,
// if it has no name, or for the tag latest, which is what a reference without a tag means.
func Pick(all []Entry, ref string) (Entry, error) {
	name, dig, _ := strings.Cut(ref, "@")
	full, tag := "", name
	if r, err := registry.ParseRef(name); err == nil {
		full = r.String()
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		tag = name[i+1:]
	}
	for _, e := range all {
		if dig != "" && e.Desc != nil && e.Desc.Digest.String() == dig {
			return e, nil
		}
	}
	if dig != "" && len(all) > 0 && all[0].Desc != nil { // inside of an index
		return Entry{Desc: &image.Descriptor{Digest: graph.Digest(dig)}, Tag: tag}, graph.Digest(dig).Validate()
	}
	for _, e := range all {
		for _, n := range e.Names {
			if r, err := registry.ParseRef(n); err == nil && r.String() == full {
				return e, nil
			}
		}
	}
	for _, e := range all {
		if e.Tag != "" && (e.Tag == tag || e.Tag == name) {
			return e, nil
		}
	}
	if len(all) == 1 && (name == "" || dig != "" || tag == "latest" || all[0].Tag == "" && len(all[0].Names) == 0) {
		return all[0], nil
	}
	var names []string
	for _, e := range all {
		names = append(names, e.Names...)
		if e.Tag != "" && !slices.Contains(e.Names, e.Tag) {
			names = append(names, e.Tag)
		}
	}
	return Entry{}, diag.Errorf(diag.NotFound, "%s: the archive has no such image", ref).WithHint("it has: %s", strings.Join(names, ", "))
}

// decodeJSON decodes a small file.
func decodeJSON(f Files, name string, v any) error {
	raw, err := ReadFile(f, name, registry.MaxManifest)
	if err != nil {
		return err
	}
	if err := strictjson.Unmarshal(raw, v); err != nil {
		return diag.Errorf(diag.Invalid, "%s: %w", name, err)
	}
	return nil
}

// Unshuffle returns uncompressed layers, whose digest is their diff_id, in the order of the diff_ids: docker 25.0.0 wrote
// them in a random one. It returns nil if they are in order already, or are not those layers.
func Unshuffle(layers []image.Descriptor, diffIDs []graph.Digest) []image.Descriptor {
	at := map[graph.Digest]image.Descriptor{}
	moved := false
	for i, l := range layers {
		at[l.Digest] = l
		moved = moved || l.Digest != diffIDs[i]
	}
	if !moved {
		return nil
	}
	sorted := make([]image.Descriptor, len(diffIDs))
	for i, d := range diffIDs {
		l, ok := at[d]
		if !ok {
			return nil
		}
		sorted[i] = l
	}
	return sorted
}
