package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// victim is a step's proxy in front of one server, which answers for every name and notes what it is asked.
type victim struct {
	*Proxy
	addr   string
	roots  *x509.CertPool
	mu     sync.Mutex
	asked  []string // what reached the server: Host and request line
	passed []string // what the policy saw
}

// newVictim starts the proxy and its server. The policy denies evil.example.
func newVictim(t *testing.T, l limits, serve http.HandlerFunc) *victim {
	t.Helper()
	a, err := NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	v := &victim{}
	v.Proxy = &Proxy{Authority: a, limits: l, Check: func(_ context.Context, url string) (string, error) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.passed = append(v.passed, url)
		if strings.HasPrefix(url, "http://evil.example/") || strings.HasPrefix(url, "https://evil.example/") {
			return "", errors.New("denied")
		}
		return url, nil
	}}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v.mu.Lock()
		v.asked = append(v.asked, r.Host+" "+r.Method+" "+r.RequestURI)
		v.mu.Unlock()
		if serve != nil {
			serve(w, r)
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	roots := filepath.Join(t.TempDir(), "roots.pem")
	os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o644)
	t.Setenv("SSL_CERT_FILE", roots)
	in, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v.addr = in.Addr().String()
	stop := v.Serve(in, func(ctx context.Context, network, addr string) (net.Conn, error) {
		to := plain.Listener.Addr().String()
		if strings.HasSuffix(addr, ":443") {
			to = secure.Listener.Addr().String()
		}
		return (&net.Dialer{}).DialContext(ctx, network, to)
	})
	t.Cleanup(stop)
	v.roots = x509.NewCertPool()
	v.roots.AppendCertsFromPEM(v.CA())
	return v
}

func (v *victim) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", v.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute)) // a hang must fail the test
	return c
}

// tunnel opens one to an authority, with a name in the handshake.
func (v *victim) tunnel(t *testing.T, authority, sni string) (*tls.Conn, error) {
	t.Helper()
	c := v.dial(t)
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", authority, authority)
	resp, err := http.ReadResponse(bufio.NewReaderSize(io.LimitReader(c, int64(len("HTTP/1.1 200 Connection Established\r\n\r\n"))), 64), nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != 200 {
		return nil, errors.New(resp.Status)
	}
	s := tls.Client(c, &tls.Config{RootCAs: v.roots, ServerName: sni, NextProtos: []string{"h2", "http/1.1"}})
	return s, s.Handshake()
}

// status sends a request and returns the status of the answer, 0 if the connection just ends.
func status(t *testing.T, c io.ReadWriter, request string) int {
	t.Helper()
	io.WriteString(c, request)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp.StatusCode
}

func (v *victim) reached() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.asked)
}

// A request in a tunnel to one host that is meant for another one passed the policy of the first and was recorded as it.
func TestInnerHostIsNotTheAuthority(t *testing.T) {
	v := newVictim(t, limits{}, nil)
	for name, request := range map[string]string{
		"Host":               "GET /x HTTP/1.1\r\nHost: evil.example\r\n\r\n",
		"Host with port":     "GET /x HTTP/1.1\r\nHost: example.com:8443\r\n\r\n",
		"absolute form":      "GET https://evil.example/x HTTP/1.1\r\nHost: example.com\r\n\r\n",
		"absolute http":      "GET http://example.com/x HTTP/1.1\r\nHost: example.com\r\n\r\n",
		"opaque":             "GET https:evil.example/x HTTP/1.1\r\nHost: example.com\r\n\r\n",
		"two Hosts":          "GET /x HTTP/1.1\r\nHost: example.com\r\nHost: evil.example\r\n\r\n",
		"no Host":            "GET /x HTTP/1.1\r\n\r\n",
		"userinfo":           "GET /x HTTP/1.1\r\nHost: example.com@evil.example\r\n\r\n",
		"tunnel in a tunnel": "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
		"HTTP/2 preface":     "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"asterisk":           "OPTIONS * HTTP/1.1\r\nHost: example.com\r\n\r\n",
	} {
		c, err := v.tunnel(t, "example.com:443", "example.com")
		if err != nil {
			t.Fatal(name, err)
		}
		if p := c.ConnectionState().NegotiatedProtocol; p != "http/1.1" {
			t.Errorf("%s: the tunnel speaks %q", name, p)
		}
		if code := status(t, c, request); code != 0 && code < 400 {
			t.Errorf("%s: status %d", name, code)
		}
	}
	if got := v.reached(); len(got) != 0 {
		t.Errorf("the server was asked: %q", got)
	}
	if got := v.Requests(); len(got) != 0 {
		t.Errorf("recorded: %v", got)
	}
	// What is for the authority passes, in every spelling of it.
	c, err := v.tunnel(t, "EXAMPLE.com.:443", "example.com")
	if err != nil {
		t.Fatal(err)
	}
	if code := status(t, c, "GET /y HTTP/1.1\r\nHost: Example.COM:443\r\n\r\n"); code != 200 {
		t.Error(code)
	}
	if got := v.reached(); !slices.Equal(got, []string{"example.com GET /y"}) {
		t.Errorf("%q", got)
	}
	if got := v.Materials(); len(got) != 1 || got[0].URL != "https://example.com/y" {
		t.Errorf("%v", got)
	}
}

