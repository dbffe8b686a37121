package registry

import (
	"bytes"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"oras.land/oras-go/v2/registry/remote/auth"
)

// FuzzHeaders parses what a registry says outside of its documents.
func FuzzHeaders(f *testing.F) {
	for _, s := range []string{`Bearer realm="https://a/t",service="s",scope="repository:x:pull"`, `Basic realm=x`, `Bearer realm="a\"b`, "bytes 5-9/10", "bytes 1-/*", "=,=,=", `</v2/a/tags/list?last=b>; rel="next"`, `<//evil.test/>; rel=next`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if c, ok := parseChallenges([]string{s, s}); ok && c.scheme != "bearer" && c.scheme != "basic" {
			t.Errorf("scheme %q", c.scheme)
		}
		parseRange(s)
		u := &url.URL{Scheme: "https", Host: "registry.test", Path: "/v2/a/tags/list"}
		if next, err := nextPage(u, s); err == nil && next != nil && (next.Host != u.Host || next.Scheme != u.Scheme) {
			t.Errorf("%q leads to %s", s, next)
		}
		_, _ = readReferrers([]byte(s))
	})
}

// FuzzLogins reads a file of logins. What it says of one registry is not given to another one.
func FuzzLogins(f *testing.F) {
	for _, s := range []string{`{"auths":{"a.test":{"auth":"dTpw"}}}`, `{"auths":{"https://a.test/v1/":{"username":"u","password":"p"},"a.test/b":{"identitytoken":"t"}}}`, `{"auths":{"":{"auth":"dTpw"}}}`, `{"auths":null}`, "[]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if bytes.Contains(bytes.ToLower(data), []byte("cred")) || bytes.Contains(data, []byte("\\u")) { // runs programs
			return
		}
		path := filepath.Join(t.TempDir(), "config.json")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		cred, err := fileLogin(t.Context(), path, "other.test/x")
		if err == nil && cred != auth.EmptyCredential && !bytes.Contains(bytes.ToLower(data), []byte("other.test")) {
			t.Errorf("%q gives other.test %+v", data, cred)
		}
	})
}

// FuzzParseRef parses references: what comes out is the same when it is parsed again, and is no option of a command.
func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"debian", "host:5000/a/b@sha256:" + strings.Repeat("a", 64), "index.docker.io/x:1", "-x", "--upload-pack=x", "a:b:c", "LOCALHOST/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			return
		}
		again, err := ParseRef(r.String())
		if err != nil || again != r {
			t.Errorf("%q is %+v, and that is %+v, %v", s, r, again, err)
		}
		if strings.HasPrefix(r.String(), "-") || strings.HasPrefix(r.Repo, "-") || strings.HasPrefix(r.Tag, "-") {
			t.Errorf("%q looks like an option", r)
		}
	})
}
