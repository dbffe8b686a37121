package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/store"
)

var (
	amd64 = graph.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = graph.Platform{OS: "linux", Architecture: "arm64"}
)

// fixture is a store, a registry that counts, and one build's images.
type fixture struct {
	*testing.T
	store  *store.Store
	client *registry.Client
	host   string
	gets   atomic.Int64 // blobs downloaded
	wrap   atomic.Pointer[func(http.ResponseWriter, *http.Request, http.Handler)]
}

func setup(t *testing.T) *fixture {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("unpacking needs root")
	}
	f := &fixture{T: t}
	s, err := store.Open(t.TempDir(), store.Options{MaxBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	f.store = s
	reg := gcr.New(gcr.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			f.gets.Add(1)
		}
		if w2 := f.wrap.Load(); w2 != nil {
			(*w2)(w, r, reg)
			return
		}
		reg.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	f.host = strings.TrimPrefix(srv.URL, "http://")
	f.client = registry.New(registry.Config{Timing: registry.Timing{Backoff: time.Millisecond}})
	t.Cleanup(f.client.Close)
	return f
}

func (f *fixture) images(p *Puller) *Images {
	f.Helper()
	if p == nil {
		p = NewPuller(f.store)
	}
	hold := f.store.Hold()
	im := p.Images(Env{Store: f.store, Hold: hold, Registry: f.client})
	f.Cleanup(func() { im.Close(); hold.Release() })
	return im
}

// file is one entry of a test's tar.
type file struct{ name, body, link string }

func makeTar(files ...file) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.body)), Typeflag: tar.TypeReg}
		switch {
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		case strings.HasPrefix(f.link, "="):
			h.Typeflag, h.Linkname = tar.TypeLink, f.link[1:]
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		_, _ = io.WriteString(w, f.body)
	}
	_ = w.Close()
	return b.Bytes()
}

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

// built is an image in pieces.
type built struct {
	manifest, config []byte
	layers           [][]byte // as blobs
	descs            []image.Descriptor
	diffs            []graph.Digest
	desc             image.Descriptor
}

func describeBytes(mediaType string, b []byte) image.Descriptor {
	return image.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

func build(p graph.Platform, compressed bool, tars ...[]byte) *built {
	b := &built{}
	for _, t := range tars {
		b.diffs = append(b.diffs, digest.FromBytes(t))
		mt := ocispec.MediaTypeImageLayer
		if compressed {
			t, mt = gz(t), ocispec.MediaTypeImageLayerGzip
		}
		b.layers = append(b.layers, t)
		b.descs = append(b.descs, describeBytes(mt, t))
	}
	b.finish(p)
	return b
}

func (b *built) finish(p graph.Platform) {
	cfg := image.Config{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, RootFS: image.RootFS{Type: "layers", DiffIDs: b.diffs}}
	cfg.Config.Env = []string{"IMAGE=" + p.Architecture}
	b.config, _ = json.Marshal(cfg)
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: describeBytes(ocispec.MediaTypeImageConfig, b.config), Layers: b.descs}
	m.SchemaVersion = 2
	b.manifest, _ = json.Marshal(m)
	b.desc = describeBytes(ocispec.MediaTypeImageManifest, b.manifest)
	b.desc.Platform = &ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
}

func (f *fixture) push(name string, b *built) {
	f.Helper()
	ref, err := registry.ParseRef(f.host + "/" + name)
	if err != nil {
		f.Fatal(err)
	}
	all := append([][]byte{b.config}, b.layers...)
	for _, blob := range all {
		blob := blob
		_, err := f.client.Push(f.Context(), ref, registry.Upload{Desc: describeBytes("x", blob), Open: func(at int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(blob[at:])), nil
		}})
		if err != nil {
			f.Fatal(err)
		}
	}
	if _, err := f.client.PushManifest(f.Context(), ref, b.manifest, ocispec.MediaTypeImageManifest); err != nil {
		f.Fatal(err)
	}
}

