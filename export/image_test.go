package export

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	gcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

func pull(t *testing.T, ref string) v1.Image {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(r)
	if err != nil {
		t.Fatal(err)
	}
	check(t, img)
	return img
}

// check hashes everything that an image names. The library's own check reads gzip only.
func check(t *testing.T, img v1.Image) {
	t.Helper()
	opts := []validate.Option{}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	conf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if len(conf.RootFS.DiffIDs) != len(layers) {
		t.Fatalf("%d diff_ids, %d layers", len(conf.RootFS.DiffIDs), len(layers))
	}
	for i, l := range layers {
		mt, err := l.MediaType()
		if err != nil {
			t.Fatal(err)
		}
		if mt != types.OCILayer && mt != types.DockerLayer {
			opts = append(opts, validate.Fast)
		}
		d, _ := l.Digest()
		for _, x := range []struct {
			open func() (io.ReadCloser, error)
			want v1.Hash
		}{{l.Compressed, d}, {l.Uncompressed, conf.RootFS.DiffIDs[i]}} {
			rc, err := x.open()
			if err != nil {
				t.Fatal(err)
			}
			if got := string(hashOf([]byte(readAll(t, rc)))); got != x.want.String() {
				t.Fatalf("layer %d is %s, not %s", i, got, x.want)
			}
		}
	}
	if err := validate.Image(img, opts...); err != nil {
		t.Fatal(err)
	}
}

func TestStoreWritesNoLayerBlob(t *testing.T) {
	s := openStore(t)
	set := twoLayers(t, s)
	r := export(t, testEnv(s, nil), set, output("image", "name=app,app:2"))
	if got := r.Metadata["image.name"]; got != "docker.io/library/app:latest,docker.io/library/app:2" {
		t.Errorf("names: %s", got)
	}
	if r.Descriptor != nil || r.Metadata["containerimage.digest"] != "" {
		t.Error("a manifest was made that nobody asked for")
	}
	for _, n := range []string{"docker.io/library/app:latest", "docker.io/library/app:2"} {
		im, err := s.Image(n)
		if err != nil {
			t.Fatal(err)
		}
		p := im.Platforms[0]
		if string(p.Config) != r.Metadata["containerimage.config.digest"] || len(p.Layers) != 2 || len(p.DiffIDs) != 2 {
			t.Errorf("%s: %+v", n, p)
		}
		if _, ok := s.HasBlob(p.Config); !ok {
			t.Errorf("%s: the configuration is no blob", n)
		}
		for _, d := range p.DiffIDs {
			if v := s.Variants(d); len(v) > 0 {
				t.Errorf("%s: %s has blobs: %v", n, d, v)
			}
		}
	}
}

func TestConfigAndHistory(t *testing.T) {
	s := openStore(t)
	set := twoLayers(t, s)
	set.Images[0].Config.Extra = json.RawMessage(`{"os":"other","x-top":{"b":1, "a":2},"config":{"x-in":"kept","User":"dropped"}}`)
	r := export(t, testEnv(s, nil), set, output("image", "name=app"))
	raw, err := readBlob(t.Context(), s, graph.Digest(r.Metadata["containerimage.config.digest"]))
	if err != nil {
		t.Fatal(err)
	}
	var c image.Config
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	if c.OS != "linux" || !c.Created.Equal(epoch) || len(c.RootFS.DiffIDs) != 2 || len(c.History) != 3 {
		t.Errorf("%s", raw)
	}
	for _, h := range c.History {
		if h.Created == nil || !h.Created.Equal(epoch) {
			t.Errorf("history is not bounded by the epoch: %+v", h)
		}
	}
	for _, want := range []string{`"x-top":{"b":1,"a":2}`, `"x-in":"kept"`} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("%s is missing in %s", want, raw)
		}
	}
	if strings.Contains(string(raw), "dropped") || strings.Contains(string(raw), "other") {
		t.Errorf("old values came back: %s", raw)
	}
}

