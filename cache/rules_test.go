package cache

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
)

// requests records what a server is sent.
type requests struct {
	mu  sync.Mutex
	all []string
	to  string // where it redirects; "" = not found
}

func (q *requests) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var b strings.Builder
	_ = r.Header.Write(&b)
	q.mu.Lock()
	q.all = append(q.all, b.String())
	q.mu.Unlock()
	if q.to != "" {
		http.Redirect(w, r, q.to+r.URL.Path, http.StatusTemporaryRedirect)
		return
	}
	w.WriteHeader(http.StatusNotFound)
}

func (q *requests) text() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return strings.Join(q.all, "\n")
}

func s3Spec(endpoint string, more ...string) Spec {
	attrs := map[string]string{"region": "r", "bucket": "b", "endpoint_url": endpoint, "use_path_style": "true"}
	for i := 0; i < len(more); i += 2 {
		attrs[more[i]] = more[i+1]
	}
	return Spec{"s3", attrs}
}

func TestDaemonsCloudCredentialsStayFromAClientsEndpoint(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "daemonkey")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "daemonsecret")
	t.Setenv("AWS_SESSION_TOKEN", "daemontoken")
	evil, good := &requests{}, &requests{}
	evilSrv, goodSrv := httptest.NewServer(evil), httptest.NewServer(good)
	defer evilSrv.Close()
	defer goodSrv.Close()
	env := Env{Rules: Rules{Credentials: []string{goodSrv.URL + "/b"}}}
	use := func(s Spec) {
		t.Helper()
		load, _, err := importer(s, env)
		if err == nil {
			_, err = load(t.Context())
		}
		if err != nil {
			t.Error(err)
		}
		x, err := NewExport(s, env)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := x.to.(*objects).stat(t.Context(), digest.FromString("x")); err == nil {
			t.Error("the blob is there")
		}
	}
	use(s3Spec(evilSrv.URL))
	use(s3Spec(evilSrv.URL, "bucket", "b", "access_key_id", "clientkey", "secret_access_key", "clientsecret"))
	if got := evil.text(); strings.Contains(got, "daemon") || !strings.Contains(got, "Credential=clientkey/") {
		t.Errorf("the client's endpoint was sent\n%s", got)
	}
	// Another bucket of the operator's host is not named, and neither is one that only begins like it.
	use(s3Spec(goodSrv.URL, "bucket", "bb"))
	use(s3Spec(goodSrv.URL, "bucket", "other/../b"))
	if got := good.text(); got == "" || strings.Contains(got, "daemon") {
		t.Errorf("another bucket was sent\n%s", got)
	}
	use(s3Spec(goodSrv.URL))
	if got := good.text(); !strings.Contains(got, "Credential=daemonkey/") || !strings.Contains(got, "daemontoken") {
		t.Errorf("the operator's bucket was sent\n%s", got)
	}
}

func TestHalfACredentialIsNotCompletedFromTheEnvironment(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "daemonsecret")
	for _, half := range []string{"access_key_id", "secret_access_key"} {
		_, err := newS3(s3Spec("https://s3.example.com", half, "x"), &Rules{Credentials: []string{"https://s3.example.com"}})
		if diag.KindOf(err) != diag.Invalid {
			t.Errorf("%s alone: %v", half, err)
		}
	}
}

func TestObjectStoreRedirectGetsNoCredentials(t *testing.T) {
	evil := &requests{}
	evilSrv := httptest.NewServer(evil)
	defer evilSrv.Close()
	srv := httptest.NewServer(&requests{to: evilSrv.URL})
	defer srv.Close()
	o, err := newS3(s3Spec(srv.URL, "access_key_id", "key", "secret_access_key", "secret", "session_token", "thetoken"), &Rules{})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := o.do(t.Context(), http.MethodGet, "x", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != http.StatusTemporaryRedirect || evil.text() != "" {
		t.Errorf("%s, and the other host was sent\n%s", resp.Status, evil.text())
	}
}

func TestRules(t *testing.T) {
	r := Rules{Trusted: []string{"registry.example.com/ci/*"}, Credentials: []string{"https://b.s3.r.amazonaws.com", "https://minio:9000/b/"}}
	if err := r.Check(); err != nil {
		t.Error(err)
	}
	for raw, want := range map[string]bool{
		"https://b.s3.r.amazonaws.com": true, "https://B.s3.r.amazonaws.com/x": true, "http://b.s3.r.amazonaws.com": false,
		"https://b.s3.r.amazonaws.com.evil.com": false, "https://b.s3.r.amazonaws.com:444": false,
		"https://minio:9000/b": true, "https://minio:9000/b/c": true, "https://minio:9000/bc": false, "https://minio:9000": false, "https://minio:9000/b/../c": false,
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.lends(u); got != want {
			t.Errorf("%s gets credentials: %v", raw, got)
		}
	}
	for _, x := range []struct {
		s    Spec
		want string
	}{
		{Spec{"registry", nil}, ""},
		{Spec{"registry", map[string]string{"registry.insecure": "true"}}, "registry.example.com/ci/a/b:latest without verification"},
		{Spec{"local", nil}, "registry.example.com/ci/a/b of user 7"},
	} {
		if got := origin(x.s, "registry.example.com/ci/a/b", Env{Rules: r, Client: "user 7"}); got != x.want {
			t.Errorf("%s: origin %q, want %q", x.s.Type, got, x.want)
		}
	}
	if got := origin(Spec{Type: "registry"}, "registry.example.com/cix", Env{Rules: r}); got != "registry.example.com/cix:latest" {
		t.Errorf("origin %q", got)
	}
	for _, bad := range []Rules{{Trusted: []string{"["}}, {Trusted: []string{""}}, {Credentials: []string{"bucket"}}, {Credentials: []string{"https://k:s@host/b"}}} {
		if diag.KindOf(bad.Check()) != diag.Invalid {
			t.Errorf("%+v is taken", bad)
		}
	}
}
