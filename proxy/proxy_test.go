package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// setup returns a proxy, and a client of it that trusts its authority. All connections go to one server.
func setup(t *testing.T, check Check, server *httptest.Server) (*Proxy, *http.Client, func()) {
	t.Helper()
	a, err := NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Authority: a, Check: check}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stop := p.Serve(l, func(ctx context.Context, network, addr string) (net.Conn, error) {
		if !strings.HasPrefix(addr, "site.example:") && !strings.HasPrefix(addr, "example.com:") {
			return nil, errors.New("no such host " + addr)
		}
		return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
	})
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(p.CA()) {
		t.Fatal("no certificate")
	}
	u := &url.URL{Scheme: "http", Host: l.Addr().String()}
	return p, &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(u), TLSClientConfig: &tls.Config{RootCAs: pool}}}, stop
}

func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func sum(s string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(s))) }

func site() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Proxy-Authorization") != "" || r.Header.Get("Secret") != "":
			w.WriteHeader(http.StatusTeapot)
		case r.URL.Path == "/moved":
			http.Redirect(w, r, "/there", http.StatusFound)
		case r.URL.Path == "/missing":
			http.NotFound(w, r)
		default:
			fmt.Fprint(w, "content of "+r.URL.Path)
		}
	})
}

func TestPlain(t *testing.T) {
	s := httptest.NewServer(site())
	defer s.Close()
	p, c, stop := setup(t, nil, s)
	defer stop()
	if code, text := get(t, c, "http://me:secret@site.example:80/moved"); code != 200 || text != "content of /there" {
		t.Errorf("%d %q", code, text)
	}
	if code, _ := get(t, c, "http://site.example/missing"); code != 404 {
		t.Error(code)
	}
	if code, _ := get(t, c, "http://elsewhere.example/x"); code != 502 {
		t.Error(code)
	}
	req, _ := http.NewRequest(http.MethodGet, "http://site.example/part", nil)
	req.Header.Set("Range", "bytes=0-1")
	req.Header.Set("Connection", "secret")
	req.Header.Set("Secret", "1")
	if resp, err := c.Do(req); err != nil || resp.StatusCode != 200 {
		t.Errorf("%v %v", resp, err)
	}
	if resp, err := c.Post("http://site.example/post", "text/plain", strings.NewReader("x")); err != nil || resp.StatusCode != 200 {
		t.Errorf("%v %v", resp, err)
	}
	c.CloseIdleConnections()
	want := []Material{{"http://site.example/there", sum("content of /there")}, {"http://site.example/moved", sum("content of /there")}}
	if got := p.Materials(); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	bad := []Incomplete{
		{"GET", "http://site.example/missing", "unsuccessful_response"},
		{"GET", "http://elsewhere.example/x", "upstream_error"},
		{"GET", "http://site.example/part", "partial_response"},
		{"POST", "http://site.example/post", "method_not_materializable"},
	}
	if got := p.Incomplete(); !slices.Equal(got, bad) {
		t.Errorf("%+v", got)
	}
	if got := p.Requests(); len(got) != 6 || got[0].Status != 302 || got[0].Redirect != "http://site.example/there" || got[3].Status != 502 {
		t.Errorf("%+v", got)
	}
}

func TestPolicy(t *testing.T) {
	s := httptest.NewServer(site())
	defer s.Close()
	p, c, stop := setup(t, func(_ context.Context, url string) (string, error) {
		if strings.HasSuffix(url, "/denied") {
			return "", errors.New("no")
		}
		if strings.HasSuffix(url, "/file") {
			return "gopher://site.example/", nil
		}
		return strings.Replace(url, "/foo", "/bar", 1), nil
	}, s)
	defer stop()
	for path, want := range map[string]int{"/denied": 403, "/file": 403, "/ok": 200} {
		if code, _ := get(t, c, "http://site.example"+path); code != want {
			t.Errorf("%s: %d", path, code)
		}
	}
	if resp, err := c.Post("http://site.example/foo", "", nil); err != nil || resp.StatusCode != 403 {
		t.Errorf("%v %v", resp, err)
	}
	if code, text := get(t, c, "http://site.example/foo"); code != 200 || text != "content of /bar" {
		t.Errorf("%d %q", code, text)
	}
	if m := p.Materials(); !slices.Contains(m, Material{"http://site.example/bar", sum("content of /bar")}) {
		t.Errorf("%+v", m)
	}
}

// The proxy speaks TLS to the step with a certificate of its own, and to the server as any client does.
func TestTunnel(t *testing.T) {
	s := httptest.NewUnstartedServer(site())
	s.StartTLS()
	defer s.Close()
	roots := filepath.Join(t.TempDir(), "roots.pem") // this is the only test that needs the system's
	os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o644)
	t.Setenv("SSL_CERT_FILE", roots)
	p, c, stop := setup(t, nil, s)
	for range 2 {
		code, text := get(t, c, "https://site.example/x")
		if code != 502 || !strings.Contains(text, "certificate") {
			t.Errorf("a server that nobody vouches for: %d %q", code, text)
		}
	}
	for range 2 {
		if code, text := get(t, c, "https://example.com/y"); code != 200 || text != "content of /y" {
			t.Errorf("%d %q", code, text)
		}
	}
	if m := p.Materials(); len(m) != 2 || m[0] != (Material{"https://example.com/y", sum("content of /y")}) {
		t.Errorf("%+v", m)
	}
	conn := c.Transport.(*http.Transport)
	conn.CloseIdleConnections()
	stop()
	if got := p.Requests(); len(got) != 4 || got[0].URL != "https://site.example/x" || got[0].Status != 502 {
		t.Errorf("%+v", got)
	}
	if _, err := c.Get("https://site.example/x"); err == nil {
		t.Error("a stopped proxy answers")
	}
	leaf, err := p.Authority.leaf("10.0.0.1")
	if err != nil || len(leaf.Leaf.IPAddresses) != 1 {
		t.Errorf("%+v %v", leaf, err)
	}
}
