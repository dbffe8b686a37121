package source

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// client is a session with secrets and directories.
type client struct {
	secrets map[string]string
	dirs    map[string]string
	ssh     func() (io.ReadWriteCloser, error)
}

func (c client) Dir(_ context.Context, name string) (session.Dir, error) {
	d, ok := c.dirs[name]
	if !ok {
		return session.Dir{}, diag.Errorf(diag.NotFound, "no directory %s", name)
	}
	return session.Dir{Path: d}, nil
}

func (c client) Secret(_ context.Context, id string) ([]byte, error) {
	s, ok := c.secrets[id]
	if !ok {
		return nil, diag.Errorf(diag.NotFound, "no secret %s", id)
	}
	return []byte(s), nil
}

func (c client) SSH(context.Context, string) (io.ReadWriteCloser, error) {
	if c.ssh == nil {
		return nil, diag.Errorf(diag.NotFound, "no agent")
	}
	return c.ssh()
}

func (c client) Credential(context.Context, string) (session.Credential, error) {
	return session.Credential{}, nil
}

func (c client) Output(context.Context, string) (session.Output, error) {
	return session.Output{}, diag.Errorf(diag.NotFound, "no output")
}

func (f *fixture) env() Env {
	hold := f.store.Hold()
	f.Cleanup(hold.Release)
	return Env{Store: f.store, Hold: hold, Registry: f.client}
}

// top returns the directory of a stack's only layer.
func (f *fixture) top(s *tree.Stack) string {
	f.Helper()
	ids := s.IDs()
	if len(ids) != 1 {
		f.Fatalf("layers %v", ids)
	}
	f.Cleanup(s.Discard)
	return f.store.LayerDir(ids[0])
}

type web struct {
	srv           *httptest.Server
	gets          atomic.Int64 // full answers
	conditional   atomic.Int64
	body          atomic.Value
	authorization atomic.Value
	agent         atomic.Value
}

func newWeb(t *testing.T) *web {
	w := &web{}
	w.body.Store("v1")
	w.srv = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.authorization.Store(r.Header.Get("Authorization"))
		w.agent.Store(r.Header.Get("User-Agent"))
		body := w.body.Load().(string)
		etag := fmt.Sprintf("%q", digest.FromString(body).Encoded())
		switch r.URL.Path {
		case "/named":
			rw.Header().Set("Content-Disposition", `attachment; filename="../../etc/evil.txt"`)
		case "/none":
			http.NotFound(rw, r)
			return
		case "/broken":
			if w.gets.Add(1) < 3 {
				rw.Header().Set("Content-Length", "100")
				_, _ = rw.Write([]byte("part"))
				panic(http.ErrAbortHandler)
			}
		}
		rw.Header().Set("ETag", etag)
		rw.Header().Set("Last-Modified", "Mon, 02 Jan 2023 03:04:05 GMT")
		if r.Header.Get("If-None-Match") == etag {
			w.conditional.Add(1)
			rw.WriteHeader(http.StatusNotModified)
			return
		}
		if r.Method == http.MethodGet {
			w.gets.Add(1)
		}
		_, _ = io.WriteString(rw, body)
	}))
	t.Cleanup(w.srv.Close)
	return w
}