func TestServerNameIsNotTheAuthority(t *testing.T) {
	v := newVictim(t, limits{}, nil)
	if _, err := v.tunnel(t, "example.com:443", "evil.example"); err == nil || strings.Contains(err.Error(), "certificate is valid") {
		t.Errorf("the proxy went on: %v", err)
	}
}

// Other spellings of a denied host reached it.
func TestAliasesOfADeniedHost(t *testing.T) {
	v := newVictim(t, limits{}, nil)
	for _, host := range []string{
		"evil.example", "EVIL.example", "evil.example.", "evil.example:80", "evil.example:080", "u:p@evil.example", "ｅvil.example", "evil%2eexample",
	} {
		if code := status(t, v.dial(t), "GET http://"+host+"/x HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); code < 400 {
			t.Errorf("%s: %d", host, code)
		}
		if code := status(t, v.dial(t), "GET /x HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); code < 400 {
			t.Errorf("%s: %d", host, code)
		}
	}
	for _, host := range []string{"127.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.1.", "[::ffff:127.0.0.1]", "[fe80::1%25eth0]", "a..b", "", "a:0", "a:99999", "a:+80"} {
		got, err := canonicalHost("http", host)
		if host == "127.0.0.1." || strings.HasPrefix(host, "[::ffff") {
			if got != "127.0.0.1" {
				t.Errorf("%q: %q %v", host, got, err)
			}
		} else if err == nil {
			t.Errorf("%q is taken for %q", host, got)
		}
	}
	if got := v.reached(); len(got) != 0 {
		t.Errorf("the server was asked: %q", got)
	}
}

// What the proxy takes for one request must not be two for the server behind it.
func TestRequestSmuggling(t *testing.T) {
	v := newVictim(t, limits{idle: time.Second}, func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	var wg sync.WaitGroup
	hidden := "GET /hidden HTTP/1.1\r\nHost: evil.example\r\n\r\n"
	for name, request := range map[string]string{
		"length and chunks": fmt.Sprintf("POST /a HTTP/1.1\r\nHost: example.com\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 5+len(hidden)),
		"two lengths":       fmt.Sprintf("POST /a HTTP/1.1\r\nHost: example.com\r\nContent-Length: 0\r\nContent-Length: %d\r\n\r\n", len(hidden)),
		"odd encoding":      "POST /a HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: xchunked\r\n\r\n",
		"space in a name":   fmt.Sprintf("POST /a HTTP/1.1\r\nHost: example.com\r\nContent-Length : %d\r\n\r\n", len(hidden)),
		"folded":            "POST /a HTTP/1.1\r\nHost: example.com\r\nX: a\r\n Transfer-Encoding: chunked\r\n\r\n",
		"line feed in path": "GET /a\nHost:evil.example HTTP/1.1\r\nHost: example.com\r\n\r\n",
	} {
		c, err := v.tunnel(t, "example.com:443", "example.com")
		if err != nil {
			t.Fatal(name, err)
		}
		wg.Go(func() {
			io.WriteString(c, request+hidden)
			io.Copy(io.Discard, c)
		})
	}
	wg.Wait()
	for _, asked := range v.reached() {
		if strings.Contains(asked, "hidden") || !strings.HasPrefix(asked, "example.com ") {
			t.Errorf("the server was asked %q", asked)
		}
	}
	if len(v.reached()) != len(v.Requests()) {
		t.Errorf("%d requests, %d recorded", len(v.reached()), len(v.Requests()))
	}
}

// A step that asked for ever filled the memory of the engine with what it had asked for.
func TestEndlessRequests(t *testing.T) {
	v := newVictim(t, limits{requests: 5}, nil)
	c := v.dial(t)
	for i := range 7 {
		want := 200
		if i >= 5 {
			want = 503
		}
		io.WriteString(c, "GET http://example.com/x HTTP/1.1\r\nHost: example.com\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != want || want == 503 && !strings.Contains(string(text), "the step has made 5 requests") {
			t.Errorf("request %d: %d %q", i, resp.StatusCode, text)
		}
	}
	if len(v.reached()) != 5 || len(v.Requests()) != 5 || len(v.Materials()) != 5 {
		t.Errorf("%d asked, %d and %d recorded", len(v.reached()), len(v.Requests()), len(v.Materials()))
	}
	v = newVictim(t, limits{recorded: 90, address: 60}, nil)
	long := "GET http://example.com/" + strings.Repeat("x", 30) + " HTTP/1.1\r\nHost: example.com\r\n\r\n"
	for i, want := range []int{200, 503} {
		if code := status(t, v.dial(t), long); code != want {
			t.Errorf("request %d: %d", i, code)
		}
	}
	if code := status(t, v.dial(t), "GET http://example.com/"+strings.Repeat("x", 60)+" HTTP/1.1\r\nHost: example.com\r\n\r\n"); code != 414 {
		t.Error("a long address:", code)
	}
	if code := status(t, v.dial(t), strings.Repeat("X", 100)+" http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n"); code != 400 {
		t.Error("a long method:", code)
	}
}

// A header without an end filled the memory of the engine: in a tunnel nothing bounded it.
func TestEndlessHeader(t *testing.T) {
	v := newVictim(t, limits{}, nil)
	c, err := v.tunnel(t, "example.com:443", "example.com")
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: example.com\r\n")
	line := "X: " + strings.Repeat("x", 64<<10) + "\r\n"
	sent := 0
	for ; sent < 64<<20; sent += len(line) {
		if _, err := io.WriteString(c, line); err != nil {
			break
		}
	}
	runtime.ReadMemStats(&after)
	if sent > 16<<20 {
		t.Errorf("%d bytes of a header were taken; the memory grew by %d", sent, after.HeapAlloc-before.HeapAlloc)
	}
	// The server's header is bounded as well.
	v = newVictim(t, limits{header: 64 << 10}, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 1<<20)) })
	if code := status(t, v.dial(t), "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n"); code != 502 {
		t.Error(code)
	}
}

