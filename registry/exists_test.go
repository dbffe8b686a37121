package registry

import (
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/image"
)

// A server answers every HEAD, as a proxy or a portal in the way does. What is pushed is sent all the same.
func TestPushPastAServerThatHasEverything(t *testing.T) {
	for what, claim := range map[string]func(http.Header){
		"a page":         func(h http.Header) { h.Set("Content-Length", "5") },
		"another digest": func(h http.Header) { h.Set("Docker-Content-Digest", digest.FromString("x").String()) },
	} {
		host := serve(t, func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/blobs/") {
					claim(w.Header())
					return
				}
				h.ServeHTTP(w, r)
			})
		})
		c := newClient(t, Config{})
		ref := mustRef(t, host+"/x:1")
		data, d := noise(700)
		how, err := c.Push(t.Context(), ref, Upload{Desc: d, Open: opener(data)})
		if err != nil || how != Uploaded {
			t.Errorf("%s: %s, %v", what, how, err)
		}
		if ok, err := c.Exists(t.Context(), ref, image.Descriptor{Digest: d.Digest, Size: d.Size}); ok || err != nil {
			t.Errorf("%s: it exists: %v, %v", what, ok, err)
		}
	}
}
