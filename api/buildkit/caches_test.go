package buildkit

import (
	"strings"
	"testing"

	control "github.com/moby/buildkit/api/services/control"
)

// TestCacheImports refuses a type of cache that there is not, and builds without a cache that cannot be read.
func TestCacheImports(t *testing.T) {
	addr, _ := serve(t, Options{})
	c := dial(t, addr)
	solve := func(ref string, spec *control.CacheOptionsEntry) error {
		_, err := c.ControlClient.Solve(t.Context(), &control.SolveRequest{
			Ref: ref, Definition: mkdir(t, "/d"), Cache: &control.CacheOptions{Imports: []*control.CacheOptionsEntry{spec}},
		})
		return err
	}
	if err := solve("unknown", &control.CacheOptionsEntry{Type: "regstry"}); err == nil || !strings.Contains(err.Error(), "unknown cache importer: regstry") {
		t.Errorf("%v", err)
	}
	if err := solve("incomplete", &control.CacheOptionsEntry{Type: "registry"}); err != nil {
		t.Error(err)
	}
	if err := solve("unreachable", &control.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": "localhost:1/x"}}); err != nil {
		t.Error(err)
	}
}