// Connections on which nothing happens held the proxy for as long as the step ran.
func TestSilentConnections(t *testing.T) {
	release := make(chan struct{})
	v := newVictim(t, limits{begin: time.Second, idle: time.Second, conns: 6}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stalls" {
			w.Header().Set("Content-Length", "10")
			w.(http.Flusher).Flush()
			<-release
		}
	})
	defer close(release)
	tunnel, err := v.tunnel(t, "example.com:443", "example.com")
	if err != nil {
		t.Fatal(err)
	}
	conns := []net.Conn{tunnel}
	for _, say := range []string{
		"", "GET http://example.com/ HTTP/1.1\r\n", "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
		"POST http://example.com/ HTTP/1.1\r\nHost: example.com\r\nContent-Length: 10\r\n\r\nx",
		"GET http://example.com/stalls HTTP/1.1\r\nHost: example.com\r\n\r\n",
	} {
		c := v.dial(t)
		io.WriteString(c, say)
		conns = append(conns, c)
	}
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() {
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the proxy waits for connection %d, which says nothing", i)
			}
		})
	}
	wg.Wait()
	// None of them holds a place.
	if code := status(t, v.dial(t), "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n"); code != 200 {
		t.Error(code)
	}
}

// An answer that broke off reached the step as a whole one.
func TestBrokenAnswerIsNotWhole(t *testing.T) {
	v := newVictim(t, limits{}, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	c := v.dial(t)
	io.WriteString(c, "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("%q is whole", text)
	}
	if got := v.Incomplete(); len(got) != 1 || got[0].Reason != "body_read_failed" || len(v.Materials()) != 0 {
		t.Errorf("%v", got)
	}
}

// A chain of redirects, noted in the worst order, took the square of its length.
func TestChainOfRedirects(t *testing.T) {
	const n = 60000
	p := &Proxy{}
	for i := range n {
		p.requests = append(p.requests, Request{URL: fmt.Sprint("http://a/", i), Redirect: fmt.Sprint("http://a/", i+1)})
	}
	p.materials = []Material{{fmt.Sprint("http://a/", n), "sha256:1"}}
	if got := p.Materials(); len(got) != n+1 || got[n] != (Material{"http://a/0", "sha256:1"}) {
		t.Errorf("%d materials", len(got))
	}
}

// What is left of the authority of a step is of no use: no other step trusts it, and it ends soon.
func TestAuthorityIsOfOneStep(t *testing.T) {
	v, other := newVictim(t, limits{}, nil), newVictim(t, limits{}, nil)
	v.roots = other.roots
	if _, err := v.tunnel(t, "example.com:443", "example.com"); err == nil {
		t.Error("the authority of another step is trusted")
	}
	if age := v.Authority.cert.NotAfter.Sub(v.Authority.cert.NotBefore); age > 8*24*time.Hour {
		t.Error(age)
	}
}

// No spelling of a host makes two requests of one, or has a second spelling.
func FuzzCanonicalHost(f *testing.F) {
	for _, s := range []string{"example.com", "EXAMPLE.com.:0443", "[::1]:80", "127.1", "a@b", "[::ffff:1.2.3.4]", "[fe80::1%eth0]", "0x7f.1", "x:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, host string) {
		for _, scheme := range []string{"http", "https"} {
			got, err := canonicalHost(scheme, host)
			if err != nil {
				continue
			}
			if again, err := canonicalHost(scheme, got); again != got || err != nil {
				t.Errorf("%q -> %q -> %q %v", host, got, again, err)
			}
			if strings.ContainsAny(got, "@/\\?#% \t\r\n") || hostOnly(got) == "" {
				t.Errorf("%q -> %q", host, got)
			}
		}
	})
}
