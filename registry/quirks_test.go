package registry

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/strata-build/strata/image"
)

// Registries that do not know HEAD: the first byte of GET tells what is there, how long it is and what it is.
func TestNoHead(t *testing.T) {
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	c := newClient(t, Config{})
	ref := mustRef(t, host+"/x:1")
	m, layer, d := pushImage(t, c, ref, 4000)
	if got, err := c.Resolve(t.Context(), ref); err != nil || got.Digest != m.Digest || got.MediaType != m.MediaType {
		t.Errorf("resolve: %v %v, want %v", got, err, m)
	}
	for _, have := range []image.Descriptor{m, d} {
		if ok, err := c.Exists(t.Context(), ref, have); err != nil || !ok {
			t.Errorf("%s: %v %v", have.Digest, ok, err)
		}
	}
	if got, err := c.Stat(t.Context(), ref, d.Digest); err != nil || got.Size != int64(len(layer)) {
		t.Errorf("stat: %v %v", got, err)
	}
	if how, err := c.Push(t.Context(), ref, Upload{Desc: d, Open: opener(layer)}); err != nil || how != Existed {
		t.Errorf("the second push: %v %v", how, err)
	}
	_, none := noise(5)
	if ok, err := c.Exists(t.Context(), ref, none); err != nil || ok {
		t.Errorf("a missing blob: %v %v", ok, err)
	}
}

// A client asks for the login of the repository that a request is about, not of the host alone.
func TestLoginPerRepository(t *testing.T) {
	dir := t.TempDir()
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			u, p, _ := r.BasicAuth()
			if org := strings.Split(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")[0]; org != "" && (u != org || p != "p") {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	// org1:p, org2:p
	writeLogins(t, dir, `{"auths":{"`+host+`/org1":{"auth":"b3JnMTpw"},"`+host+`/org2":{"auth":"b3JnMjpw"}}}`)
	c := newClient(t, Config{Credentials: DockerCredentials(dir)})
	for _, org := range []string{"org1", "org2", "org1"} {
		pushImage(t, c, mustRef(t, host+"/"+org+"/x:1"), 10)
	}
}

func writeLogins(t *testing.T, dir, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// The longest entry that a repository is in counts, in each way that Docker and Podman write a place.
func TestLoginByPath(t *testing.T) {
	dir := t.TempDir()
	entry := func(user string) string { return `{"username":"` + user + `","password":"p"}` }
	writeLogins(t, dir, `{"auths":{"h:5000":`+entry("host")+`,"h:5000/a":`+entry("a")+`,"h:5000/a/b":`+entry("ab")+`,
		"https://index.docker.io/v1/":`+entry("hub")+`,"docker.io/team":`+entry("team")+`,"https://old.example/v1/":`+entry("old")+`,
		"only.example/org":`+entry("org")+`,"http://slash.example/":`+entry("slash")+`}}`)
	get := DockerCredentials(dir)
	for target, want := range map[string]string{
		"h:5000": "host", "h:5000/x": "host", "h:5000/a": "a", "h:5000/a/x/y": "a", "h:5000/a/b": "ab", "h:5000/a/b/c": "ab", "h:5000/ab": "host",
		"docker.io": "hub", "docker.io/library/debian": "hub", "docker.io/team/x": "team", "registry-1.docker.io": "hub",
		"old.example/x": "old", "only.example/org/x": "org", "only.example/other": "", "only.example": "", "slash.example/x": "slash",
	} {
		if got, err := get(t.Context(), target); err != nil || got.Username != want {
			t.Errorf("%s: %q %v, want %q", target, got.Username, err, want)
		}
	}
}

// Podman's files count after Docker's, and $REGISTRY_AUTH_FILE before them.
func TestLoginFiles(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", "")
	t.Setenv("XDG_RUNTIME_DIR", filepath.Join(home, "run"))
	t.Setenv("REGISTRY_AUTH_FILE", "")
	write := func(name, user string) {
		path := filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(`{"auths":{"h":{"username":"`+user+`","password":"p"}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := func(user string) {
		t.Helper()
		if got, err := DockerCredentials("")(t.Context(), "h/x"); err != nil || got.Username != user {
			t.Errorf("%q %v, want %q", got.Username, err, user)
		}
	}
	want("")
	write("run/containers/auth.json", "podman")
	want("podman")
	write(".docker/config.json", "docker")
	want("docker")
	write("given.json", "given")
	t.Setenv("REGISTRY_AUTH_FILE", filepath.Join(home, "given.json"))
	want("given")
	t.Setenv("REGISTRY_AUTH_FILE", "")
	t.Setenv("DOCKER_CONFIG", filepath.Join(home, "empty"))
	if got, err := DockerCredentials("")(t.Context(), "h"); err != nil || got.Username != "" || got.IdentityToken != "" {
		t.Errorf("with an own $DOCKER_CONFIG: %v %v", got, err)
	}
}
