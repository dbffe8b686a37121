package cache

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

func blobOf(text string) Layer {
	d := digest.FromString(text)
	return Layer{
		Desc: image.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: d, Size: int64(len(text))}, DiffID: digest.FromString("tar of " + text),
		Created: time.Unix(1700000000, 0).UTC(),
		Open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(text[offset:])), nil
		},
		Exists: func(context.Context) bool { return true },
	}
}

// example is a cache of two steps: one on a source, one that copies from it.
func example() (*Config, []Layer) {
	one, two := blobOf("one"), blobOf("two")
	source := &item{id: "0", digest: digest.FromString("source")}
	content := &item{id: "1", digest: digest.FromString("content")}
	run := &item{id: "2", digest: digest.FromString("run"), inputs: [][]itemLink{{{to: source}}}, made: time.Unix(1700000001, 0)}
	copied := &item{id: "3", digest: digest.FromString("copy"), inputs: [][]itemLink{{{selector: "sel", to: run}, {to: content}}}, made: time.Unix(1700000002, 0)}
	return config([]*item{source, content, run, copied}, map[*item][]Layer{run: {one}, copied: {one, two}})
}

func TestConfigSurvives(t *testing.T) {
	c, layers := example()
	if len(c.Layers) != 2 || len(layers) != 2 {
		t.Fatalf("%d layers and %d blobs, want 2 and 2", len(c.Layers), len(layers))
	}
	known := map[graph.Digest]Layer{}
	for _, l := range layers {
		known[l.Desc.Digest] = l
	}
	x, err := parse(c, known)
	if err != nil {
		t.Fatal(err)
	}
	got := x.records[x.byDigest[digest.FromString("copy")][0]]
	if len(got.results) != 1 || len(got.results[0].chain) != 2 {
		t.Fatalf("results of the copy: %+v", got.results)
	}
	if top := got.results[0].chain[1]; top.Desc.Digest != digest.FromString("two") {
		t.Errorf("its top layer is %s", top.Desc.Digest)
	}
	// A layer that the manifest does not have takes the results away that need it, and only those.
	delete(known, digest.FromString("two"))
	if x, err = parse(c, known); err != nil {
		t.Fatal(err)
	}
	if r := x.records[x.byDigest[digest.FromString("copy")][0]].results; r != nil {
		t.Errorf("a result without its layer: %+v", r)
	}
	if r := x.records[x.byDigest[digest.FromString("run")][0]].results; len(r) != 1 {
		t.Errorf("the result below: %+v", r)
	}
}