func index(images ...*built) []byte {
	idx := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}
	idx.SchemaVersion = 2
	for _, b := range images {
		idx.Manifests = append(idx.Manifests, b.desc)
	}
	raw, _ := json.Marshal(idx)
	return raw
}

func (f *fixture) pushIndex(name string, images ...*built) {
	f.Helper()
	ref, _ := registry.ParseRef(f.host + "/" + name)
	for _, b := range images {
		f.push(ref.Repo+"@"+b.desc.Digest.String(), b)
	}
	if _, err := f.client.PushManifest(f.Context(), ref, index(images...), ocispec.MediaTypeImageIndex); err != nil {
		f.Fatal(err)
	}
}

// read returns a file of the top layer that has it.
func (f *fixture) read(layers []store.LayerID, name string) string {
	for i := len(layers) - 1; i >= 0; i-- {
		if b, err := os.ReadFile(filepath.Join(f.store.LayerDir(layers[i]), name)); err == nil {
			return string(b)
		}
	}
	return ""
}

func wantKind(t *testing.T, err error, k diag.Kind, parts ...string) {
	t.Helper()
	if err == nil || diag.KindOf(err) != k {
		t.Fatalf("got %v (%v), want an error of kind %v", err, diag.KindOf(err), k)
	}
	text := err.Error()
	for e := err; e != nil; e = errors.Unwrap(e) {
		var d *diag.Error
		if errors.As(e, &d) {
			text += " | " + d.Hint
		}
	}
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q lacks %q", text, p)
		}
	}
}

func TestPull(t *testing.T) {
	f := setup(t)
	one, two := makeTar(file{"a", "1", ""}, file{"d/", "", ""}, file{"d/x", "1", ""}), makeTar(file{"d/y", "2", ""}, file{".wh.a", "", ""})
	b := build(amd64, true, one, two)
	f.push("app:1", b)
	im := f.images(nil)
	var events sync.Map
	im.env.Progress = func(e event.Event) { events.Store(e.Action, true) }
	op := &graph.Image{Ref: f.host + "/app:1"}
	img, err := im.Resolve(t.Context(), op, amd64)
	if err != nil {
		t.Fatal(err)
	}
	if img.Config.Config.Env[0] != "IMAGE=amd64" || f.gets.Load() != 1 || img.Digest != b.desc.Digest {
		t.Errorf("the configuration took %d blobs: %+v", f.gets.Load(), img)
	}
	layers, cfg, err := im.Fetch(t.Context(), op, amd64, "sha256:vertex")
	if err != nil || cfg != img.Config {
		t.Fatal(err)
	}
	if len(layers) != 2 || f.read(layers, "d/y") != "2" || f.read(layers, "d/x") != "1" {
		t.Errorf("layers %v", layers)
	}
	if _, ok := events.Load("downloading"); !ok {
		t.Error("no progress")
	}
	if info, err := f.store.Layer(layers[1]); err != nil || info.DiffID != b.diffs[1] || info.TarSize != int64(len(two)) {
		t.Errorf("%+v %v", info, err)
	}
	if v := f.store.Variants(b.diffs[0]); len(v) != 1 || v[0].Digest != b.descs[0].Digest {
		t.Errorf("variants %v", v)
	}
	// Another build finds it all in the store, even without a registry.
	im2 := f.images(nil)
	im2.env.Registry = nil
	again, _, err := im2.Fetch(t.Context(), op, amd64, "")
	if err != nil || fmt.Sprint(again) != fmt.Sprint(layers) {
		t.Errorf("again: %v %v", again, err)
	}
	for _, mode := range []graph.ResolveMode{graph.ResolveLocal, graph.ResolvePull} {
		n := f.gets.Load()
		pin, err := f.images(nil).Pin(t.Context(), &graph.Image{Ref: op.Ref, Mode: mode}, amd64)
		if err != nil || pin != img.Pin(0) || f.gets.Load() != n {
			t.Errorf("%s: %v %v", mode, pin, err)
		}
	}
	_, err = f.images(nil).Resolve(t.Context(), &graph.Image{Ref: f.host + "/none", Mode: graph.ResolveLocal}, amd64)
	wantKind(t, err, diag.NotFound, "not in the store")
	_, err = f.images(nil).Resolve(t.Context(), &graph.Image{Ref: op.Ref, Checksum: digest.FromString("x")}, amd64)
	wantKind(t, err, diag.Invalid, "does not match expected checksum")
	low, err := f.images(nil).Pin(t.Context(), &graph.Image{Ref: op.Ref, LayerLimit: 1}, amd64)
	if err != nil || low != b.diffs[0] {
		t.Errorf("limit: %v %v", low, err)
	}
	pinned, err := f.images(nil).Resolve(t.Context(), &graph.Image{Ref: f.host + "/app:1@" + b.desc.Digest.String(), Mode: graph.ResolveLocal}, amd64)
	if err != nil || pinned.Digest != b.desc.Digest {
		t.Errorf("pinned: %v", err)
	}
}

