package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/session"
)

func TestRedirectDropsCredentials(t *testing.T) {
	layer, d := noise(5000)
	var leaked atomic.Value
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leaked.Store(r.Header.Get("Authorization"))
		_, _ = w.Write(layer)
	}))
	defer other.Close()
	host := serve(t, func(h http.Handler) http.Handler {
		return basicAuth(flaky(func(_ int64, w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, other.URL+"/blob?signature=secret", http.StatusTemporaryRedirect)
		})(h))
	})
	c := newClient(t, Config{Credentials: static("u", "p")})
	ref := mustRef(t, host+"/x:1")
	got, err := fetchAll(c, t.Context(), ref, d)
	if err != nil || !bytes.Equal(got, layer) {
		t.Fatal(err)
	}
	if leaked.Load() != "" {
		t.Errorf("the other host got %q", leaked.Load())
	}
}

func TestUploadElsewhereDropsCredentials(t *testing.T) {
	var auth atomic.Value
	var got atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		auth.Store(r.Header.Get("Authorization"))
		n, _ := io.Copy(io.Discard, r.Body)
		got.Store(n)
		w.WriteHeader(http.StatusCreated)
	}))
	defer other.Close()
	host := serve(t, func(h http.Handler) http.Handler {
		return basicAuth(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				w.Header().Set("Location", other.URL+"/upload/1?state=abc")
				w.WriteHeader(http.StatusAccepted)
				return
			}
			h.ServeHTTP(w, r)
		}))
	})
	b, d := noise(7000)
	c := newClient(t, Config{Credentials: static("u", "p")})
	if _, err := c.Push(t.Context(), mustRef(t, host+"/x:1"), Upload{Desc: d, Open: opener(b)}); err != nil {
		t.Fatal(err)
	}
	if auth.Load() != "" || got.Load() != 7000 {
		t.Errorf("the other host got %q and %d bytes", auth.Load(), got.Load())
	}
}

func static(user, password string) Credentials {
	return func(context.Context, string) (session.Credential, error) {
		return session.Credential{Username: user, Password: password}, nil
	}
}

func basicAuth(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, ok := r.BasicAuth(); !ok || u != "u" || p != "p" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func TestBasic(t *testing.T) {
	host := serve(t, basicAuth)
	ref := mustRef(t, host+"/x:1")
	pushImage(t, newClient(t, Config{Credentials: static("u", "p")}), ref, 10)
	_, err := newClient(t, Config{Credentials: static("u", "wrong")}).Resolve(t.Context(), ref)
	wantKind(t, err, diag.Denied, host, "docker login "+host)
	_, err = newClient(t, Config{}).Resolve(t.Context(), ref)
	wantKind(t, err, diag.Denied, "requires a login", "docker login "+host)
}

// A missing login and a wrong one are two errors, and both name the file.
func TestLoginErrors(t *testing.T) {
	host := serve(t, basicAuth)
	ref := mustRef(t, host+"/app:1")
	with := func(user, password string) Credentials {
		return func(context.Context, string) (session.Credential, error) {
			return session.Credential{Username: user, Password: password, From: "/home/x/.docker/config.json"}, nil
		}
	}
	_, err := newClient(t, Config{Credentials: with("", "")}).Resolve(t.Context(), ref)
	wantKind(t, err, diag.Denied, host+" requires a login (no entry for "+host+" in /home/x/.docker/config.json)", "docker login "+host)
	_, err = newClient(t, Config{Credentials: with("u", "wrong")}).Resolve(t.Context(), ref)
	wantKind(t, err, diag.Denied, host+" rejected user u's password (from /home/x/.docker/config.json)", "docker login "+host)
}

// tokenServer issues tokens that say what they are for.
type tokenServer struct {
	issued atomic.Int64
	oauth  atomic.Int64
	revoke atomic.Bool // refuse the next use of a token
}

func (s *tokenServer) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			s.issue(w, r)
			return
		}
		need := "pull"
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			need = "push"
		}
		scope, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if ok && strings.Contains(scope, need) && !s.revoke.CompareAndSwap(true, false) {
			h.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:x:pull"`, r.Host))
		w.WriteHeader(http.StatusUnauthorized)
	})
}

func (s *tokenServer) issue(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		_ = r.ParseForm()
		if r.PostForm.Get("refresh_token") != "identity" || r.PostForm.Get("grant_type") != "refresh_token" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		s.oauth.Add(1)
		fmt.Fprintf(w, `{"access_token":"%d-%s"}`, s.issued.Add(1), r.PostForm.Get("scope"))
		return
	}
	if u, p, _ := r.BasicAuth(); u != "u" || p != "p" || r.URL.Query().Get("service") != "test" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	fmt.Fprintf(w, `{"token":"%d-%s","expires_in":300}`, s.issued.Add(1), strings.Join(r.URL.Query()["scope"], " "))
}

