package export

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// manifestOf exports an OCI layout and returns its only manifest and the descriptor that names it.
func manifestOf(t *testing.T, env *Env, set *Set, attrs ...string) (m ocispec.Manifest, top ocispec.Descriptor) {
	t.Helper()
	c := &client{}
	e := *env
	e.Session = c
	export(t, &e, set, output("oci", attrs...))
	files := untar(t, c.buf.Bytes())
	var idx ocispec.Index
	if err := json.Unmarshal(files["index.json"], &idx); err != nil || len(idx.Manifests) != 1 {
		t.Fatalf("%v: %s", err, files["index.json"])
	}
	top = idx.Manifests[0]
	if err := json.Unmarshal(files["blobs/sha256/"+top.Digest.Encoded()], &m); err != nil {
		t.Fatal(err)
	}
	return m, top
}

// Two base images may have the same layer in different blobs: what is built on one has its blob, made again if it is gone.
func TestBaseImagesOwnBlobs(t *testing.T) {
	s := openStore(t)
	set := twoLayers(t, s)
	env := testEnv(s, nil)
	one, _ := manifestOf(t, env, set, "compression=zstd", "compression-level=0")
	two, _ := manifestOf(t, env, set, "compression-level=9")
	if one.Layers[0].Digest == two.Layers[0].Digest {
		t.Fatal("both forms are the same")
	}
	if _, err := s.GC(t.Context(), store.Policy{All: true}); err != nil {
		t.Fatal(err)
	}
	for _, base := range []ocispec.Manifest{one, two} {
		set.Images[0].BaseLayers, set.Images[0].BaseBlobs = 1, []graph.Digest{base.Layers[0].Digest}
		for range 2 {
			m, _ := manifestOf(t, env, set)
			if m.Layers[0].Digest != base.Layers[0].Digest || m.Layers[0].MediaType != base.Layers[0].MediaType {
				t.Errorf("the base's layer is %v, want %v", m.Layers[0], base.Layers[0])
			}
			if m.Layers[1].MediaType != ocispec.MediaTypeImageLayerGzip {
				t.Errorf("the other layer is of type %s", m.Layers[1].MediaType)
			}
		}
	}
	m, _ := manifestOf(t, env, set, "force-compression=true")
	if m.Layers[0].Digest == one.Layers[0].Digest || m.Layers[0].Digest == two.Layers[0].Digest {
		t.Error("compression was forced, but the base's blob was kept")
	}
}

func TestStoredLayers(t *testing.T) {
	s := openStore(t)
	set := twoLayers(t, s)
	plain, _ := manifestOf(t, testEnv(s, nil), set, "compression=uncompressed", "force-compression=true")
	stored, _ := manifestOf(t, testEnv(s, nil), set, "compression-level=0")
	if l := stored.Layers[0]; l.MediaType != ocispec.MediaTypeImageLayerGzip || l.Size <= plain.Layers[0].Size {
		t.Errorf("a stored layer is %v, its tar has %d bytes", l, plain.Layers[0].Size)
	}
}

func TestWhenItWasMade(t *testing.T) {
	s := openStore(t)
	_, top := manifestOf(t, testEnv(s, nil), twoLayers(t, s))
	if got, want := top.Annotations[ocispec.AnnotationCreated], epoch.Format(time.RFC3339); got != want {
		t.Errorf("created %q, want %q", got, want)
	}
	_, top = manifestOf(t, testEnv(s, nil), twoLayers(t, s), "annotation-manifest-descriptor.org.opencontainers.image.created=then")
	if got := top.Annotations[ocispec.AnnotationCreated]; got != "then" {
		t.Errorf("created %q, though the user said when", got)
	}
}

// Rows of the base image keep their times, though they are newer than the epoch; others do not.
func TestBaseHistoryStays(t *testing.T) {
	s := openStore(t)
	set := twoLayers(t, s)
	im := &set.Images[0]
	later := epoch.Add(time.Hour)
	im.Config.History[0].Created, im.Config.History[1].Created = &later, &later
	im.BaseLayers, im.BaseHistory = 1, []image.History{im.Config.History[0]}
	r := export(t, testEnv(s, nil), set, output("image", "name=a"))
	raw, err := readBlob(t.Context(), s, graph.Digest(r.Metadata["containerimage.config.digest"]))
	if err != nil {
		t.Fatal(err)
	}
	var c image.Config
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	for i, want := range []time.Time{later, epoch, epoch} {
		if got := c.History[i].Created; got == nil || !got.Equal(want) {
			t.Errorf("row %d: %v, want %v", i, got, want)
		}
	}
	if !c.Created.Equal(epoch) {
		t.Errorf("created %v", c.Created)
	}
	// As BuildKit writes it: a program that makes the same image makes the same bytes.
	if want := `{"architecture":"amd64","config":{"Env":["PATH=/bin"],"Cmd":["/bin/sh"]},"created":"2023-11-14T22:13:20Z","history":[`; !strings.HasPrefix(string(raw), want) {
		t.Errorf("%s", raw)
	}
}