func TestForeignConfig(t *testing.T) {
	d := digest.FromString("x")
	for name, c := range map[string]*Config{
		"link":  {Records: []ConfigRecord{{Digest: d, Inputs: [][]ConfigInput{{{Link: 7}}}}}},
		"minus": {Records: []ConfigRecord{{Digest: d, Inputs: [][]ConfigInput{{{Link: -1}}}}}},
		"layer": {Records: []ConfigRecord{{Digest: d, Results: []ConfigResult{{Layer: 3}}}}},
		"loop":  {Layers: []ConfigLayer{{Blob: d, Parent: 0}}, Records: []ConfigRecord{{Digest: d, Results: []ConfigResult{{Layer: 0}}}}},
	} {
		if _, err := parse(c, nil); diag.KindOf(err) != diag.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLayoutKeepsWhatIsNeeded(t *testing.T) {
	l := layout{t.TempDir()}
	write := func(tag string, reset bool, texts ...string) *manifest {
		t.Helper()
		form := manifestForm{oci: true, image: true}
		var layers []Layer
		for _, s := range texts {
			layers = append(layers, blobOf(s))
		}
		m, err := form.make(&Config{Records: []ConfigRecord{{Digest: digest.FromString(tag)}}}, layers)
		if err != nil {
			t.Fatal(err)
		}
		needed := []graph.Digest{m.desc.Digest, m.config.Digest}
		put := func(d image.Descriptor, raw []byte) {
			if err := l.write(t.Context(), d, bytes.NewReader(raw)); err != nil {
				t.Fatal(err)
			}
		}
		for i, s := range texts {
			put(layers[i].Desc, []byte(s))
			needed = append(needed, layers[i].Desc.Digest)
		}
		put(m.config, m.configRaw)
		put(m.desc, m.raw)
		if !reset {
			needed = nil
		}
		if err := l.tag(tag, m, needed); err != nil {
			t.Fatal(err)
		}
		return m
	}
	write("a", false, "1", "2")
	write("b", false, "3")
	if ix, err := l.index(); err != nil || len(ix.Manifests) != 2 {
		t.Fatalf("%v, %v", ix.Manifests, err)
	}
	m := write("b", true, "4")
	all, err := os.ReadDir(filepath.Join(l.dir, "blobs/sha256"))
	if err != nil || len(all) != 3 {
		t.Fatalf("%d blobs stay, want 3 (%v)", len(all), err)
	}
	if ix, err := l.index(); err != nil || len(ix.Manifests) != 1 || ix.Manifests[0].Digest != m.desc.Digest {
		t.Errorf("%v, %v", ix.Manifests, err)
	}
	bad := blobOf("right").Desc
	if err := l.write(t.Context(), bad, strings.NewReader("wrong")); diag.KindOf(err) != diag.Conflict {
		t.Errorf("wrong bytes: %v", err)
	}
}

// The example of Amazon's documentation.
func TestSignature(t *testing.T) {
	o, err := newS3(Spec{"s3", map[string]string{
		"region": "us-east-1", "bucket": "examplebucket", "endpoint_url": "https://s3.amazonaws.com",
		"access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
	}}, &Rules{})
	if err != nil {
		t.Fatal(err)
	}
	b := o.bucket.(*s3)
	req, err := http.NewRequest(http.MethodGet, b.url("test.txt").String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Range", "bytes=0-9")
	if err := b.sign(req, digest.FromString(""), time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)); err != nil {
		t.Fatal(err)
	}
	want := "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, " +
		"Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
	if got := req.Header.Get("Authorization"); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

// shelf is an object store that takes all signatures, and fails the first request.
type shelf struct {
	mu     sync.Mutex
	m      map[string][]byte
	failed bool
	made   bool
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case r.Header.Get("Authorization") == "":
		w.WriteHeader(http.StatusForbidden)
	case !s.failed:
		s.failed = true
		w.WriteHeader(http.StatusServiceUnavailable)
	case r.URL.Query().Get("restype") == "container":
		s.made = true
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodPut:
		s.m[r.URL.Path], _ = io.ReadAll(r.Body)
		w.WriteHeader(http.StatusCreated)
	default:
		data, ok := s.m[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		http.ServeContent(w, r, "", time.Now(), bytes.NewReader(data))
	}
}

func TestObjects(t *testing.T) {
	for _, kind := range []string{"s3", "azblob"} {
		t.Run(kind, func(t *testing.T) {
			store := &shelf{m: map[string][]byte{}}
			srv := httptest.NewServer(store)
			defer srv.Close()
			o, err := newObjects(Spec{kind, map[string]string{
				"region": "r", "bucket": "b", "endpoint_url": srv.URL, "use_path_style": "true", "access_key_id": "k",
				"account_url": srv.URL, "account_name": "a", "container": "b",
				"secret_access_key": base64.StdEncoding.EncodeToString([]byte("secret")),
			}}, &Rules{})
			if err != nil {
				t.Fatal(err)
			}
			if x, err := o.load(t.Context()); err != nil || len(x.records) != 0 {
				t.Fatalf("a cache that is not there: %+v, %v", x, err)
			}
			c, layers := example()
			for i := range layers {
				if err := o.put(t.Context(), &layers[i], nil); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := o.finish(t.Context(), c, layers, &Export{}); err != nil {
				t.Fatal(err)
			}
			x, err := o.load(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			chain := x.records[x.byDigest[digest.FromString("copy")][0]].results[0].chain
			r, err := chain[1].Open(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if b, err := io.ReadAll(r); err != nil || string(b) != "wo" || !chain[0].Exists(t.Context()) {
				t.Errorf("%q, %v", b, err)
			}
			if _, ok := store.m["/b/manifests/buildkit"]; !ok || kind == "azblob" && !store.made {
				t.Errorf("the store has %d objects", len(store.m))
			}
		})
	}
}

func TestUnknown(t *testing.T) {
	if _, err := NewExport(Spec{Type: "regstry"}, Env{}); err == nil || !strings.Contains(err.Error(), `unknown cache exporter: "regstry"`) {
		t.Errorf("%v", err)
	}
	if err := NewMatcher(t.Context(), nil, Env{}, nil).Add(Spec{Type: "lcal"}); err == nil || !strings.Contains(err.Error(), "unknown cache importer: lcal") {
		t.Errorf("%v", err)
	}
	for _, attrs := range []map[string]string{{"mode": "most"}, {"compression": "rar"}, {"ignore-error": "perhaps"}, {"compression-level": "-1"}} {
		attrs["ref"] = "x/y"
		if _, err := NewExport(Spec{"registry", attrs}, Env{}); diag.KindOf(err) != diag.Invalid {
			t.Errorf("%v: %v", attrs, err)
		}
	}
}
