package source

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// ADD of a metadata service put the machine's credentials into an image; so did a server that redirects there.
func TestHTTPOfMetadataService(t *testing.T) {
	f := setup(t)
	srv := httptest.NewServer(http.RedirectHandler("http://169.254.169.254/latest/meta-data/", http.StatusFound))
	defer srv.Close()
	for _, url := range []string{
		"http://169.254.169.254/latest/meta-data/", "http://[::ffff:169.254.169.254]/", "http://[fd00:ec2::254]/", "http://100.100.100.200/", srv.URL + "/x",
	} {
		_, err := NewHTTP(f.env()).Pin(t.Context(), &graph.HTTP{URL: url}, "")
		if err == nil || !strings.Contains(err.Error(), "169.254.169.254 is") && !strings.Contains(err.Error(), "is a link-local address") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// git went wherever a remote, a redirect or a submodule named.
func TestGitOfMetadataService(t *testing.T) {
	f, inner, redirected := setup(t), newRepo(t), 0
	for _, name := range []string{"http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
		t.Setenv(name, "")
	}
	inner.write("f", "1")
	inner.commit("one")
	git := backend(t, filepath.Dir(inner.dir))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/moved/") {
			redirected++
			http.Redirect(w, r, "http://169.254.169.254/latest/info/refs?service=git-upload-pack", http.StatusFound)
			return
		}
		git.ServeHTTP(w, r)
	}))
	defer srv.Close()
	p := NewPuller(f.store)
	for _, remote := range []string{
		"http://169.254.169.254/x", "https://169.254.169.254/x", "ssh://git@169.254.169.254/x", "git@169.254.169.254:x", "git://169.254.169.254:80/x",
		srv.URL + "/moved/x",
	} {
		_, err := p.NewGit(f.env()).Pin(t.Context(), &graph.Git{Remote: remote})
		wantKind(t, err, diag.Denied, "169.254.169.254 is a link-local address")
	}
	if redirected == 0 {
		t.Error("the server that redirects was not asked")
	}
	if v, err := p.NewGit(f.env()).Pin(t.Context(), &graph.Git{Remote: srv.URL + "/repo"}); err != nil {
		t.Error("another server:", v, err)
	}
}

// Another user of the machine cannot use the server that git goes through.
func TestGitWayHasAPassword(t *testing.T) {
	w, err := newGitWay(t.Context(), false)
	if err != nil || w == nil {
		t.Skip("the machine has a proxy:", err)
	}
	defer w.close()
	for _, say := range []string{
		"\x05\x01\x00", "\x05\x01\x02\x01\x06strata\x05wrong\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50", "\x04\x01\x00\x50\x7f\x00\x00\x01\x00", "GET / HTTP/1.1\r\n\r\n",
	} {
		c, err := net.Dial("tcp", w.listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(time.Minute)) // a hang must fail the test
		io.WriteString(c, say)
		c.(*net.TCPConn).CloseWrite()
		got, _ := io.ReadAll(c)
		if bytes.Contains(got, []byte{5, 0}) { // a connection was made
			t.Errorf("%q: %q", say, got)
		}
		c.Close()
	}
}

// pipeConn reads what was sent and forgets what is answered.
type pipeConn struct {
	net.Conn
	r io.Reader
}

func (c pipeConn) Read(p []byte) (int, error)  { return c.r.Read(p) }
func (c pipeConn) Write(p []byte) (int, error) { return len(p), nil }

func FuzzGitWay(f *testing.F) {
	w := &gitWay{password: "x"}
	f.Add([]byte("\x05\x01\x02\x01\x06strata\x01x\x05\x01\x00\x03\x0bexample.com\x01\xbb"))
	f.Add([]byte("\x05\x01\x02\x01\x06strata\x01x\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50"))
	f.Add([]byte("\x05\x00\x01\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		to, err := w.greet(pipeConn{r: bytes.NewReader(data)})
		if err == nil && !bytes.Contains(data, []byte("strata\x01x")) {
			t.Errorf("%q leads to %q without the password", data, to)
		}
		if _, _, bad := net.SplitHostPort(to); err == nil && bad != nil {
			t.Errorf("%q leads to %q", data, to)
		}
	})
}
