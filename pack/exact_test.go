package pack

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
)

// document writes a manifest of one layer as it would come from anybody, and returns the image.
func document(t *testing.T, m ocispec.Manifest, config, layer string) archive.Image {
	t.Helper()
	c, l := archive.Bytes(m.Config.MediaType, []byte(config)), archive.Bytes(m.MediaType, []byte(layer))
	l.MediaType = "application/vnd.example.part+zstd"
	m.SchemaVersion, m.Config.Digest, m.Config.Size, m.Layers = 2, c.Digest, c.Size, []image.Descriptor{l.Descriptor}
	raw, err := json.MarshalIndent(m, "", " ") // spaces that no encoder of ours writes
	if err != nil {
		t.Fatal(err)
	}
	return archive.Image{Config: c, Layers: []archive.Blob{l}, Manifest: archive.Bytes(ocispec.MediaTypeImageManifest, raw)}
}

// What is copied keeps its bytes, whatever it is: attestations, artifacts of unknown types, documents without a type, indexes of
// one platform and of indexes. It goes from a registry to a layout, from there to an archive and back to a registry.
func TestExactCopy(t *testing.T) {
	artifact := document(t, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/x", Config: image.Descriptor{MediaType: ocispec.MediaTypeEmptyJSON}}, "{}", "artifact")
	untyped := document(t, ocispec.Manifest{Config: image.Descriptor{MediaType: "application/vnd.example.config"}}, "{}", "untyped")
	inner, err := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []image.Descriptor{artifact.Manifest.Descriptor}})
	if err != nil {
		t.Fatal(err)
	}
	nested := archive.Image{Manifest: archive.Bytes(ocispec.MediaTypeImageIndex, inner)}
	note := untyped.Manifest.Descriptor
	note.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	note.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": artifact.Manifest.Digest.String()}
	for name, list := range map[string][]image.Descriptor{
		"artifact": nil,
		"one":      {artifact.Manifest.Descriptor},
		"attested": {artifact.Manifest.Descriptor, note},
		"nested":   {nested.Manifest.Descriptor, note},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			w := workspace(t, Options{})
			set := archive.Set{Images: []archive.Image{artifact, untyped, nested}, Top: artifact.Manifest.Descriptor, Names: []string{s.host + "/a:1"}}
			if list == nil {
				set.Images = set.Images[:1]
			} else {
				raw, err := json.Marshal(ocispec.Index{Manifests: list, Annotations: map[string]string{"x": "y"}})
				if err != nil {
					t.Fatal(err)
				}
				x := archive.Bytes(ocispec.MediaTypeImageIndex, raw)
				set.Index, set.Top = &x, x.Descriptor
			}
			if err := w.push(t.Context(), &set, nil, &Receipt{}); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			layout, file := filepath.Join(dir, "lay"), filepath.Join(dir, "a.tar")
			from := set.Names[0]
			for _, to := range []Target{{Format: OCI, Path: layout}, {Format: OCIArchive, Path: file}, {Push: true, Names: []string{s.host + "/b:1"}}} {
				src, err := w.Open(t.Context(), from)
				if err != nil || !src.Exact() {
					t.Fatal(from, err)
				}
				to.Exact = src
				r, err := w.Write(t.Context(), nil, to)
				if err != nil || r.Digest != set.Top.Digest {
					t.Fatalf("%s to %+v: %v %v, want %s", from, to, r, err, set.Top.Digest)
				}
				if from = to.Path; to.Push {
					from = to.Names[0]
				}
			}
			ref := mustRef(t, from)
			raw, err := w.opt.Registry.Manifest(t.Context(), ref, image.Descriptor{})
			if err != nil || digest.FromBytes(raw) != set.Top.Digest {
				t.Errorf("%v %v", digest.FromBytes(raw), err)
			}
			for _, x := range set.Images[:1] {
				if ok, err := w.opt.Registry.Exists(t.Context(), ref, x.Layers[0].Descriptor); err != nil || !ok {
					t.Errorf("%s: %v %v", x.Layers[0].Digest, ok, err)
				}
			}
		})
	}
}

func TestRebaseMovesAllSettings(t *testing.T) {
	set := func(keys ...string) map[string]struct{} {
		var m map[string]struct{}
		for _, k := range keys {
			m = put(m, k)
		}
		return m
	}
	from := image.RunConfig{ExposedPorts: set("80/tcp"), Volumes: set("/old"), Shell: []string{"a"}, OnBuild: []string{"RUN a"}, Healthcheck: &image.Healthcheck{Test: []string{"CMD", "a"}}}
	to := image.RunConfig{ExposedPorts: set("443/tcp"), Volumes: set("/new"), Shell: []string{"b"}, OnBuild: []string{"RUN b"}, Healthcheck: &image.Healthcheck{Test: []string{"CMD", "b"}}}
	own := from
	own.ExposedPorts, own.Volumes = set("80/tcp", "9000/tcp"), set("/old", "/mine")
	base := func(c image.RunConfig) *Image {
		im := Assemble(nil, nil, Change{Platform: graph.Platform{OS: "linux", Architecture: "amd64"}})
		im.Config.Config = c
		return im
	}
	im, err := Rebase(base(own), base(from), base(to))
	if err != nil {
		t.Fatal(err)
	}
	want := to
	want.ExposedPorts, want.Volumes = set("443/tcp", "9000/tcp"), set("/new", "/mine")
	got, _ := json.Marshal(im.Config.Config)
	wanted, _ := json.Marshal(want)
	if string(got) != string(wanted) {
		t.Errorf("%s, want %s", got, wanted)
	}
	own.Shell, own.Healthcheck = []string{"own"}, &image.Healthcheck{Test: []string{"NONE"}}
	if im, err = Rebase(base(own), base(from), base(to)); err != nil || im.Config.Config.Shell[0] != "own" || im.Config.Config.Healthcheck.Test[0] != "NONE" {
		t.Errorf("the image's own settings: %+v %v", im, err)
	}
}

// The name of a directory of the machine is not part of the image.
func TestNameOfSourceIsNotInTheImage(t *testing.T) {
	w := workspace(t, Options{})
	var digests []graph.Digest
	for _, name := range []string{"one", "two"} {
		l := dirLayer(t, w, name, map[string]string{"f": "1"})
		r, err := w.Write(t.Context(), []*Image{Assemble(nil, []*Layer{l}, Change{})}, Target{Format: OCI, Path: filepath.Join(t.TempDir(), "o")})
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, r.Digest)
	}
	if digests[0] != digests[1] {
		t.Errorf("%v", digests)
	}
}

func mustRef(t *testing.T, name string) registry.Ref {
	t.Helper()
	ref, err := registry.ParseRef(name)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}
