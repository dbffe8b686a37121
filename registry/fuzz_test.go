package registry

import (
	"strings"
	"testing"
)

// FuzzHeaders parses what a registry says outside of its documents.
func FuzzHeaders(f *testing.F) {
	for _, s := range []string{`Bearer realm="https://a/t",service="s",scope="repository:x:pull"`, `Basic realm=x`, `Bearer realm="a\"b`, "bytes 5-9/10", "bytes 1-/*", "=,=,="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if c, ok := parseChallenges([]string{s, s}); ok && c.scheme != "bearer" && c.scheme != "basic" {
			t.Errorf("scheme %q", c.scheme)
		}
		parseRange(s)
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