func TestHTTP(t *testing.T) {
	f, w := setup(t), newWeb(t)
	op := &graph.HTTP{URL: w.srv.URL + "/a/file.txt", Mode: 0o4755, UID: 12, GID: 34}
	h := NewHTTP(f.env())
	pin, err := h.Pin(t.Context(), op, "")
	if err != nil {
		t.Fatal(err)
	}
	s, err := h.Fetch(t.Context(), op, "")
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(f.top(s), "file.txt")
	b, err := os.ReadFile(p)
	if err != nil || string(b) != "v1" || w.gets.Load() != 1 {
		t.Fatalf("%q %v after %d downloads", b, err, w.gets.Load())
	}
	info, _ := os.Stat(p)
	st := info.Sys().(*syscall.Stat_t)
	if st.Mode&0o7777 != 0o4755 || st.Uid != 12 || st.Gid != 34 || !info.ModTime().Equal(time.Date(2023, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("%o %d:%d %v", st.Mode, st.Uid, st.Gid, info.ModTime())
	}
	if a := w.agent.Load(); a != "strata" {
		t.Errorf("the agent is %q", a)
	}
	// The next build asks whether it changed.
	env := f.env()
	env.Agent = "strata/1 buildkit/v0"
	h = NewHTTP(env)
	again, err := h.Pin(t.Context(), op, "")
	if err != nil || again != pin || w.gets.Load() != 1 || w.conditional.Load() != 1 {
		t.Errorf("%v %v: %d downloads, %d questions", again, err, w.gets.Load(), w.conditional.Load())
	}
	if a := w.agent.Load(); a != env.Agent {
		t.Errorf("the agent is %q", a)
	}
	w.body.Store("v2")
	changed, err := NewHTTP(f.env()).Pin(t.Context(), op, "")
	if err != nil || changed == pin || w.gets.Load() != 2 {
		t.Errorf("%v %v", changed, err)
	}
}

func TestHTTPNames(t *testing.T) {
	f, w := setup(t), newWeb(t)
	mt := time.Unix(1000, 0)
	for _, tc := range []struct {
		op   *graph.HTTP
		name string
	}{
		{&graph.HTTP{URL: w.srv.URL + "/named"}, "evil.txt"},
		{&graph.HTTP{URL: w.srv.URL + "/named", Filename: "mine", ModTime: &mt}, "mine"},
		{&graph.HTTP{URL: w.srv.URL + "/dir/x%20y.tar?token=1"}, "x y.tar"},
		{&graph.HTTP{URL: w.srv.URL}, "download"},
		{&graph.HTTP{URL: w.srv.URL + "/a/.."}, "download"},
	} {
		s, err := NewHTTP(f.env()).Fetch(t.Context(), tc.op, "")
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(f.top(s), tc.name))
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v", tc.op.URL, err)
		} else if tc.op.ModTime != nil && !info.ModTime().Equal(mt) {
			t.Errorf("time %v", info.ModTime())
		}
	}
	_, err := NewHTTP(f.env()).Fetch(t.Context(), &graph.HTTP{URL: w.srv.URL, Filename: "../x"}, "")
	wantKind(t, err, diag.Invalid, "../x")
}

func TestHTTPErrors(t *testing.T) {
	f, w := setup(t), newWeb(t)
	fetch := func(op *graph.HTTP) error {
		_, err := NewHTTP(f.env()).Fetch(t.Context(), op, "")
		return err
	}
	wantKind(t, fetch(&graph.HTTP{URL: w.srv.URL + "/none?secret=1"}), diag.NotFound, w.srv.URL+"/none", "404")
	if err := fetch(&graph.HTTP{URL: w.srv.URL + "/none?secret=1"}); strings.Contains(err.Error(), "secret") {
		t.Error("the query is in the error")
	}
	wantKind(t, fetch(&graph.HTTP{URL: "ftp://x/y"}), diag.Invalid, "ftp")
	right := digest.FromString("v1")
	wantKind(t, fetch(&graph.HTTP{URL: w.srv.URL + "/x", Checksum: digest.FromString("other")}), diag.Invalid, right.String(), "checksum")
	if err := fetch(&graph.HTTP{URL: w.srv.URL + "/x", Checksum: right}); err != nil {
		t.Error(err)
	}
	n := w.gets.Load()
	pin, err := NewHTTP(f.env()).Pin(t.Context(), &graph.HTTP{URL: w.srv.URL + "/x", Checksum: right}, "")
	if err != nil || pin != right || w.gets.Load() != n {
		t.Errorf("a checksum needs no question: %v %v", pin, err)
	}
	w.gets.Store(0)
	s, err := NewHTTP(f.env()).Fetch(t.Context(), &graph.HTTP{URL: w.srv.URL + "/broken"}, "")
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(f.top(s), "broken")); string(b) != "v1" {
		t.Errorf("%q", b)
	}
}

