package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/image"
)

// fast makes failures quick.
var fast = Timing{Header: 2 * time.Second, Stall: 300 * time.Millisecond, Backoff: time.Millisecond}

// serve starts a registry behind wrap and returns its host.
func serve(t *testing.T, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	var h http.Handler = gcr.New(gcr.Logger(nilLog), gcr.WithReferrersSupport(true))
	if wrap != nil {
		h = wrap(h)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func newClient(t *testing.T, cfg Config) *Client {
	t.Helper()
	if cfg.Timing == (Timing{}) {
		cfg.Timing = fast
	}
	c := New(cfg)
	t.Cleanup(c.Close)
	return c
}

func mustRef(t *testing.T, s string) Ref {
	t.Helper()
	r, err := ParseRef(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func noise(n int) ([]byte, image.Descriptor) {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = r.Read(b)
	return b, image.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(b), Size: int64(n)}
}

func opener(b []byte) func(int64) (io.ReadCloser, error) {
	return func(at int64) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b[at:])), nil }
}

// pushImage stores an image of one layer and returns its manifest's descriptor and the layer.
func pushImage(t *testing.T, c *Client, ref Ref, size int) (image.Descriptor, []byte, image.Descriptor) {
	t.Helper()
	layer, desc := noise(size)
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["` + desc.Digest.String() + `"]}}`)
	cdesc := image.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	for _, u := range []Upload{{Desc: desc, Open: opener(layer)}, {Desc: cdesc, Open: opener(config)}} {
		if _, err := c.Push(t.Context(), ref, u); err != nil {
			t.Fatal(err)
		}
	}
	raw := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		ocispec.MediaTypeImageManifest, cdesc.MediaType, cdesc.Digest, cdesc.Size, desc.MediaType, desc.Digest, desc.Size)
	m, err := c.PushManifest(t.Context(), ref, raw, ocispec.MediaTypeImageManifest)
	if err != nil {
		t.Fatal(err)
	}
	return m, layer, desc
}

func wantKind(t *testing.T, err error, k diag.Kind, parts ...string) {
	t.Helper()
	if err == nil || diag.KindOf(err) != k {
		t.Fatalf("got %v (%v), want an error of kind %v", err, diag.KindOf(err), k)
	}
	var d *diag.Error
	text := err.Error()
	if errors.As(err, &d) {
		text += " | " + d.Hint
	}
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q lacks %q", text, p)
		}
	}
}

func TestParseRef(t *testing.T) {
	d := digest.FromString("x")
	for in, want := range map[string]string{
		"debian":                    "docker.io/library/debian:latest",
		"debian:12":                 "docker.io/library/debian:12",
		"a/b":                       "docker.io/a/b:latest",
		"localhost:5000/x":          "localhost:5000/x:latest",
		"localhost/x:1":             "localhost/x:1",
		"h.io/a/b@" + d.String():    "h.io/a/b@" + d.String(),
		"h.io/a/b:1@" + d.String():  "h.io/a/b:1@" + d.String(),
		"index.docker.io/debian:12": "docker.io/library/debian:12",
	} {
		if got := mustRef(t, in).String(); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
	_, err := ParseRef("Debian")
	wantKind(t, err, diag.Invalid, "debian")
}

func TestRoundTrip(t *testing.T) {
	c := newClient(t, Config{})
	ref := mustRef(t, serve(t, nil)+"/a/b:1")
	m, layer, ldesc := pushImage(t, c, ref, 300_000)
	desc, err := c.Resolve(t.Context(), ref)
	if err != nil || desc.Digest != m.Digest || desc.Size != m.Size || desc.MediaType != m.MediaType {
		t.Fatalf("%v %v, want %v", desc, err, m)
	}
	raw, err := c.Manifest(t.Context(), ref, desc)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := Decode(raw, desc.MediaType)
	if err != nil || doc.Manifest == nil || doc.Manifest.Layers[0].Digest != ldesc.Digest {
		t.Fatalf("%v %v", doc, err)
	}
	for _, offset := range []int64{0, 1, 299_999, 300_000} {
		body, err := c.Fetch(t.Context(), ref, ldesc, offset)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		if err != nil || !bytes.Equal(got, layer[offset:]) {
			t.Fatalf("offset %d: %d bytes, %v", offset, len(got), err)
		}
		body.Close()
	}
	if how, err := c.Push(t.Context(), ref, Upload{Desc: ldesc, Open: opener(layer)}); err != nil || how != Existed {
		t.Errorf("pushed again: %v %v", how, err)
	}
	if s, err := c.Stat(t.Context(), ref, ldesc.Digest); err != nil || s.Size != ldesc.Size {
		t.Errorf("stat: %v %v", s, err)
	}
	if tags, err := c.Tags(t.Context(), ref); err != nil || len(tags) != 1 || tags[0] != "1" {
		t.Errorf("tags: %v %v", tags, err)
	}
	_, err = c.Resolve(t.Context(), mustRef(t, ref.Name()+":nope"))
	wantKind(t, err, diag.NotFound, "a/b:nope was not found in ", "check the name")
	pushImage(t, c, mustRef(t, ref.Name()+":bookworm"), 10)
	_, err = c.Resolve(t.Context(), mustRef(t, ref.Name()+":bokworm"))
	wantKind(t, err, diag.NotFound, "a/b:bokworm was not found in ", "did you mean "+ref.Name()+":bookworm?")
}

func TestMount(t *testing.T) {
	var posts atomic.Int64
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost && r.URL.Query().Get("mount") != "" {
				posts.Add(1)
				if r.URL.Query().Get("from") == "have/it" {
					w.WriteHeader(http.StatusCreated)
					return
				}
			}
			h.ServeHTTP(w, r)
		})
	})
	c := newClient(t, Config{})
	b, desc := noise(1000)
	how, err := c.Push(t.Context(), mustRef(t, host+"/new"), Upload{Desc: desc, Open: opener(b), From: []string{"lacks/it", "have/it"}})
	if err != nil || how != Mounted || posts.Load() != 2 {
		t.Fatalf("%v %v after %d requests", how, err, posts.Load())
	}
	how, err = c.Push(t.Context(), mustRef(t, host+"/new"), Upload{Desc: desc, Open: opener(b), From: []string{"lacks/it"}})
	if err != nil || how != Uploaded {
		t.Fatalf("%v %v", how, err)
	}
}

// flaky wraps blob downloads.
func flaky(f func(n int64, w http.ResponseWriter, r *http.Request, next http.Handler)) func(http.Handler) http.Handler {
	var n atomic.Int64
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:") {
				f(n.Add(1), w, r, h)
				return
			}
			h.ServeHTTP(w, r)
		})
	}
}

// cut lets n bytes through and then breaks the connection.
type cut struct {
	http.ResponseWriter
	n int
}

func (c *cut) Write(p []byte) (int, error) {
	if len(p) > c.n {
		_, _ = c.ResponseWriter.Write(p[:c.n])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.n -= len(p)
	return c.ResponseWriter.Write(p)
}

func fetchAll(c *Client, ctx context.Context, ref Ref, d image.Descriptor) ([]byte, error) {
	body, err := c.Fetch(ctx, ref, d, 0)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

func TestResume(t *testing.T) {
	var mu sync.Mutex
	var ranges []string
	host := serve(t, flaky(func(n int64, w http.ResponseWriter, r *http.Request, next http.Handler) {
		mu.Lock()
		ranges = append(ranges, r.Header.Get("Range"))
		mu.Unlock()
		switch n {
		case 1:
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusServiceUnavailable)
		case 2, 3:
			next.ServeHTTP(&cut{w, 100_000}, r)
		case 4: // a server without ranges
			r.Header.Del("Range")
			next.ServeHTTP(&cut{w, 250_000}, r)
		default:
			next.ServeHTTP(w, r)
		}
	}))
	c := newClient(t, Config{})
	ref := mustRef(t, host+"/x:1")
	_, layer, d := pushImage(t, c, ref, 400_000)
	got, err := fetchAll(c, t.Context(), ref, d)
	if err != nil || !bytes.Equal(got, layer) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if want := "[  bytes=100000-399999 bytes=200000-399999 bytes=250000-399999]"; fmt.Sprint(ranges) != want {
		t.Errorf("ranges %v, want %v", ranges, want)
	}
}

func TestBadBlobs(t *testing.T) {
	_, want := noise(50_000)
	other := bytes.Repeat([]byte("x"), 50_000)
	cases := map[string]struct {
		f    func(n int64, w http.ResponseWriter, r *http.Request, next http.Handler)
		kind diag.Kind
		text string
	}{
		"wrong digest": {func(_ int64, w http.ResponseWriter, _ *http.Request, _ http.Handler) { _, _ = w.Write(other) }, diag.Invalid, "digest is sha256:"},
		"too short":    {func(_ int64, w http.ResponseWriter, _ *http.Request, _ http.Handler) { _, _ = w.Write(other[:10]) }, diag.Invalid, "sends 10 bytes"},
		"too long": {func(_ int64, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.(http.Flusher).Flush() // no length
			_, _ = w.Write(append(other, 'y'))
		}, diag.Invalid, "more than"},
		"always 503": {func(_ int64, w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(503) }, diag.Unavailable, "503"},
		"429 for an hour": {func(_ int64, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(429)
		}, diag.Unavailable, "docker login"},
		"evil range": {func(n int64, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if n == 1 {
				next.ServeHTTP(&cut{w, 1000}, r)
				return
			}
			w.Header().Set("Content-Range", "bytes 0-9/50000")
			w.WriteHeader(206)
			_, _ = w.Write(other[:10])
		}, diag.Invalid, "bytes from 1000"},
		"drip": {func(_ int64, w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.Header().Set("Content-Length", "50000")
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte{1})
				w.(http.Flusher).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		}, diag.Unavailable, "stalled"},
		"redirect loop": {func(_ int64, w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}, diag.Denied, "more than 10"},
		"redirect to the metadata service": {func(_ int64, w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, "http://169.254.169.254/latest", http.StatusFound)
		}, diag.Denied, "no public address"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, Config{})
			ref := mustRef(t, serve(t, flaky(tc.f))+"/x:1")
			pushImage(t, c, ref, 50_000)
			_, err := fetchAll(c, t.Context(), ref, want)
			wantKind(t, err, tc.kind, tc.text)
		})
	}
}

func TestCancel(t *testing.T) {
	c := newClient(t, Config{Timing: Timing{Backoff: time.Hour}})
	started := make(chan struct{}, 1)
	ref := mustRef(t, serve(t, flaky(func(_ int64, w http.ResponseWriter, r *http.Request, _ http.Handler) {
		w.Header().Set("Content-Length", "50000")
		_, _ = w.Write([]byte("abc"))
		w.(http.Flusher).Flush()
		started <- struct{}{}
		<-r.Context().Done()
	}))+"/x:1")
	_, _, d := pushImage(t, c, ref, 50_000)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	_, err := fetchAll(c, ctx, ref, d)
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestUnreachable(t *testing.T) {
	s := httptest.NewServer(nil)
	host := strings.TrimPrefix(s.URL, "http://")
	s.Close()
	_, err := newClient(t, Config{}).Resolve(t.Context(), mustRef(t, host+"/x:1"))
	wantKind(t, err, diag.Unavailable, host, "http://"+host+"/v2/", "refused")
	host = serve(t, nil)
	_, err = newClient(t, Config{Hosts: map[string]HostConfig{host: {Insecure: true}}}).Resolve(t.Context(), mustRef(t, host+"/x:1"))
	wantKind(t, err, diag.Unavailable, "http = true")
	tls := httptest.NewTLSServer(nil)
	defer tls.Close()
	host = strings.TrimPrefix(tls.URL, "https://")
	c := newClient(t, Config{Hosts: map[string]HostConfig{host: {Mirrors: []string{"https://" + host + "/m"}}}})
	ep, err := c.net.endpoint("https://" + host)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.send(t.Context(), ep, request{method: "GET", url: &url.URL{Scheme: "https", Host: host, Path: "/"}})
	wantKind(t, err, diag.Unavailable, "insecure = true")
}

func TestMirror(t *testing.T) {
	origin, mirror := serve(t, nil), serve(t, nil)
	plain := newClient(t, Config{})
	pushImage(t, plain, mustRef(t, mirror+"/pre/only/mirror:1"), 10)
	pushImage(t, plain, mustRef(t, origin+"/only/origin:1"), 10)
	c := newClient(t, Config{Hosts: map[string]HostConfig{origin: {Mirrors: []string{"127.0.0.1:1", "http://" + mirror + "/pre"}}}})
	for _, repo := range []string{"only/mirror", "only/origin"} {
		ref := mustRef(t, origin+"/"+repo+":1")
		d, err := c.Resolve(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := c.Manifest(t.Context(), ref, d)
		if err != nil {
			t.Fatal(err)
		}
		doc, _ := Decode(raw, d.MediaType)
		if _, err := fetchAll(c, t.Context(), ref, doc.Manifest.Layers[0]); err != nil {
			t.Error(err)
		}
	}
}

// A mirror that cannot answer is asked once: the registry itself can. Where there is no other host, tries are repeated.
func TestMirrorThatFails(t *testing.T) {
	origin := serve(t, nil)
	ref := mustRef(t, origin+"/app:1")
	pushImage(t, newClient(t, Config{}), ref, 2000)
	for name, answer := range map[string]http.HandlerFunc{
		"500": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"429": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(http.StatusTooManyRequests)
		},
		"a closed connection": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"half of a blob": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "2000")
			_, _ = w.Write(make([]byte, 1000))
		},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if name == "half of a blob" && !strings.Contains(r.URL.Path, "/blobs/") {
					w.WriteHeader(http.StatusNotFound)
					return
				}
				asked.Add(1)
				answer(w, r)
			}))
			defer mirror.Close()
			// A pause would be longer than the test may take.
			timing := Timing{Header: 2 * time.Second, Stall: time.Second, Backoff: 50 * time.Second}
			c := New(Config{Timing: timing, Hosts: map[string]HostConfig{origin: {Mirrors: []string{mirror.URL}}}})
			defer c.Close()
			d, err := c.Resolve(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := c.Manifest(t.Context(), ref, d)
			if err != nil {
				t.Fatal(err)
			}
			doc, err := Decode(raw, d.MediaType)
			if err != nil {
				t.Fatal(err)
			}
			blob := doc.Manifest.Layers[0]
			r, err := c.FetchUnverified(t.Context(), ref, blob, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if got, err := io.ReadAll(r); err != nil || int64(len(got)) != blob.Size {
				t.Errorf("%d bytes of %d, %v", len(got), blob.Size, err)
			}
			if n := asked.Load(); n > 4 { // HEAD and GET of the manifest's name, the manifest, the blob
				t.Errorf("the mirror was asked %d times", n)
			}
		})
	}
	var asked atomic.Int64
	alone := serve(t, flaky(func(n int64, w http.ResponseWriter, r *http.Request, next http.Handler) {
		if asked.Add(1) < 3 {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		next.ServeHTTP(w, r)
	}))
	_, err := newClient(t, Config{}).Resolve(t.Context(), mustRef(t, alone+"/none:1"))
	wantKind(t, err, diag.NotFound, "none:1 was not found in "+alone)
}

// A registry whose name nobody knows gets a hint.
func TestUnknownHost(t *testing.T) {
	dns := &net.DNSError{Err: "no such host", Name: "x", IsNotFound: true}
	u := &url.URL{Scheme: "https", Host: "registry.example", Path: "/v2/"}
	wantKind(t, unreachable(&endpoint{name: "registry.example"}, u, dns), diag.Unavailable, "no such host", "HTTPS_PROXY", "docker.io/library/NAME")
	wantKind(t, unreachable(&endpoint{name: DockerHub}, u, dns), diag.Unavailable, "HTTPS_PROXY", "mirror")
}

// A blob that no registry has is read where its descriptor says that it is, and not before.
func TestBlobElsewhere(t *testing.T) {
	host := serve(t, nil)
	c := newClient(t, Config{})
	ref := mustRef(t, host+"/app:1")
	pushImage(t, c, ref, 10)
	b, d := noise(100)
	asked := 0
	maker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		if r.URL.Path != "/layer" || r.Header.Get("Authorization") != "" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(b)
	}))
	defer maker.Close()
	if _, err := fetchAll(c, t.Context(), ref, d); err == nil {
		t.Fatal("the registry has the blob")
	}
	d.URLs = []string{"file:///etc/passwd", maker.URL + "/gone", maker.URL + "/layer"}
	got, err := fetchAll(c, t.Context(), ref, d)
	if err != nil || !bytes.Equal(got, b) || asked != 2 {
		t.Errorf("%d bytes after %d requests: %v", len(got), asked, err)
	}
	b[0]++
	if _, err := fetchAll(c, t.Context(), ref, d); err == nil || diag.KindOf(err) != diag.Invalid {
		t.Errorf("other bytes than the digest's: %v", err)
	}
}

// TestLyingHead: whatever HEAD claims, the bytes decide.
func TestLyingHead(t *testing.T) {
	mode := ""
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/manifests/") {
				switch mode {
				case "none":
					w.WriteHeader(http.StatusMethodNotAllowed)
					return
				case "lie":
					w.Header().Set("Docker-Content-Digest", digest.FromString("lie").String())
					w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
					w.Header().Set("Content-Length", "5")
					return
				}
			}
			if mode == "lie" {
				r.URL.Path = strings.Replace(r.URL.Path, digest.FromString("lie").String(), "1", 1)
			}
			h.ServeHTTP(w, r)
		})
	})
	c := newClient(t, Config{})
	ref := mustRef(t, host+"/x:1")
	m, _, _ := pushImage(t, c, ref, 10)
	mode = "none"
	d, err := c.Resolve(t.Context(), ref)
	if err != nil || d.Digest != m.Digest || d.MediaType != m.MediaType {
		t.Errorf("GET: %v %v", d, err)
	}
	mode = "lie"
	d, err = c.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Manifest(t.Context(), ref, d)
	wantKind(t, err, diag.Invalid, "whose digest is "+m.Digest.String())
}

func TestChunkedFallback(t *testing.T) {
	var puts atomic.Int64
	var mu sync.Mutex
	chunks := map[string]bool{} // by their ranges: one may be sent again when a connection breaks
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodPut && r.ContentLength > 0 && strings.Contains(r.URL.Path, "/blobs/"):
				puts.Add(1)
				w.WriteHeader(http.StatusRequestEntityTooLarge)
				return
			case r.Method == http.MethodPatch:
				mu.Lock()
				chunks[r.Header.Get("Content-Range")] = true
				mu.Unlock()
			}
			h.ServeHTTP(w, r)
		})
	})
	c := newClient(t, Config{})
	b, d := noise(17 << 20)
	ref := mustRef(t, host+"/x:1")
	var last atomic.Int64
	if _, err := c.Push(t.Context(), ref, Upload{Desc: d, Open: opener(b), Progress: last.Store}); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(chunks) != 2 || last.Load() != d.Size {
		t.Errorf("chunks %v, progress %d", chunks, last.Load())
	}
	got, err := fetchAll(c, t.Context(), ref, d)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(b) {
		t.Error(err)
	}
}

func TestPushDamagedBlob(t *testing.T) {
	c := newClient(t, Config{})
	b, d := noise(1000)
	ref := mustRef(t, serve(t, nil)+"/x:1")
	b[7] ^= 1
	_, err := c.Push(t.Context(), ref, Upload{Desc: d, Open: opener(b)})
	wantKind(t, err, diag.Internal, "damaged")
	_, err = c.Push(t.Context(), ref, Upload{Desc: d, Open: opener(b[:10])})
	wantKind(t, err, diag.Internal, "shorter")
}

// What a mirror said stands beside the registry's own answer.
func TestMirrorAnswerInError(t *testing.T) {
	answer := func(code int, text string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(code)
			fmt.Fprintf(w, `{"errors":[{"code":"X","message":%q}]}`, text)
		}))
		t.Cleanup(s.Close)
		return strings.TrimPrefix(s.URL, "http://")
	}
	mirror, origin := answer(http.StatusForbidden, "the quota of the mirror"), answer(http.StatusNotFound, "unknown here")
	c := newClient(t, Config{Hosts: map[string]HostConfig{origin: {HTTP: true, Mirrors: []string{"http://" + mirror}}}})
	ref, err := ParseRef(origin + "/a:1")
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Resolve(t.Context(), ref)
	if diag.KindOf(err) != diag.NotFound || !strings.Contains(err.Error(), "mirror "+mirror) {
		t.Errorf("the error: %v", err)
	}
}
