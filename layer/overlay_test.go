package layer

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel shows a stack of unpacked layers as the image specification says.
func TestKernelOverlay(t *testing.T) {
	needRoot(t)
	dirs, _ := stack(t,
		(&maker{}).add(dirWith("d", 0o711, 1, 1), "").file("d/a", "1").file("d/b", "1").file("o/x", "1").file("usr/lib/y", "1").link("lib", "usr/lib").file("top", "1"),
		(&maker{}).file("d/.wh.a", "").file("d/c", "2").file("o/.wh..wh..opq", "").file("o/z", "2").file("lib/n", "2").hard("h", "top").file(".wh.d2", ""),
	)
	want := map[string]string{"d": "711 dir 1:0", "d/b": "644 file 1", "d/c": "644 file 2", "o": "755 dir opaque", "o/z": "644 file 2", "usr": "755 dir", "usr/lib": "755 dir", "usr/lib/y": "644 file 1", "usr/lib/n": "644 file 2", "lib": "-> usr/lib", "top": "644 file 1", "h": "644 file 1"}
	check := func(dirs []string, want map[string]string) {
		at := t.TempDir()
		top := slices.Clone(dirs)
		slices.Reverse(top)
		if err := unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(top, ":")); err != nil {
			t.Skipf("no overlayfs here: %v", err)
		}
		defer unix.Unmount(at, 0)
		got := tree(t, at)
		for p, s := range got { // overlayfs hides its own attributes
			if p == "o" {
				got[p] = s + " opaque"
			}
		}
		for p, s := range want {
			if got[p] != s {
				t.Errorf("%s: got %q, want %q", p, got[p], s)
			}
		}
		if len(got) != len(want) {
			t.Errorf("got %v", got)
		}
	}
	check(dirs, want)
	dir := t.TempDir()
	a := apply(t, dir, (&maker{}).file(".wh..wh..opq", "").file("d/only", "3").end())
	must(t, Finish(t.Context(), dir, a, dirs))
	check(append(dirs, dir), map[string]string{"d": "755 dir", "d/only": "644 file 3"})
	if _, err := os.Lstat(filepath.Join(dir, "top")); err != nil {
		t.Error("no whiteout for what an opaque root hides")
	}
}