func TestHTTPSecret(t *testing.T) {
	f, w := setup(t), newWeb(t)
	env := f.env()
	env.Session = client{secrets: map[string]string{"HTTP_AUTH": "Bearer canary\n"}}
	if _, err := NewHTTP(env).Pin(t.Context(), &graph.HTTP{URL: w.srv.URL + "/x", AuthHeader: "HTTP_AUTH"}, ""); err != nil {
		t.Fatal(err)
	}
	if w.authorization.Load() != "Bearer canary" {
		t.Errorf("got %q", w.authorization.Load())
	}
	for id, want := range map[string]string{"HTTP_AUTH_TOKEN_127.0.0.1": "Bearer canary2", "HTTP_AUTH_HEADER_127.0.0.1": "canary2"} {
		host := f.env()
		host.Session = client{secrets: map[string]string{id: "canary2"}}
		if _, err := NewHTTP(host).Pin(t.Context(), &graph.HTTP{URL: w.srv.URL + "/" + want}, ""); err != nil {
			t.Fatal(err)
		}
		if w.authorization.Load() != want {
			t.Errorf("%s: got %q", id, w.authorization.Load())
		}
	}
	_, err := NewHTTP(env).Pin(t.Context(), &graph.HTTP{URL: w.srv.URL + "/z", AuthHeader: "other"}, "")
	wantKind(t, err, diag.NotFound, "other")
	other := httptest.NewServer(http.RedirectHandler(w.srv.URL+"/y", http.StatusFound))
	defer other.Close()
	if _, err := NewHTTP(env).Pin(t.Context(), &graph.HTTP{URL: other.URL, AuthHeader: "HTTP_AUTH"}, ""); err != nil {
		t.Fatal(err)
	}
	if w.authorization.Load() != "" {
		t.Errorf("the other host got %q", w.authorization.Load())
	}
	grep(t, f.store, "canary")
}

// grep fails if a file of the store has the text.
func grep(t *testing.T, s *store.Store, text string) {
	t.Helper()
	_ = filepath.WalkDir(s.Root(), func(p string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if b, _ := os.ReadFile(p); strings.Contains(string(b), text) {
				t.Errorf("%s has %q", p, text)
			}
		}
		return nil
	})
}

func TestBlobSource(t *testing.T) {
	f := setup(t)
	b := build(amd64, false, makeTar(file{"x", "1", ""}))
	f.push("b:1", b)
	ref := f.host + "/b@" + b.descs[0].Digest.String()
	s, err := f.images(nil).FetchBlob(t.Context(), &graph.Blob{Ref: ref, Filename: "layer.tar", Mode: 0o640}, "")
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(f.top(s), "layer.tar")
	if raw, _ := os.ReadFile(p); digest.FromBytes(raw) != b.descs[0].Digest {
		t.Error("wrong content")
	}
	dir := t.TempDir()
	other := build(amd64, false, makeTar(file{"y", "1", ""}))
	for _, e := range append(other.blobs(), file{"oci-layout", layoutFile, ""}, file{"index.json", layoutIndex(other.desc), ""}) {
		_ = os.MkdirAll(filepath.Dir(filepath.Join(dir, e.name)), 0o755)
		_ = os.WriteFile(filepath.Join(dir, e.name), []byte(e.body), 0o644)
	}
	im := f.images(nil)
	im.env.Session = client{dirs: map[string]string{"layout": dir}}
	s, err = im.FetchBlob(t.Context(), &graph.Blob{Ref: "x@" + other.descs[0].Digest.String(), Layout: true, Store: "layout"}, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(f.top(s), other.descs[0].Digest.Encoded())); err != nil {
		t.Error(err)
	}
	layers, err := im.FetchLayout(t.Context(), &graph.OCILayout{Ref: "x@" + other.desc.Digest.String(), Store: "layout"}, amd64, "")
	if err != nil || f.read(layers, "y") != "1" {
		t.Error(err)
	}
	_, err = im.FetchBlob(t.Context(), &graph.Blob{Ref: f.host + "/b@" + digest.FromString("none").String()}, "")
	wantKind(t, err, diag.NotFound, "not found")
	_, err = im.FetchBlob(t.Context(), &graph.Blob{Ref: f.host + "/b:1"}, "")
	wantKind(t, err, diag.Invalid, "digest")
}

