package archive

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/image"
)

// Paths may have colons and capitals; the longest part that exists is the path.
func TestSplitPath(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, p := range []string{"lay", "Up_Per/sub/lay", "a:b", "c:d:e"} {
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	abs, err := filepath.Abs("a:b")
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string][2]string{
		"lay": {"lay"}, "lay:x": {"lay", "x"}, "./lay:v1.0-Y": {"./lay", "v1.0-Y"}, "Up_Per/sub/lay:x": {"Up_Per/sub/lay", "x"},
		"a:b": {"a:b"}, "a:b:x": {"a:b", "x"}, abs + ":x": {abs, "x"}, "c:d:e:x": {"c:d:e", "x"},
		"lay@sha256:ab": {"lay", "@sha256:ab"}, "lay:x@sha256:ab": {"lay", "x@sha256:ab"}, "lay:h:5000/a/b:1": {"lay", "h:5000/a/b:1"},
	} {
		if path, ref, ok := SplitPath(in); !ok || path != want[0] || ref != want[1] {
			t.Errorf("%s: %q %q %v, want %q", in, path, ref, ok, want)
		}
	}
	if _, _, ok := SplitPath("none:x"); ok {
		t.Error("a path was found that does not exist")
	}
}

func TestPick(t *testing.T) {
	d := func(s string) *image.Descriptor { return &image.Descriptor{Digest: digest.FromString(s)} }
	several := []Entry{
		{Tag: "latest", Desc: d("latest")},
		{Tag: "v1.0-Y", Desc: d("y")},
		{Tag: "foo", Desc: d("foo")},
		{Names: []string{"h.example/app:1"}, Tag: "1", Desc: d("app")},
	}
	for ref, want := range map[string]string{
		"v1.0-Y": "y", "layout-1:v1.0-Y": "y", "foo": "foo", "h.example/app:1": "app", "layout-1:latest": "latest", "latest": "latest",
	} {
		if e, err := Pick(several, ref); err != nil || e.Desc.Digest != digest.FromString(want) {
			t.Errorf("%s: %v %v, want %s", ref, e.Desc, err, want)
		}
	}
	for _, tc := range []struct {
		all []Entry
		ref string
	}{{several, "nosuch"}, {several, "layout-1:nosuch"}, {several[1:2], "nosuch"}, {several[1:2], "layout-1:nosuch"}} {
		if e, err := Pick(tc.all, tc.ref); err == nil || !strings.Contains(err.Error(), "no such image") {
			t.Errorf("%s of %d: %v %v", tc.ref, len(tc.all), e, err)
		}
	}
	one := []Entry{{Tag: "x", Desc: d("x")}}
	unnamed := []Entry{{Desc: d("x")}}
	for _, ref := range []string{"", "layout-1:latest"} {
		if _, err := Pick(one, ref); err != nil {
			t.Errorf("the only image as %q: %v", ref, err)
		}
	}
	if _, err := Pick(unnamed, "anything"); err != nil {
		t.Error(err)
	}
}