func TestHistoryMatchesLayers(t *testing.T) {
	rows := func(s string) (out []image.History) {
		for _, r := range strings.Fields(s) {
			out = append(out, image.History{CreatedBy: strings.TrimPrefix(r, "#"), EmptyLayer: r[0] == '#'})
		}
		return out
	}
	show := func(rows []image.History) string {
		var out []string
		for _, r := range rows {
			n := r.CreatedBy
			if n == "" {
				n = "+"
			}
			if r.EmptyLayer {
				n = "#" + n
			}
			out = append(out, n)
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		rows         string
		layers, base int
		want         string
	}{
		{"a #b c", 2, 0, "a #b c"},
		{"", 2, 0, "+ +"},
		{"a #b", 3, 0, "a #b + +"},
		{"x", 3, 2, "+ + x"},       // a base without history
		{"a b c", 2, 0, "#a b c"},  // a surplus row
		{"a #b", 2, 1, "a #b +"},   // the base's row only
		{"a b", 0, 0, "#a #b"},     // no layer at all
		{"#a #b", 1, 0, "#a #b +"}, // metadata, then a layer
	} {
		if got := show(image.MatchHistory(rows(c.rows), c.layers, c.base)); got != c.want {
			t.Errorf("%q with %d layers: %q, want %q", c.rows, c.layers, got, c.want)
		}
	}
}

func TestPush(t *testing.T) {
	for _, c := range []string{"gzip", "zstd", "uncompressed"} {
		t.Run(c, func(t *testing.T) {
			s := openStore(t)
			set := twoLayers(t, s)
			host := testRegistry(t)
			r := export(t, testEnv(s, nil), set, output("registry", "name="+host+"/a/app:1,"+host+"/a/app:2,"+host+"/b", "compression="+c))
			for _, ref := range []string{"/a/app:1", "/a/app:2", "/b:latest"} {
				img := pull(t, host+ref)
				d, err := img.Digest()
				if err != nil || d.String() != r.Metadata["containerimage.digest"] {
					t.Errorf("%s: %v %v, want %s", ref, d, err, r.Metadata["containerimage.digest"])
				}
				cn, _ := img.ConfigName()
				if cn.String() != r.Metadata["containerimage.config.digest"] {
					t.Errorf("%s: config %s", ref, cn)
				}
				m, err := img.Manifest()
				if err != nil {
					t.Fatal(err)
				}
				want := map[string]types.MediaType{"gzip": types.OCILayer, "zstd": types.OCILayerZStd, "uncompressed": types.OCIUncompressedLayer}[c]
				if m.MediaType != types.OCIManifestSchema1 || m.Layers[0].MediaType != want {
					t.Errorf("%s: media types %s, %s", ref, m.MediaType, m.Layers[0].MediaType)
				}
				if len(m.Layers[0].Annotations) > 0 {
					t.Errorf("%s: the store's marks leak: %v", ref, m.Layers[0].Annotations)
				}
			}
		})
	}
}

func TestPushByDigestAndDockerTypes(t *testing.T) {
	s := openStore(t)
	set := twoLayers(t, s)
	host := testRegistry(t)
	r := export(t, testEnv(s, nil), set, output("image", "name="+host+"/app", "push-by-digest=true", "oci-mediatypes=false"))
	img := pull(t, host+"/app@"+r.Metadata["containerimage.digest"])
	m, _ := img.Manifest()
	if m.MediaType != types.DockerManifestSchema2 || m.Config.MediaType != types.DockerConfigJSON || m.Layers[1].MediaType != types.DockerLayer {
		t.Errorf("%+v", m)
	}
	ref, _ := name.ParseReference(host + "/app")
	if _, err := remote.Image(ref); err == nil {
		t.Error("a tag was pushed too")
	}
	if ims, err := s.Images(); err != nil || len(ims) != 1 {
		t.Errorf("images in the store: %v", ims)
	}
}

func TestIndexAnnotationsAttestations(t *testing.T) {
	s := openStore(t)
	set := twoLayers(t, s)
	second := set.Images[0]
	second.Platform, second.Config = arm64, testConfig(arm64, "ADD rootfs /", "COPY app /app")
	second.Tree = tree.NewStack(s, []store.LayerID{addLayer(t, s, map[string]string{"arm": "64"}), addLayer(t, s, map[string]string{"x": "y"})})
	second.Attestation = []Attestation{{
		Attestation: image.Attestation{PredicateType: "https://slsa.dev/provenance/v1", Path: "provenance.json"},
		Make: func(_ context.Context, layers []image.Descriptor) ([]byte, error) {
			if len(layers) != 2 {
				t.Errorf("layers: %v", layers)
			}
			return []byte(`{"a":1}`), nil
		},
	}}
	set.Images = append(set.Images, second)
	host := testRegistry(t)
	r := export(t, testEnv(s, nil), set, output("image", "name="+host+"/app:1", "push=true",
		"annotation.all=1", "annotation[linux/arm64].arm=2", "annotation-index.idx=3", "annotation-manifest-descriptor.md=4", "annotation-index-descriptor.id=5"))
	ref, _ := name.ParseReference(host + "/app:1")
	idx, err := remote.Index(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(idx); err != nil {
		t.Fatal(err)
	}
	m, _ := idx.IndexManifest()
	if len(m.Manifests) != 3 || m.Annotations["idx"] != "3" || r.Descriptor.Annotations["id"] != "5" {
		t.Fatalf("%+v %+v", m, r.Descriptor)
	}
	if m.Manifests[0].Platform.Architecture != "amd64" || m.Manifests[1].Platform.Architecture != "arm64" || m.Manifests[0].Annotations["md"] != "4" {
		t.Errorf("%+v", m.Manifests)
	}
	img, _ := idx.Image(m.Manifests[1].Digest)
	im, _ := img.Manifest()
	if !maps.Equal(im.Annotations, map[string]string{"all": "1", "arm": "2"}) {
		t.Errorf("%v", im.Annotations)
	}
	proof := m.Manifests[2]
	if proof.Annotations["vnd.docker.reference.digest"] != m.Manifests[1].Digest.String() || proof.Platform.OS != "unknown" {
		t.Errorf("%+v", proof)
	}
	pi, _ := idx.Image(proof.Digest)
	pm, _ := pi.Manifest()
	l, err := remote.Layer(ref.Context().Digest(pm.Layers[0].Digest.String()))
	if err != nil {
		t.Fatal(err)
	}
	rc, _ := l.Compressed()
	var st statement
	if err := json.Unmarshal([]byte(readAll(t, rc)), &st); err != nil {
		t.Fatal(err)
	}
	if st.PredicateType != "https://slsa.dev/provenance/v1" || st.Subject[0].Digest["sha256"] != m.Manifests[1].Digest.Hex || !strings.HasSuffix(st.Subject[0].Name, "/app@1?platform=linux%2Farm64") {
		t.Errorf("%+v", st)
	}
	// The same image, saved from the store, is the same index.
	got, err := s.Image(host + "/app:1")
	if err != nil || got.Index == nil || got.Index.Digest.String() != r.Metadata["containerimage.digest"] {
		t.Fatalf("%+v, %v", got, err)
	}
	if got.Platforms[0].Proof != nil || got.Platforms[1].Proof == nil || len(got.Platforms[1].Proofs) != 2 {
		t.Errorf("%+v", got.Platforms)
	}
	env := testEnv(s, nil)
	again, err := Push(t.Context(), env, host+"/app:1", host+"/app:2")
	if err != nil || again.Metadata["containerimage.digest"] != r.Metadata["containerimage.digest"] {
		t.Errorf("%+v, %v", again, err)
	}
}

func TestEqualTreesEqualDigests(t *testing.T) {
	for _, attrs := range [][]string{nil, {"compression=zstd", "compression-level=5"}, {"rewrite-timestamp=true"}} {
		var digests []string
		for range 2 {
			s := openStore(t)
			if len(digests) > 0 { // another numbering of the layers, another order of events
				addLayer(t, s, map[string]string{"unrelated": "x"})
			}
			set := twoLayers(t, s)
			c := &client{}
			r := export(t, testEnv(s, c), set, output("oci", append(attrs, "name=app:1")...))
			digests = append(digests, r.Metadata["containerimage.digest"], sprint(graph.Digest("").Validate() != nil)+string(bytes.Clone(hashOf(c.buf.Bytes()))))
		}
		if digests[0] != digests[2] || digests[1] != digests[3] {
			t.Errorf("%v: %v", attrs, digests)
		}
	}
}

func hashOf(b []byte) []byte {
	m := newMeter()
	m.Write(b)
	return []byte(m.digest())
}

func TestRewriteTimestampLeavesTheBaseAlone(t *testing.T) {
	s := openStore(t)
	set := twoLayers(t, s)
	set.Images[0].BaseLayers = 1
	env := testEnv(s, &client{})
	ids, _ := set.Images[0].Tree.Layers()
	plain, err := env.Packer.Layer(t.Context(), Request{ID: ids[0]})
	if err != nil {
		t.Fatal(err)
	}
	host := testRegistry(t)
	export(t, env, set, output("image", "push=true", "name="+host+"/app", "rewrite-timestamp=true"))
	layers, _ := pull(t, host+"/app").Layers()
	if d, _ := layers[0].DiffID(); d.String() != plain.DiffID.String() {
		t.Error("the base layer was changed")
	}
	rc, _ := layers[1].Uncompressed()
	n := 0
	for tr := tar.NewReader(rc); ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.After(epoch) {
			t.Errorf("%s is newer than the epoch: %v", h.Name, h.ModTime)
		}
	}
	if n != 3 {
		t.Errorf("%d entries", n)
	}
}

// A pulled layer is never compressed again, a layer of our own only once.
func TestReuse(t *testing.T) {
	s := openStore(t)
	set := twoLayers(t, s)
	env := testEnv(s, &client{})
	ids, _ := set.Images[0].Tree.Layers()
	pulled := pulledLayer(t, s, ids[0])

	made := func() int {
		n := 0
		for _, id := range ids {
			info, err := s.Layer(id)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range s.Variants(info.DiffID) {
				if v.Annotations[madeAs] != "" {
					n++
				}
			}
		}
		return n
	}
	host := testRegistry(t)
	layersOf := func(attrs ...string) []string {
		export(t, env, set, output("image", append(attrs, "push=true", "name="+host+"/app")...))
		m, _ := pull(t, host+"/app").Manifest()
		var out []string
		for _, l := range m.Layers {
			out = append(out, l.Digest.String())
		}
		return out
	}
	first := layersOf()
	if first[0] != pulled.Digest.String() || made() != 1 {
		t.Errorf("the pulled layer was compressed again: %v, %d made", first, made())
	}
	if again := layersOf(); !slices.Equal(again, first) || made() != 1 {
		t.Errorf("second push: %v, %d made", again, made())
	}
	if z := layersOf("compression=zstd"); z[0] != pulled.Digest.String() || z[1] == first[1] || made() != 2 {
		t.Errorf("zstd: %v, %d made", z, made())
	}
	if z := layersOf("compression=zstd", "force-compression=true"); z[0] == pulled.Digest.String() || made() != 3 {
		t.Errorf("zstd, forced: %v, %d made", z, made())
	}
	if z := layersOf("force-compression=true"); !slices.Equal(z, first) || made() != 3 {
		t.Errorf("gzip, forced: %v, %d made", z, made())
	}
}

// pulledLayer makes a layer look as if it had been pulled: with a tar that Strata would not write, in a gzip blob.
func pulledLayer(t *testing.T, s *store.Store, id store.LayerID) image.Descriptor {
	t.Helper()
	var plain bytes.Buffer
	tw := tar.NewWriter(&plain)
	for _, h := range []*tar.Header{{Name: "./data", Typeflag: tar.TypeReg, Size: 4, Mode: 0o600, Uname: "joe"}} {
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(tw, "data")
	}
	tw.Close()
	diff := graph.Digest(hashOf(plain.Bytes()))
	w, err := s.NewBlob(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	z, err := layer.NewCompressor(w, layer.Compression{Type: layer.Gzip, Level: 1})
	if err != nil {
		t.Fatal(err)
	}
	z.Write(plain.Bytes())
	z.Close()
	d, n, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	desc := image.Descriptor{MediaType: image.DockerLayerGzip, Digest: d, Size: n}
	info, err := s.Layer(id)
	if err != nil {
		t.Fatal(err)
	}
	info.DiffID, info.TarSize = diff, 0
	if err := s.Update(t.Context(), func(b *store.Batch) error {
		b.SetLayer(info)
		b.Variant(diff, desc)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return desc
}

func TestDockerArchive(t *testing.T) {
	for _, pulled := range []bool{false, true} {
		for _, legacy := range []string{"legacy=0", "legacy=1"} {
			s := openStore(t)
			set := twoLayers(t, s)
			ids, _ := set.Images[0].Tree.Layers()
			if pulled {
				pulledLayer(t, s, ids[0])
			}
			c := &client{}
			r := export(t, testEnv(s, c), set, output("docker", "name=app:1,app:2", legacy))
			if !c.closed {
				t.Error("the stream was not closed")
			}
			p := writeTemp(t, "app.tar", c.buf.Bytes())
			tag, _ := name.NewTag("docker.io/library/app:2")
			img, err := tarball.ImageFromPath(p, &tag)
			if err != nil {
				t.Fatal(err)
			}
			if err := validate.Image(img); err != nil {
				t.Errorf("%s: %v", legacy, err)
			}
			cn, _ := img.ConfigName()
			if cn.String() != r.Metadata["containerimage.config.digest"] {
				t.Errorf("%s: config %s", legacy, cn)
			}
			var names []string
			for tr := tar.NewReader(&c.buf); ; {
				h, err := tr.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, h.Name)
				if h.Typeflag == tar.TypeDir && strings.HasSuffix(h.Name, "/") {
					continue
				}
				if h.Typeflag != tar.TypeReg {
					t.Errorf("%s is no regular file", h.Name)
				}
				if pulled == false && strings.HasPrefix(h.Name, "blobs/") {
					if v := s.Variants(graph.Digest("sha256:" + h.Name[len("blobs/sha256/"):])); len(v) > 0 {
						t.Errorf("a blob was written for %s", h.Name)
					}
				}
			}
			if !slices.IsSorted(names) {
				t.Errorf("not sorted: %v", names)
			}
			has := func(n string) bool { return slices.Contains(names, n) }
			if legacy == "legacy=0" && !(has("oci-layout") && has("index.json") && has("manifest.json") && !has("repositories")) ||
				legacy == "legacy=1" && !(has("repositories") && has("manifest.json") && !has("oci-layout")) {
				t.Errorf("%s: %v", legacy, names)
			}
		}
	}
}

func TestLegacyRepeatsAreLinks(t *testing.T) {
	s := openStore(t)
	id := addLayer(t, s, map[string]string{"a": "1"})
	st := tree.NewStack(s, []store.LayerID{id, id})
	defer st.Release()
	c := &client{}
	export(t, testEnv(s, c), &Set{Images: []Image{{Platform: amd64, Tree: st}}}, output("docker", "name=app:1", "legacy=1"))
	links := 0
	for tr := tar.NewReader(&c.buf); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeSymlink && strings.HasPrefix(h.Linkname, "../") && strings.HasSuffix(h.Linkname, "/layer.tar") {
			links++
		}
	}
	if links != 1 {
		t.Errorf("%d links", links)
	}
}

func TestOCILayout(t *testing.T) {
	s := openStore(t)
	set := twoLayers(t, s)
	dir := t.TempDir()
	r := export(t, testEnv(s, &client{dir: dir}), set, output("oci", "tar=false", "name=app:1"))
	idx, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(idx); err != nil {
		t.Fatal(err)
	}
	m, _ := idx.IndexManifest()
	if len(m.Manifests) != 1 || m.Manifests[0].Digest.String() != r.Metadata["containerimage.digest"] {
		t.Fatalf("%+v", m)
	}
	if a := m.Manifests[0].Annotations; a["io.containerd.image.name"] != "docker.io/library/app:1" || a["org.opencontainers.image.ref.name"] != "1" {
		t.Errorf("%v", a)
	}
	// Again into the same directory: nothing breaks.
	if again := export(t, testEnv(s, &client{dir: dir}), set, output("oci", "tar=false", "name=app:1")); !maps.Equal(again.Metadata, r.Metadata) {
		t.Errorf("%v, then %v", r.Metadata, again.Metadata)
	}
}

func TestScratch(t *testing.T) {
	s := openStore(t)
	st := tree.NewStack(s, nil)
	defer st.Release()
	for _, typ := range []string{"docker", "oci"} {
		for _, legacy := range []string{"0", "1"} {
			if typ == "oci" && legacy == "1" {
				continue
			}
			o := output(typ, "name=empty:1")
			if typ == "docker" {
				o.Attrs["legacy"] = legacy
			}
			c := &client{}
			export(t, testEnv(s, c), &Set{Images: []Image{{Platform: amd64, Config: testConfig(amd64, "#LABEL a=b"), Tree: st}}}, o)
			if strings.Contains(c.buf.String(), "null") {
				t.Errorf("%s,%s: a list is null", typ, legacy)
			}
		}
	}
}

func TestSeveralExportersAndFailures(t *testing.T) {
	s := openStore(t)
	set := twoLayers(t, s)
	host := testRegistry(t)
	var xs []Exporter
	for _, o := range []Output{output("image", "name=app"), output("registry", "name="+host+"/app"), output("oci", "name=app"), output("cacheonly")} {
		x, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		xs = append(xs, x)
	}
	rs, err := Run(t.Context(), testEnv(s, &client{}), set, xs)
	if err != nil {
		t.Fatal(err)
	}
	if rs[0].Metadata["containerimage.config.digest"] != rs[1].Metadata["containerimage.config.digest"] || rs[1].Metadata["containerimage.digest"] != rs[2].Metadata["containerimage.digest"] {
		t.Errorf("%v", rs)
	}
	bad, err := New(output("registry", "name=127.0.0.1:1/app"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Run(t.Context(), testEnv(s, &client{}), set, []Exporter{xs[0], bad})
	if err == nil || !strings.HasPrefix(err.Error(), "exporting to image: ") || diag.KindOf(err) != diag.Unavailable {
		t.Errorf("%v", err)
	}
}

func TestAttributes(t *testing.T) {
	for _, c := range []struct{ typ, attr, want string }{
		{"image", "nmae=app", "unknown attribute nmae"},
		{"image", "push=maybe", "neither true nor false"},
		{"image", "compression=gizp", "must be one of"},
		{"image", "compression-level=10", "from 0 to 9"},
		{"image", "name=UPPER", "no image name"},
		{"image", "push=true", "needs a name"},
		{"image", "annotation-manfest.a=b", "no such annotation level"},
		{"oci", "push=true", "unknown attribute push"},
		{"locla", "", "no such output type"},
		{"local", "mode=move", "must be one of"},
	} {
		_, err := New(output(c.typ, c.attr))
		if c.attr == "" {
			_, err = New(Output{Type: c.typ})
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || diag.KindOf(err) != diag.Invalid {
			t.Errorf("%s %s: %v", c.typ, c.attr, err)
		}
	}
	if _, err := New(output("image", "push", "name=a", "unpack=true", "buildinfo=1", "compression=zstd", "compression-level=19")); err != nil {
		t.Error(err)
	}
}

func TestSaveAndPushFromStore(t *testing.T) {
	s := openStore(t)
	set := twoLayers(t, s)
	env := testEnv(s, &client{})
	built := export(t, env, set, output("image", "name=app:1"))
	other := export(t, env, &Set{Images: []Image{{Platform: amd64, Tree: tree.NewStack(s, []store.LayerID{addLayer(t, s, map[string]string{"o": "o"})}), Epoch: &epoch}}}, output("image", "name=other"))
	for _, format := range []string{DockerArchive, "docker-archive", LegacyArchive, OCIArchive} {
		var buf bytes.Buffer
		if err := Save(t.Context(), env, []string{"app:1", "other"}, format, &buf); err != nil {
			t.Fatal(err)
		}
		if format == OCIArchive {
			continue
		}
		p := writeTemp(t, "a.tar", buf.Bytes())
		for n, want := range map[string]*Receipt{"docker.io/library/app:1": built, "docker.io/library/other:latest": other} {
			tag, _ := name.NewTag(n)
			img, err := tarball.ImageFromPath(p, &tag)
			if err != nil {
				t.Fatal(err)
			}
			if cn, _ := img.ConfigName(); cn.String() != want.Metadata["containerimage.config.digest"] {
				t.Errorf("%s %s: %s", format, n, cn)
			}
		}
	}
	host := testRegistry(t)
	r, err := Push(t.Context(), env, "app:1", host+"/app:9")
	if err != nil {
		t.Fatal(err)
	}
	if cn, _ := pull(t, host+"/app:9").ConfigName(); cn.String() != built.Metadata["containerimage.config.digest"] || r.Metadata["containerimage.config.digest"] != cn.String() {
		t.Errorf("pushed another image: %s", cn)
	}
	if err := Save(t.Context(), env, []string{"nosuch"}, DockerArchive, io.Discard); diag.KindOf(err) != diag.NotFound {
		t.Errorf("%v", err)
	}
}

// A repository that has the manifest is asked for nothing else.
func TestPushAgain(t *testing.T) {
	s := openStore(t)
	set := twoLayers(t, s)
	inner := gcr.New(gcr.Logger(slog.NewLogLogger(slog.DiscardHandler, 0)))
	var mu sync.Mutex
	var calls []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		calls = append(calls, r.Method+" "+r.URL.Path)
		mu.Unlock()
		inner.ServeHTTP(w, r)
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	env := testEnv(s, nil)
	first := export(t, env, set, output("registry", "name="+host+"/app:1"))
	calls = nil
	again := export(t, env, set, output("registry", "name="+host+"/app:1,"+host+"/app:2"))
	if first.Metadata["containerimage.digest"] != again.Metadata["containerimage.digest"] {
		t.Errorf("%v, then %v", first.Metadata, again.Metadata)
	}
	d := first.Metadata["containerimage.digest"]
	if want := []string{"HEAD /v2/app/manifests/" + d, "PUT /v2/app/manifests/1", "PUT /v2/app/manifests/2"}; !slices.Equal(calls, want) {
		t.Errorf("%q", calls)
	}
	// Another repository needs the blobs.
	export(t, env, set, output("registry", "name="+host+"/other:1"))
	pull(t, host+"/other:1")
	pull(t, host+"/app:2")
}

// The tar of a pulled layer stays what it is when the layer has been compressed in another way.
func TestPulledTarStays(t *testing.T) {
	s := openStore(t)
	set := twoLayers(t, s)
	ids, _ := set.Images[0].Tree.Layers()
	pulledLayer(t, s, ids[0])
	before, err := s.Layer(ids[0])
	if err != nil {
		t.Fatal(err)
	}
	id := ""
	for _, form := range []string{"compression=uncompressed", "compression=zstd", "compression=uncompressed", "compression=gzip", "compression=gzip,compression-level=3"} {
		r := export(t, testEnv(s, &client{}), set, output("oci", append(strings.Split(form, ","), "name=app:1", "force-compression=true")...))
		if got := r.Metadata["containerimage.config.digest"]; id != "" && got != id {
			t.Errorf("%s: the image is %s, not %s", form, got, id)
		} else {
			id = got
		}
	}
	if after, err := s.Layer(ids[0]); err != nil || after.DiffID != before.DiffID {
		t.Errorf("the layer is %s, not %s (%v)", after.DiffID, before.DiffID, err)
	}
}