func TestSharedLayersAndConcurrentBuilds(t *testing.T) {
	f := setup(t)
	base := makeTar(file{"base", strings.Repeat("b", 200_000), ""})
	b1 := build(amd64, true, base, makeTar(file{"one", "1", ""}))
	b2 := build(amd64, true, base, makeTar(file{"two", "2", ""}))
	f.push("x:1", b1)
	f.push("x:2", b2)
	p := NewPuller(f.store)
	var wg sync.WaitGroup
	var bases sync.Map
	for i := range 12 {
		wg.Go(func() {
			im := f.images(p)
			layers, _, err := im.Fetch(t.Context(), &graph.Image{Ref: fmt.Sprintf("%s/x:%d", f.host, i%2+1)}, amd64, "")
			if err != nil {
				t.Error(err)
				return
			}
			bases.Store(layers[0], true)
		})
	}
	wg.Wait()
	n := 0
	bases.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d base layers", n)
	}
	layerGets := f.gets.Load() - 12 // at most one configuration per build
	if layerGets > 3 {
		t.Errorf("%d downloads of 3 layers", layerGets)
	}
}

func TestPlatforms(t *testing.T) {
	f := setup(t)
	attest := build(graph.Platform{OS: "unknown", Architecture: "unknown"}, true, makeTar(file{"att", "", ""}))
	v7 := build(graph.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, true, makeTar(file{"v7", "", ""}))
	v8 := build(graph.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}, true, makeTar(file{"v8", "", ""}))
	am := build(amd64, true, makeTar(file{"am", "", ""}))
	f.pushIndex("multi:1", attest, v7, v8, am)
	op := &graph.Image{Ref: f.host + "/multi:1"}
	for p, want := range map[string]*built{"arm64": v8, "amd64": am, "arm": v7} {
		layers, cfg, err := f.images(nil).Fetch(t.Context(), op, graph.Platform{OS: "linux", Architecture: p}, "")
		if err != nil || cfg.Architecture != p || len(layers) != 1 {
			t.Fatalf("%s: %v", p, err)
		}
		info, _ := f.store.Layer(layers[0])
		if info.DiffID != want.diffs[0] {
			t.Errorf("%s: wrong layer", p)
		}
	}
	rec, err := f.store.Image(op.Ref)
	if err != nil || len(rec.Platforms) != 3 || rec.Index == nil {
		t.Errorf("the record: %+v %v", rec, err)
	}
	_, err = f.images(nil).Resolve(t.Context(), op, graph.Platform{OS: "linux", Architecture: "riscv64"})
	wantKind(t, err, diag.NotFound, "linux/riscv64", "linux/amd64", "linux/arm64/v8, ", "linux/arm/v7")
}

