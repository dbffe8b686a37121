package registry

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/strata-build/strata/diag"
)

// realRegistry starts Debian's docker-registry with a login and returns its host.
func realRegistry(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry is not installed")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	hash, err := bcrypt.GenerateFromPassword([]byte("p"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage:\n  filesystem: {rootdirectory: %s}\nhttp: {addr: %q}\nauth:\n  htpasswd: {realm: r, path: %s}\n",
		filepath.Join(dir, "data"), host, filepath.Join(dir, "htpasswd"))
	for name, body := range map[string]string{"htpasswd": "u:" + string(hash) + "\n", "config.yml": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "serve", filepath.Join(dir, "config.yml"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for range 200 {
		if resp, err := http.Get("http://" + host + "/v2/"); err == nil {
			resp.Body.Close()
			return host
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the registry does not answer: %s", out.String())
	return ""
}

func TestRealRegistry(t *testing.T) {
	host := realRegistry(t)
	c := newClient(t, Config{Credentials: static("u", "p"), Timing: Timing{Backoff: time.Millisecond}})
	ref := mustRef(t, host+"/one:1")
	m, layer, d := pushImage(t, c, ref, 3<<20)
	desc, err := c.Resolve(t.Context(), ref)
	if err != nil || desc.Digest != m.Digest {
		t.Fatalf("%v %v", desc, err)
	}
	got, err := fetchAll(c, t.Context(), ref, d)
	if err != nil || !bytes.Equal(got, layer) {
		t.Fatal(err)
	}
	two := mustRef(t, host+"/two:1")
	if how, err := c.Push(t.Context(), two, Upload{Desc: d, Open: opener(layer), From: []string{"none", "one"}}); err != nil || how != Mounted {
		t.Errorf("%s %v", how, err)
	}
	if how, err := c.Push(t.Context(), two, Upload{Desc: d, Open: opener(layer)}); err != nil || how != Existed {
		t.Errorf("%s %v", how, err)
	}
	// In chunks.
	b, cd := noise(17<<20 + 5)
	ep, err := c.net.endpoint(host)
	if err != nil {
		t.Fatal(err)
	}
	p := &push{c: c, ep: ep, ref: two, Upload: Upload{Desc: cd, Open: opener(b)}}
	loc, _, err := p.start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.chunks(t.Context(), loc); err != nil {
		t.Fatal(err)
	}
	if ok, err := c.Exists(t.Context(), two, cd); err != nil || !ok {
		t.Error(ok, err)
	}
	if tags, err := c.Tags(t.Context(), ref); err != nil || len(tags) != 1 {
		t.Error(tags, err)
	}
	_, err = c.Resolve(t.Context(), mustRef(t, host+"/none:1"))
	wantKind(t, err, diag.NotFound, "none:1 was not found in ")
	_, err = c.For(static("u", "x")).Resolve(t.Context(), ref)
	wantKind(t, err, diag.Denied, "docker login "+host)
}

// A build that names a metadata service, or a name that stands for one when the connection is made, does not get there.
func TestMetadataAsOrigin(t *testing.T) {
	for addr, ok := range map[string]bool{
		"169.254.169.254:80": false, "[::ffff:169.254.169.254]:80": false, "[fe80::1%eth0]:80": false, "[fd00:ec2::254]:80": false,
		"100.100.100.200:80": false, "192.0.0.192:80": false, "10.0.0.1:80": true, "127.0.0.1:80": true, "1.1.1.1:443": true,
	} {
		w, allowed := NewWeb(WebOptions{Header: time.Second}), NewWeb(WebOptions{Header: time.Second, AllowMetadata: true})
		if err := w.checkOwn("tcp", addr, nil); (err == nil) != ok {
			t.Errorf("%s: %v", addr, err)
		}
		if err := allowed.checkOwn("tcp", addr, nil); err != nil {
			t.Errorf("%s, which is allowed: %v", addr, err)
		}
	}
	c := New(Config{Timing: Timing{Backoff: time.Millisecond}})
	defer c.Close()
	_, err := c.Resolve(t.Context(), mustRef(t, "169.254.169.254:80/a/b:1"))
	wantKind(t, err, diag.Denied, "169.254.169.254 is a link-local address")
}

// An origin whose name stands for a private address once, and then for a public one that redirects, is not a private server.
func TestRebindingOrigin(t *testing.T) {
	w := NewWeb(WebOptions{Header: time.Second})
	w.seen(remote("10.0.0.1:80"))
	if err := w.checkForeign("tcp", "127.0.0.1:80", nil); err != nil {
		t.Errorf("a private server leads to another: %v", err)
	}
	w.seen(remote("93.184.216.34:80"))
	w.seen(remote("10.0.0.1:80"))
	if err := w.checkForeign("tcp", "127.0.0.1:80", nil); err == nil {
		t.Error("a public server leads to this machine")
	}
}

// remote is a connection to an address.
func remote(addr string) net.Conn { return remoteConn{addr: netip.MustParseAddrPort(addr)} }

type remoteConn struct {
	net.Conn
	addr netip.AddrPort
}

func (c remoteConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.addr) }

// TestForeign: what the registry sends elsewhere is checked when the connection is made, whatever its name.
func TestForeign(t *testing.T) {
	for _, tc := range []struct {
		addr    string
		private bool
		ok      bool
	}{
		{"169.254.169.254:80", true, false},
		{"[fe80::1]:80", true, false},
		{"0.0.0.0:80", true, false},
		{"10.0.0.1:443", false, false},
		{"127.0.0.1:80", false, false},
		{"[::1]:80", false, false},
		{"192.168.1.1:80", false, false},
		{"10.0.0.1:443", true, true},
		{"127.0.0.1:80", true, true},
		{"93.184.216.34:443", false, true},
	} {
		w := NewWeb(WebOptions{Header: time.Second})
		w.private.Store(tc.private)
		if err := w.checkForeign("tcp", tc.addr, nil); (err == nil) != tc.ok {
			t.Errorf("%s (private origin: %v): %v", tc.addr, tc.private, err)
		}
		w.Close()
	}
}

func TestPushRetries(t *testing.T) {
	var uploads int
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut && r.ContentLength == 500_000 {
				if uploads++; uploads < 3 {
					_, _ = r.Body.Read(make([]byte, 1000))
					if uploads == 1 {
						panic(http.ErrAbortHandler)
					}
					w.WriteHeader(http.StatusBadGateway)
					return
				}
			}
			h.ServeHTTP(w, r)
		})
	})
	c := newClient(t, Config{})
	b, d := noise(500_000)
	ref := mustRef(t, host+"/x:1")
	if how, err := c.Push(t.Context(), ref, Upload{Desc: d, Open: opener(b)}); err != nil || how != Uploaded || uploads != 3 {
		t.Fatalf("%s %v after %d uploads", how, err, uploads)
	}
}
