package source

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/registry"
)

// faults answer otherwise than with the right bytes.
var faults = map[string]func(w http.ResponseWriter, right []byte){
	"one wrong byte": func(w http.ResponseWriter, right []byte) {
		b := bytes.Clone(right)
		b[len(b)/2] ^= 1
		_, _ = w.Write(b)
	},
	"too long":               func(w http.ResponseWriter, right []byte) { _, _ = w.Write(append(bytes.Clone(right), "more"...)) },
	"too short, with length": func(w http.ResponseWriter, right []byte) { _, _ = w.Write(right[:len(right)/2]) },
	"too long, chunked":      chunked(func(right []byte) []byte { return append(bytes.Clone(right), "more"...) }),
	"other bytes":            func(w http.ResponseWriter, right []byte) { _, _ = w.Write(bytes.Repeat([]byte{7}, len(right))) },
	"a page with the code 200": func(w http.ResponseWriter, _ []byte) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<html>sign in to the network</html>")
	},
}

func chunked(make func([]byte) []byte) func(http.ResponseWriter, []byte) {
	return func(w http.ResponseWriter, right []byte) {
		w.(http.Flusher).Flush()
		_, _ = w.Write(make(right))
	}
}

// spoiler is a registry's handler that spoils answers to GET for paths with a part in them, the first ones or all.
type spoiler struct {
	next  http.Handler
	fault func(http.ResponseWriter, []byte)
	mu    sync.Mutex
	first int // how many answers for each path are spoilt
	asked map[string]int
}

func (s *spoiler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind := strings.Contains(r.URL.Path, "/blobs/") || strings.Contains(r.URL.Path, "/manifests/sha256:")
	if r.Method != http.MethodGet || !kind {
		s.next.ServeHTTP(w, r)
		return
	}
	s.mu.Lock()
	s.asked[r.URL.Path]++
	spoil := s.asked[r.URL.Path] <= s.first
	s.mu.Unlock()
	if !spoil {
		s.next.ServeHTTP(w, r)
		return
	}
	r.Header.Del("Range")
	rec := httptest.NewRecorder()
	s.next.ServeHTTP(rec, r)
	if rec.Code != http.StatusOK {
		w.WriteHeader(rec.Code)
		return
	}
	s.fault(w, rec.Body.Bytes())
}

func (s *spoiler) count(part string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, k := range s.asked {
		if strings.Contains(path, part) {
			n += k
		}
	}
	return n
}

// TestWrongBytesAreAskedForAgain: a transfer that ends with a wrong digest or length is begun anew, as one that breaks off goes on: of
// manifests, configurations and layers, of a registry alone and behind a mirror that never sends anything else.
func TestWrongBytesAreAskedForAgain(t *testing.T) {
	f := setup(t)
	text := strings.Repeat("0123456789abcdef", 2000)
	b := build(amd64, true, makeTar(file{"one", "1" + text, ""}), makeTar(file{"two", "2" + text, ""}))
	f.push("x:1", b)
	reg := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { proxy(t, f.host, w, r) })
	for name, fault := range faults {
		for _, mirrored := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, mirror %t", name, mirrored), func(t *testing.T) {
				s := &spoiler{next: reg, fault: fault, first: 2, asked: map[string]int{}}
				if mirrored {
					s.first = 1 << 30
				}
				srv := httptest.NewServer(s)
				defer srv.Close()
				host := strings.TrimPrefix(srv.URL, "http://")
				cfg := registry.Config{Timing: registry.Timing{Backoff: time.Millisecond}}
				if mirrored {
					cfg.Hosts = map[string]registry.HostConfig{f.host: {Mirrors: []string{srv.URL}}}
					host = f.host
				}
				g := *setup(t)
				g.client = registry.New(cfg)
				defer g.client.Close()
				layers, _, err := g.images(nil).Fetch(t.Context(), &graph.Image{Ref: host + "/x:1"}, amd64, "")
				if err != nil {
					t.Fatal(err)
				}
				if g.read(layers, "one") != "1"+text || g.read(layers, "two") != "2"+text {
					t.Error("the image has other files")
				}
				if n := s.count("/blobs/"); mirrored && n > 3 {
					t.Errorf("the mirror was asked for 3 blobs %d times", n)
				}
			})
		}
	}
}

// TestRegistryThatOnlyLies ends after a few tries, with an error that says who has sent what.
func TestRegistryThatOnlyLies(t *testing.T) {
	f := setup(t)
	b := build(amd64, true, makeTar(file{"one", "1", ""}))
	f.push("x:1", b)
	mirror := &spoiler{next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { proxy(t, f.host, w, r) }), fault: faults["one wrong byte"], first: 1 << 30, asked: map[string]int{}}
	srv := httptest.NewServer(mirror)
	defer srv.Close()
	asked := 0
	lying := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") && r.URL.RawQuery == "" && r.Header.Get("X-Proxied") == "" && r.Method == http.MethodGet {
			asked++
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			faults["one wrong byte"](w, rec.Body.Bytes())
			return
		}
		next.ServeHTTP(w, r)
	}
	f.wrap.Store(&lying)
	f.client = registry.New(registry.Config{Timing: registry.Timing{Backoff: time.Millisecond}, Hosts: map[string]registry.HostConfig{f.host: {Mirrors: []string{srv.URL}}}})
	defer f.client.Close()
	_, _, err := f.images(nil).Fetch(t.Context(), &graph.Image{Ref: f.host + "/x:1"}, amd64, "")
	wantKind(t, err, diag.Invalid, "the registry sent bytes whose digest is sha256:", "the mirror "+strings.TrimPrefix(srv.URL, "http://")+" sent bytes whose digest is")
	if asked > 6 {
		t.Errorf("the registry was asked %d times", asked)
	}
}

// proxy passes a request on to a registry.
func proxy(t *testing.T, host string, w http.ResponseWriter, r *http.Request) {
	t.Helper()
	req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+host+r.URL.RequestURI(), r.Body)
	if err != nil {
		t.Error(err)
		return
	}
	req.Header = r.Header.Clone()
	req.Header.Set("X-Proxied", "1")
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}