// A layer that may not be distributed stays at its maker's if that is wanted, and otherwise is a layer like others.
func TestForeignLayers(t *testing.T) {
	s := openStore(t)
	set := twoLayers(t, s)
	ids, _ := set.Images[0].Tree.Layers()
	desc := pulledLayer(t, s, ids[0])
	info, err := s.Layer(ids[0])
	if err != nil {
		t.Fatal(err)
	}
	desc.MediaType, desc.URLs = image.DockerForeignGzip, []string{"https://example.com/layer"}
	if err := s.Update(t.Context(), func(b *store.Batch) error { b.Variant(info.DiffID, desc); return nil }); err != nil {
		t.Fatal(err)
	}
	host := testRegistry(t)
	for _, c := range []struct {
		attrs []string
		want  types.MediaType
		sent  bool
	}{
		{[]string{"prefer-nondist-layers=true"}, image.NondistLayerGzip, false},
		{[]string{"prefer-nondist-layers=true", "oci-mediatypes=false"}, image.DockerForeignGzip, false},
		{nil, types.OCILayer, true},
		{[]string{"oci-mediatypes=false"}, types.DockerLayer, true},
	} {
		repo := host + "/r" + strings.Join(strings.FieldsFunc(strings.Join(c.attrs, ""), func(r rune) bool { return r == '=' || r == '-' }), "")
		r := export(t, testEnv(s, nil), set, output("image", append(c.attrs, "push=true", "name="+repo)...))
		raw := get(t, "http://"+strings.Replace(repo, host, host+"/v2", 1)+"/manifests/"+r.Descriptor.Digest.String(), 200)
		var m ocispec.Manifest
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		if l := m.Layers[0]; l.MediaType != string(c.want) || l.Digest != desc.Digest || slices.Equal(l.URLs, desc.URLs) == c.sent {
			t.Errorf("%v: %+v", c.attrs, l)
		}
		status := 404
		if c.sent {
			status = 200
		}
		get(t, "http://"+strings.Replace(repo, host, host+"/v2", 1)+"/blobs/"+desc.Digest.String(), status)
	}
}

func get(t *testing.T, url string, status int) []byte {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != status {
		t.Errorf("%s: %s, want %d", url, resp.Status, status)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCompatibilityVersions(t *testing.T) {
	s := openStore(t)
	st := tree.NewStack(s, []store.LayerID{addLayer(t, s, map[string]string{"a": "a"})})
	defer st.Release()
	set := &Set{Images: []Image{{Platform: amd64, Config: testConfig(amd64, "COPY a /"), Tree: st}}}
	for version, want := range map[int]string{0: ocispec.MediaTypeImageManifest, Compat013: image.DockerManifest, Compat015: image.DockerManifest, Compat031: ocispec.MediaTypeImageManifest} {
		env := testEnv(s, nil)
		env.Compatibility = version
		if r := export(t, env, set, output("image", "name=a", "manifest=true")); r.Descriptor.MediaType != want {
			t.Errorf("version %d: image of type %s", version, r.Descriptor.MediaType)
		}
		if r := export(t, env, set, output("image", "name=a", "manifest=true", "oci-mediatypes=true")); r.Descriptor.MediaType != ocispec.MediaTypeImageManifest {
			t.Errorf("version %d: OCI's types were asked for, not %s", version, r.Descriptor.MediaType)
		}
		if _, top := manifestOf(t, env, set); top.MediaType != ocispec.MediaTypeImageManifest {
			t.Errorf("version %d: OCI layout of type %s", version, top.MediaType)
		}
		x, err := New(output("oci", "compression=zstd"))
		if err != nil {
			t.Fatal(err)
		}
		env.Session = &client{}
		_, err = Run(t.Context(), env, set, []Exporter{x})
		if c, ok := errors.AsType[*CompatibilityError](err); ok != (version == Compat013) || ok && *c != (CompatibilityError{10, "oci exporter compression=zstd"}) {
			t.Errorf("version %d: zstd: %v", version, err)
		}
	}
}

// The progress of a push: layers, then the manifest, each with its end, all of the one vertex.
func TestPushProgress(t *testing.T) {
	s := openStore(t)
	host := testRegistry(t)
	env := testEnv(s, nil)
	var mu sync.Mutex
	var order []string
	vertices := map[graph.Digest]bool{}
	env.Events = func(e event.Event) {
		mu.Lock()
		defer mu.Unlock()
		vertices[e.Vertex] = true
		if e.Kind == event.Progress && (e.Item == "pushing layers" || strings.HasPrefix(e.Item, "pushing manifest for ")) {
			order = append(order, e.Item+map[bool]string{true: " done"}[e.Complete])
		}
	}
	set := twoLayers(t, s)
	for range 2 { // the second time nothing has to be sent
		order = nil
		r := export(t, env, set, output("registry", "name="+host+"/app:1"))
		manifest := "pushing manifest for " + host + "/app:1@" + r.Descriptor.Digest.String()
		if want := []string{"pushing layers", "pushing layers done", manifest, manifest + " done"}; !slices.Equal(order, want) {
			t.Errorf("%q, want %q", order, want)
		}
	}
	if len(vertices) != 2 {
		t.Errorf("%d vertices, want one for each export", len(vertices))
	}
}

func TestCompressionOf(t *testing.T) {
	for _, c := range []layer.Compression{{Type: layer.Gzip}, {Type: layer.Gzip, Level: layer.Stored}, {Type: layer.Zstd, Level: 19}, {Type: layer.EStargz, Level: 3}} {
		if got, ok := compressionOf(compressionName(c)); !ok || got != c {
			t.Errorf("%v: %v %v", c, got, ok)
		}
	}
	if c, ok := compressionOf("brotli-4"); ok {
		t.Errorf("brotli is %v", c)
	}
}

// untar returns the files of an archive.
func untar(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
}
