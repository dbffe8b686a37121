package archive

import (
	"encoding/json"
	"maps"
	"runtime"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// containerdName is the annotation that containerd, docker and ctr read an image's full name from.
const containerdName = "io.containerd.image.name"

// OCIFiles lists a layout that holds some sets. Source: image-spec v1.1 image-layout.md.
func OCIFiles(sets []Set) ([]Output, error) {
	var refs []image.Descriptor
	for i := range sets {
		refs = append(refs, references(&sets[i])...)
	}
	return layoutFiles(sets, refs)
}

// references returns the entries of index.json for a set: one per name, with the full name for containerd and docker and
// the tag for everybody else, or one without a name.
func references(s *Set) []image.Descriptor {
	if len(s.Names) == 0 {
		return []image.Descriptor{s.Top}
	}
	var out []image.Descriptor
	for _, n := range s.Names {
		d := s.Top
		d.Annotations = maps.Clone(d.Annotations)
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[containerdName], d.Annotations[ocispec.AnnotationRefName] = n, tagOf(n)
		out = append(out, d)
	}
	return out
}

func tagOf(name string) string {
	if r, err := reference.ParseNormalizedNamed(name); err == nil {
		if t, ok := r.(reference.Tagged); ok {
			return t.Tag()
		}
	}
	return name
}

// archived is an entry of manifest.json.
type archived struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// DockerFiles lists an archive for docker load in the form of Docker 25 and later: an OCI layout and a manifest.json that
// names the same files.
func DockerFiles(sets []Set) ([]Output, error) {
	var entries []archived
	for i := range sets {
		im := sets[i].Local()
		a := archived{Config: blobPath(im.Config.Digest), RepoTags: familiar(sets[i].Names), Layers: []string{}}
		for _, l := range im.Layers {
			a.Layers = append(a.Layers, blobPath(l.Digest))
		}
		entries = append(entries, a)
	}
	files, err := OCIFiles(sets)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(entries)
	return append(files, textFile("manifest.json", raw)), err
}

// Local picks the image that a form which knows no platforms names: this machine's, or the first.
func (s *Set) Local() *Image {
	for i := range s.Images {
		if IsLocal(s.Images[i].Platform) {
			return &s.Images[i]
		}
	}
	return &s.Images[0]
}

// IsLocal reports whether p is this machine's platform.
func IsLocal(p graph.Platform) bool { return p.OS == "linux" && p.Architecture == runtime.GOARCH }

// familiar shortens names as Docker does: app:1 for docker.io/library/app:1.
func familiar(names []string) []string {
	out := []string{}
	for _, n := range names {
		if r, err := reference.ParseNormalizedNamed(n); err == nil {
			n = reference.FamiliarString(r)
		}
		out = append(out, n)
	}
	return out
}

// DirFiles lists a directory of skopeo's dir: transport: blobs named by their hex digits, the manifest apart. It holds one
// image, of one platform. Source: containers/image docs/containers-transports.5.md, directory/directory_dest.go.
func DirFiles(s *Set) ([]Output, error) {
	if len(s.Images) != 1 {
		return nil, diag.Errorf(diag.Unsupported, "a dir: directory holds one platform only").WithHint("choose one with --platform, or use the format oci")
	}
	im := s.Images[0]
	var files []Output
	seen := map[string]bool{}
	for _, b := range append(im.Layers[:len(im.Layers):len(im.Layers)], im.Config) {
		if n := b.Digest.Encoded(); !seen[n] {
			seen[n] = true
			files = append(files, Output{Name: n, Blob: b})
		}
	}
	return append(files, textFile("manifest.json", im.Manifest.Data), textFile("version", []byte("Directory Transport Version: 1.1\n"))), nil
}