func TestScore(t *testing.T) {
	p := func(s string) graph.Platform {
		parts := append(strings.Split(s, "/"), "", "")
		return graph.Platform{OS: "linux", Architecture: parts[0], Variant: parts[1]}
	}
	for _, tc := range []struct {
		want string
		have []string
		best int
	}{
		{"arm64", []string{"amd64", "arm64/v8"}, 1},
		{"aarch64", []string{"arm64"}, 0},
		{"arm64/v9", []string{"arm64", "arm64/v9"}, 1},
		{"arm64", []string{"arm64/v9"}, -1},
		{"amd64/v3", []string{"amd64", "amd64/v2", "amd64/v4"}, 1},
		{"amd64", []string{"amd64/v2"}, -1},
		{"x86_64", []string{"386", "amd64/v1"}, 1},
		{"arm/v7", []string{"arm/v5", "arm/v6", "arm64"}, 1},
		{"arm", []string{"arm/v6", "arm/v7"}, 1},
		{"arm/v6", []string{"arm/v7"}, -1},
	} {
		var have []graph.Platform
		for _, h := range tc.have {
			have = append(have, p(h))
		}
		if got, _ := image.ChoosePlatform(p(tc.want), have); got != tc.best {
			t.Errorf("%s of %v: %d, want %d", tc.want, tc.have, got, tc.best)
		}
	}
}

// TestLyingImage: the blob has its digest, but is not what the configuration says.
func TestLyingImage(t *testing.T) {
	f := setup(t)
	evil, good := makeTar(file{"evil", "1", ""}), makeTar(file{"good", "1", ""})
	b := build(amd64, true, evil)
	b.diffs[0] = digest.FromBytes(good)
	b.finish(amd64)
	f.push("liar:1", b)
	for range 2 { // the second time its bytes are there already
		_, _, err := f.images(nil).Fetch(t.Context(), &graph.Image{Ref: f.host + "/liar:1"}, amd64, "")
		wantKind(t, err, diag.Invalid, "diff_id", b.diffs[0].String(), "forged")
	}
	if _, err := f.store.Chain(b.diffs[0]); err == nil {
		t.Error("the store has the chain")
	}
	if v := f.store.Variants(b.diffs[0]); len(v) != 0 {
		t.Error("the store has a variant")
	}
	if all, _ := f.store.Images(); len(all) != 0 {
		t.Error("the store has the image")
	}
	honest := build(amd64, true, good)
	f.push("honest:1", honest)
	layers, _, err := f.images(nil).Fetch(t.Context(), &graph.Image{Ref: f.host + "/honest:1"}, amd64, "")
	if err != nil || f.read(layers, "good") != "1" || f.read(layers, "evil") != "" {
		t.Error("the honest image", err)
	}
}

// An image that names the diff_ids of another does not get its layers, though they are there; the same layer in another form
// is read once to see that it is.
func TestKnownLayersAreVerified(t *testing.T) {
	f := setup(t)
	good := makeTar(file{"good", "1", ""})
	fetch := func(name string) ([]store.LayerID, error) {
		layers, _, err := f.images(nil).Fetch(t.Context(), &graph.Image{Ref: f.host + "/" + name}, amd64, "")
		return layers, err
	}
	honest := build(amd64, true, good)
	f.push("honest:1", honest)
	first, err := fetch("honest:1")
	if err != nil {
		t.Fatal(err)
	}
	liar := build(amd64, true, makeTar(file{"evil", "1", ""}))
	liar.diffs = honest.diffs
	liar.finish(amd64)
	f.push("liar:1", liar)
	for range 2 {
		_, err := fetch("liar:1")
		wantKind(t, err, diag.Invalid, "failed to verify layer", "forged")
	}
	if v := f.store.Variants(honest.diffs[0]); len(v) != 1 || v[0].Digest != honest.descs[0].Digest {
		t.Errorf("known forms: %v", v)
	}
	var small bytes.Buffer
	w, _ := gzip.NewWriterLevel(&small, gzip.BestCompression)
	_, _ = w.Write(good)
	_ = w.Close()
	other := build(amd64, true, good)
	other.layers[0] = append(small.Bytes(), gz(nil)...) // gzip streams may follow each other
	other.descs[0] = describeBytes(ocispec.MediaTypeImageLayerGzip, other.layers[0])
	other.finish(amd64)
	f.push("other:1", other)
	for range 2 {
		layers, err := fetch("other:1")
		if err != nil || !slices.Equal(layers, first) {
			t.Errorf("%v %v, want %v", layers, err, first)
		}
	}
	if v := f.store.Variants(honest.diffs[0]); len(v) != 2 {
		t.Errorf("known forms: %v", v)
	}
}