func TestToken(t *testing.T) {
	s := &tokenServer{}
	host := serve(t, s.wrap)
	ref := mustRef(t, host+"/x:1")
	c := newClient(t, Config{Credentials: static("u", "p")})
	m, _, d := pushImage(t, c, ref, 1000)
	before := s.issued.Load()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := c.Manifest(t.Context(), ref, m); err != nil {
				t.Error(err)
			}
			if _, err := fetchAll(c, t.Context(), ref, d); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := s.issued.Load() - before; n > 1 {
		t.Errorf("%d tokens for 16 requests of one scope", n)
	}
	s.revoke.Store(true) // a token that ended early
	if _, err := c.Manifest(t.Context(), ref, m); err != nil {
		t.Error(err)
	}
	b2, d2 := noise(2000)
	s.revoke.Store(true)
	if _, err := c.Push(t.Context(), ref, Upload{Desc: d2, Open: opener(b2)}); err != nil {
		t.Error(err)
	}
	id := c.For(func(context.Context, string) (session.Credential, error) {
		return session.Credential{IdentityToken: "identity"}, nil
	})
	if _, err := id.Resolve(t.Context(), ref); err != nil || s.oauth.Load() == 0 {
		t.Errorf("identity token: %v", err)
	}
	_, err := c.For(static("u", "wrong")).Resolve(t.Context(), ref)
	wantKind(t, err, diag.Denied, host, "rejected user u's password", "docker login "+host)
	_, err = c.For(nil).Resolve(t.Context(), ref)
	wantKind(t, err, diag.Denied, "docker login "+host)
}

func TestTokenRealmDowngrade(t *testing.T) {
	var asked atomic.Bool
	realm := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Store(true) }))
	defer realm.Close()
	reg := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="x"`, realm.URL))
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer reg.Close()
	host := strings.TrimPrefix(reg.URL, "https://")
	c := newClient(t, Config{Credentials: static("u", "p")})
	_, err := c.Resolve(t.Context(), mustRef(t, host+"/x:1")) // https on this machine is found out
	wantKind(t, err, diag.Denied, "https", "refused")
	if asked.Load() {
		t.Error("the realm was asked")
	}
}

func TestDockerCredentials(t *testing.T) {
	dir := t.TempDir()
	// user:pass
	conf := `{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpwYXNz"},"r.example:5000":{"auth":"dXNlcjpwYXNz","identitytoken":"id"}},"credHelpers":{"helped.example":"stratatest"}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	helper := "#!/bin/sh\nread host\necho '{\"ServerURL\":\"'$host'\",\"Username\":\"h\",\"Secret\":\"s\"}'\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-stratatest"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	get := DockerCredentials(dir)
	file := filepath.Join(dir, "config.json")
	for host, want := range map[string]session.Credential{
		"docker.io":      {Username: "user", Password: "pass", From: file},
		"r.example:5000": {Username: "user", Password: "pass", IdentityToken: "id", From: file},
		"helped.example": {Username: "h", Password: "s", From: file},
		"none.example":   {From: file},
	} {
		got, err := get(t.Context(), host)
		if err != nil || got != want {
			t.Errorf("%s: %+v %v, want %+v", host, got, err, want)
		}
	}
	if got, err := DockerCredentials(filepath.Join(dir, "none"))(t.Context(), "docker.io"); err != nil || got != (session.Credential{From: filepath.Join(dir, "none", "config.json")}) {
		t.Errorf("no file: %v %v", got, err)
	}
}

func TestParseHosts(t *testing.T) {
	h, err := ParseHosts("f", []byte("debug = true\n[worker.oci]\nx = 1\n[registry.\"docker.io\"]\nmirrors = [\"m.io/p\"]\nhttp = true\ninsecure = true\nca = [\"/ca\"]\n[[registry.\"docker.io\".keypair]]\nkey=\"k\"\ncert=\"c\"\n"))
	d := h["docker.io"]
	if err != nil || len(d.Mirrors) != 1 || !d.HTTP || !d.Insecure || d.CA[0] != "/ca" || d.KeyPairs[0].Cert != "c" {
		t.Fatalf("%+v %v", h, err)
	}
	_, err = ParseHosts("f", []byte("[registry.\"x\"]\nmirors = []\n"))
	wantKind(t, err, diag.Invalid, "mirors", "mirrors")
	_, err = ParseHosts("f", []byte("[registry\n"))
	wantKind(t, err, diag.Invalid, "f")
}