func TestHTTPSignature(t *testing.T) {
	f, w := setup(t), newWeb(t)
	one, two := openpgpKey(t, "one"), openpgpKey(t, "two")
	sig := one.sign(t, "v1")
	fetch := func(key, sig string) error {
		s, err := NewHTTP(f.env()).Fetch(t.Context(), &graph.HTTP{URL: w.srv.URL + "/signed", Signature: &graph.HTTPVerify{PubKey: key, Signature: sig}}, "")
		if err == nil {
			s.Discard()
		}
		return err
	}
	if err := fetch(one.public(t), sig); err != nil {
		t.Error(err)
	}
	if err := fetch(two.public(t)+"\n"+one.public(t), sig); err != nil {
		t.Error(err)
	}
	wantKind(t, fetch(two.public(t), sig), diag.Denied, "failed to verify pgp signature", "/signed")
	wantKind(t, fetch(one.public(t), "nonsense"), diag.Denied, "failed to verify pgp signature")
	wantKind(t, fetch("nonsense", sig), diag.Invalid, "public key")
	w.body.Store("v2")
	wantKind(t, fetch(one.public(t), sig), diag.Denied, "failed to verify pgp signature")
}

// pgpKey is a key that signs.
type pgpKey struct{ *openpgp.Entity }

func openpgpKey(t *testing.T, name string) pgpKey {
	t.Helper()
	e, err := openpgp.NewEntity(name, "", name+"@example.com", nil)
	if err != nil {
		t.Fatal(err)
	}
	return pgpKey{e}
}

func (k pgpKey) sign(t *testing.T, data string) string {
	t.Helper()
	var b strings.Builder
	if err := openpgp.ArmoredDetachSign(&b, k.Entity, strings.NewReader(data), nil); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func (k pgpKey) public(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	w, err := armor.Encode(&b, openpgp.PublicKeyType, nil)
	if err == nil {
		err = errors.Join(k.Serialize(w), w.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestHTTPMeta(t *testing.T) {
	f, w := setup(t), newWeb(t)
	h := NewHTTP(f.env())
	op := &graph.HTTP{URL: w.srv.URL + "/named"}
	m, err := h.Meta(t.Context(), op)
	if err != nil {
		t.Fatal(err)
	}
	if m.Digest != digest.FromString("v1") || m.Filename != "evil.txt" || m.Modified == nil || m.Modified.Unix() != 1672628645 {
		t.Errorf("%+v", m)
	}
	w.body.Store("v2") // the build has seen v1, and that is what it gets
	sum, err := h.Sum(t.Context(), op, digest.SHA384, []byte("end"))
	if err != nil || sum != digest.SHA384.FromString("v1end") {
		t.Errorf("%s %v", sum, err)
	}
	n := w.gets.Load()
	m, err = h.Meta(t.Context(), &graph.HTTP{URL: w.srv.URL + "/x", Checksum: digest.FromString("some")})
	if err != nil || m.Digest != digest.FromString("some") || m.Filename != "x" || w.gets.Load() != n {
		t.Errorf("%+v %v", m, err)
	}
}

func TestHTTPGzip(t *testing.T) {
	f := setup(t)
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.Header.Get("Accept-Encoding")+" "+r.Header.Get("User-Agent"))
		rw.Header().Set("ETag", "W/tag") // without quotes, and If-None-Match means nothing here
		if r.Method == http.MethodHead {
			return
		}
		rw.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(rw)
		_, _ = io.WriteString(z, "plain")
		_ = z.Close()
	}))
	defer srv.Close()
	for range 2 {
		op := &graph.HTTP{URL: srv.URL + "/x", Header: map[string]string{"User-Agent": "agent"}}
		m, err := NewHTTP(f.env()).Meta(t.Context(), op)
		if err != nil || m.Digest != digest.FromString("plain") {
			t.Fatalf("%+v %v", m, err)
		}
	}
	if got := strings.Join(asked, ","); got != "GET gzip agent,HEAD gzip agent" {
		t.Error(got)
	}
}