func TestDamagedDownloads(t *testing.T) {
	f := setup(t)
	big := makeTar(file{"big", strings.Repeat("0123456789abcdef", 40_000), ""})
	b := build(amd64, false, big) // 640 kB on the wire
	f.push("x:1", b)
	op := &graph.Image{Ref: f.host + "/x:1"}
	path := "/blobs/" + b.descs[0].Digest.String()
	wrong := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, path) {
			bad := bytes.Clone(b.layers[0])
			bad[2000] ^= 1
			_, _ = w.Write(bad)
			return
		}
		next.ServeHTTP(w, r)
	}
	f.wrap.Store(&wrong)
	_, _, err := f.images(nil).Fetch(t.Context(), op, amd64, "")
	wantKind(t, err, diag.Invalid, "digest")
	// It breaks in the middle for good; the next build goes on from there.
	broken := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, path) {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(b.layers[0])))
			_, _ = w.Write(b.layers[0][:300_000])
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	}
	f.wrap.Store(&broken)
	_, _, err = f.images(nil).Fetch(t.Context(), op, amd64, "")
	wantKind(t, err, diag.Denied)
	var ranges atomic.Value
	resumed := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, path) {
			ranges.Store(r.Header.Get("Range"))
		}
		next.ServeHTTP(w, r)
	}
	f.wrap.Store(&resumed)
	layers, _, err := f.images(nil).Fetch(t.Context(), op, amd64, "")
	if err != nil || len(f.read(layers, "big")) != 640_000 {
		t.Fatal(err)
	}
	if ranges.Load() != fmt.Sprintf("bytes=300000-%d", len(b.layers[0])-1) {
		t.Errorf("not resumed: %q", ranges.Load())
	}
}

func TestLowerLayersAreSeen(t *testing.T) {
	f := setup(t)
	// The upper layer implies d/ and links to a file below.
	b := build(amd64, true, makeTar(file{"d/", "", ""}, file{"d/f", "content", ""}), makeTar(file{"d/link", "", "=d/f"}))
	f.push("x:1", b)
	layers, _, err := f.images(nil).Fetch(t.Context(), &graph.Image{Ref: f.host + "/x:1"}, amd64, "")
	if err != nil || f.read(layers, "d/link") != "content" {
		t.Fatalf("%q %v", f.read(layers, "d/link"), err)
	}
}

func TestNoImages(t *testing.T) {
	f := setup(t)
	b := build(amd64, true, makeTar(file{"a", "", ""}))
	b.descs[0].MediaType = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
	b.finish(amd64)
	f.push("chart:1", b)
	_, err := f.images(nil).Resolve(t.Context(), &graph.Image{Ref: f.host + "/chart:1"}, amd64)
	wantKind(t, err, diag.Unsupported, "helm")
	b = build(amd64, true, makeTar(file{"a", "", ""}))
	b.diffs = append(b.diffs, b.diffs[0])
	b.finish(amd64)
	f.push("count:1", b)
	_, err = f.images(nil).Resolve(t.Context(), &graph.Image{Ref: f.host + "/count:1"}, amd64)
	wantKind(t, err, diag.Invalid, "1 layers", "configuration 2")
	_, err = f.images(nil).Resolve(t.Context(), &graph.Image{Ref: f.host + "/none:1"}, amd64)
	wantKind(t, err, diag.NotFound, "none:1 was not found in ")
}
