package layer

import (
	"archive/tar"
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// stack unpacks and completes tars bottom first, and returns the layer directories and what Apply said of the last one.
func stack(t *testing.T, tars ...*maker) ([]string, *Applied) {
	t.Helper()
	var dirs []string
	var a *Applied
	for _, m := range tars {
		dir := t.TempDir()
		a = apply(t, dir, m.end())
		must(t, Finish(context.Background(), dir, a, dirs))
		dirs = append(dirs, dir)
	}
	return dirs, a
}

func dirWith(name string, mode int64, uid int, sec int64) tar.Header {
	return tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: mode, Uid: uid, ModTime: time.Unix(sec, 7), Format: tar.FormatPAX}
}

func TestImpliedDirsInherit(t *testing.T) {
	needRoot(t)
	bottom := (&maker{}).add(dirWith(".", 0o711, 9, 5), "").add(dirWith("var", 0o750, 3, 1), "").add(dirWith("var/lib", 0o1777, 4, 2), "")
	bottom.add(tar.Header{Name: "x/", Typeflag: tar.TypeDir, Mode: 0o700, PAXRecords: map[string]string{xattrRecord + "user.k": "v"}}, "")
	middle := (&maker{}).add(dirWith("var", 0o755, 8, 3), "")
	top := (&maker{}).file("var/lib/new/f", "x").file("x/f", "x")
	dirs, a := stack(t, bottom, middle, top)
	if want := []string{".", "var", "var/lib", "var/lib/new", "x"}; !slices.Equal(a.ImpliedDirs, want) {
		t.Errorf("implied %v, want %v", a.ImpliedDirs, want)
	}
	dir := dirs[2]
	wantTree(t, dir, map[string]string{"var": "755 dir 8:0", "var/lib": "1777 dir 4:0", "var/lib/new": "755 dir", "var/lib/new/f": "644 file x", "x": "700 dir", "x/f": "644 file x"})
	for p, want := range map[string]time.Time{".": time.Unix(5, 7), "var": time.Unix(3, 7), "var/lib": time.Unix(2, 7), "var/lib/new": time.Unix(0, 0)} {
		if got := mtimeOf(t, filepath.Join(dir, p)); !got.Equal(want) {
			t.Errorf("%s: %v, want %v", p, got, want)
		}
	}
	if got := xattrsOf(t, filepath.Join(dir, "x")); got["user.k"] != "v" {
		t.Errorf("attributes %v", got)
	}
	info, err := os.Stat(dir)
	must(t, err)
	if info.Mode().Perm() != 0o711 {
		t.Errorf("root has mode %v", info.Mode())
	}
}

func TestRootWithoutEntry(t *testing.T) {
	dirs, _ := stack(t, (&maker{}).file("f", "x"))
	info, err := os.Stat(dirs[0])
	must(t, err)
	if info.Mode().Perm() != 0o755 || !info.ModTime().Equal(time.Unix(0, 0)) {
		t.Errorf("root: %v %v", info.Mode(), info.ModTime())
	}
}

// What a deleted directory looked like below does not matter any more.
func TestNothingInheritedThroughDeletions(t *testing.T) {
	needRoot(t)
	bottom := (&maker{}).add(dirWith("a", 0o700, 1, 1), "").add(dirWith("a/b", 0o700, 1, 1), "").add(dirWith("c", 0o700, 1, 1), "").add(dirWith("c/d", 0o700, 1, 1), "")
	for _, top := range []*maker{
		(&maker{}).file(".wh.a", "").file("a/b/f", "x").file("c/.wh..wh..opq", "").file("c/d/f", "x"),
		(&maker{}).file("a/b/f", "x").file(".wh.a", "").file("c/d/f", "x").file("c/.wh..wh..opq", ""),
	} {
		dirs, _ := stack(t, bottom, top)
		wantTree(t, dirs[1], map[string]string{"a": "755 dir opaque", "a/b": "755 dir", "a/b/f": "644 file x", "c": "700 dir opaque 1:0", "c/d": "755 dir", "c/d/f": "644 file x"})
	}
	dirs, _ := stack(t, bottom, (&maker{}).file(".wh.a", ""), (&maker{}).file("a/b/f", "x"))
	wantTree(t, dirs[2], map[string]string{"a": "755 dir", "a/b": "755 dir", "a/b/f": "644 file x"})
}

func TestThroughSymlinksBelow(t *testing.T) {
	needRoot(t)
	merged := func() *maker {
		return (&maker{}).add(dirWith("usr", 0o751, 0, 1), "").add(dirWith("usr/lib", 0o751, 0, 2), "").link("lib", "usr/lib").link("bin", "/usr/bin")
	}
	type tm = map[string]string
	usr := func(more tm) tm {
		out := tm{"usr": "751 dir", "usr/lib": "751 dir"}
		maps.Copy(out, more)
		return out
	}
	for name, c := range map[string]struct {
		top  *maker
		want tm
	}{
		"file":            {(&maker{}).file("lib/x", "1"), usr(tm{"usr/lib/x": "644 file 1"})},
		"deep":            {(&maker{}).file("lib/a/b/x", "1"), usr(tm{"usr/lib/a": "755 dir", "usr/lib/a/b": "755 dir", "usr/lib/a/b/x": "644 file 1"})},
		"target missing":  {(&maker{}).file("bin/sh", "1"), tm{"usr": "751 dir", "usr/bin": "755 dir", "usr/bin/sh": "644 file 1"}},
		"both ways":       {(&maker{}).file("usr/lib/x", "old").file("usr/lib/y", "y").file("lib/x", "new"), usr(tm{"usr/lib/x": "644 file new", "usr/lib/y": "644 file y"})},
		"directories":     {(&maker{}).file("usr/lib/a/x", "1").dir("lib/a").file("lib/a/y", "2"), usr(tm{"usr/lib/a": "755 dir", "usr/lib/a/x": "644 file 1", "usr/lib/a/y": "644 file 2"})},
		"whiteout":        {(&maker{}).file("lib/.wh.x", ""), usr(tm{"usr/lib/x": "whiteout"})},
		"whiteout, file":  {(&maker{}).file("usr/lib/x", "1").file("lib/.wh.x", ""), usr(tm{"usr/lib/x": "644 file 1"})},
		"whiteout, dir":   {(&maker{}).file("usr/lib/x/f", "1").file("lib/.wh.x", ""), usr(tm{"usr/lib/x": "755 dir opaque", "usr/lib/x/f": "644 file 1"})},
		"file over dir":   {(&maker{}).file("usr/lib/x/f", "1").file("lib/x", "2"), usr(tm{"usr/lib/x": "644 file 2"})},
		"dir over file":   {(&maker{}).file("usr/lib/x", "1").dir("lib/x"), usr(tm{"usr/lib/x": "755 dir opaque"})},
		"opaque":          {(&maker{}).file("lib/.wh..wh..opq", "").file("lib/x", "1"), usr(tm{"usr/lib": "751 dir opaque", "usr/lib/x": "644 file 1"})},
		"hard links":      {(&maker{}).file("usr/lib/x", "1").hard("lib/x", "usr/lib/x").hard("lib/y", "lib/x"), usr(tm{"usr/lib/x": "644 file 1", "usr/lib/y": "644 file 1"})},
		"in-layer link":   {(&maker{}).link("l", "lib").file("l/x", "1"), usr(tm{"l": "-> lib", "usr/lib/x": "644 file 1"})},
		"link is deleted": {(&maker{}).file(".wh.lib", "").file("lib/x", "1"), tm{"lib": "755 dir opaque", "lib/x": "644 file 1"}},
		"link is a dir":   {(&maker{}).dir("lib").file("lib/x", "1"), tm{"lib": "755 dir", "lib/x": "644 file 1"}},
	} {
		t.Run(name, func(t *testing.T) {
			dirs, _ := stack(t, merged(), c.top)
			wantTree(t, dirs[1], c.want)
		})
	}
	t.Run("times stay", func(t *testing.T) {
		dirs, _ := stack(t, merged(), (&maker{}).file("lib/x", "1"))
		if got := mtimeOf(t, filepath.Join(dirs[1], "usr/lib")); !got.Equal(time.Unix(2, 7)) {
			t.Errorf("usr/lib is of %v", got)
		}
	})
	t.Run("chain of links", func(t *testing.T) {
		dirs, _ := stack(t, (&maker{}).dir("c").link("a", "b").link("b", "./x/../c").dir("x"), (&maker{}).file("a/d/f", "1"))
		wantTree(t, dirs[1], tm{"c": "755 dir", "c/d": "755 dir", "c/d/f": "644 file 1"})
	})
	t.Run("link out of the root", func(t *testing.T) {
		dirs, _ := stack(t, (&maker{}).link("a", "../../../../etc"), (&maker{}).file("a/f", "1"))
		wantTree(t, dirs[1], tm{"etc": "755 dir", "etc/f": "644 file 1"})
	})
	t.Run("link below a link", func(t *testing.T) {
		dirs, _ := stack(t, (&maker{}).dir("usr/lib").dir("opt").link("lib", "usr/lib").link("usr/lib/x", "/opt"), (&maker{}).file("lib/x/f", "1"))
		wantTree(t, dirs[1], tm{"opt": "755 dir", "opt/f": "644 file 1", "usr": "755 dir", "usr/lib": "755 dir"})
	})
	for name, c := range map[string]struct {
		bottom, top *maker
		word        string
	}{
		"loop":      {(&maker{}).link("a", "b").link("b", "a"), (&maker{}).file("a/f", "1"), "more than 40 symlinks"},
		"file":      {(&maker{}).file("a", "x"), (&maker{}).file("a/f", "1"), "is not a directory in the layers below"},
		"into self": {(&maker{}).dir("a").link("a/b", "../a"), (&maker{}).file("a/b/b/f", "1"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			dirs, _ := stack(t, c.bottom)
			dir := t.TempDir()
			err := Finish(context.Background(), dir, apply(t, dir, c.top.end()), dirs)
			wantKind(t, err, diag.Invalid, c.word)
		})
	}
}

func TestLinksToLowerFiles(t *testing.T) {
	needRoot(t)
	bottom := (&maker{}).add(dirWith("d", 0o700, 2, 1), "").add(tar.Header{Name: "d/f", Mode: 0o4711, Uid: 6, ModTime: time.Unix(9, 9), Format: tar.FormatPAX, PAXRecords: map[string]string{xattrRecord + "user.k": "v"}}, "body").link("s", "d/f").dev(tar.TypeFifo, "p", 0, 0).link("l", "d")
	top := (&maker{}).hard("a", "d/f").hard("b", "a").hard("e/c", "l/f").hard("s2", "s").hard("p2", "/p")
	dirs, a := stack(t, bottom, top)
	if len(a.LowerLinks) != 5 || a.LowerLinks[1] != (Link{"b", "d/f"}) {
		t.Errorf("links %v", a.LowerLinks)
	}
	dir := dirs[1]
	wantTree(t, dir, map[string]string{"a": "4711 file body 6:0", "b": "4711 file body 6:0", "d": "700 dir 2:0", "d/f": "4711 file body 6:0", "e": "755 dir", "e/c": "4711 file body 6:0", "s": "-> d/f", "s2": "-> d/f", "p": "600 fifo", "p2": "600 fifo"})
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(dir, "a"), &st))
	if st.Nlink != 4 || st.Mtim.Sec != 9 || st.Mtim.Nsec != 9 {
		t.Errorf("%d links, time %v", st.Nlink, st.Mtim)
	}
	if got := xattrsOf(t, filepath.Join(dir, "e/c")); got["user.k"] != "v" {
		t.Errorf("attributes %v", got)
	}
	t.Run("a later entry takes the target's place", func(t *testing.T) {
		dirs, _ := stack(t, bottom, (&maker{}).hard("a", "d/f").hard("b", "d/f").file("d/f", "new"))
		wantTree(t, dirs[1], map[string]string{"a": "4711 file body 6:0", "b": "4711 file body 6:0", "d": "700 dir 2:0", "d/f": "644 file new"})
	})
	t.Run("a later entry deletes the target", func(t *testing.T) {
		dirs, _ := stack(t, bottom, (&maker{}).hard("a", "d/f").file("d/.wh.f", ""))
		wantTree(t, dirs[1], map[string]string{"a": "4711 file body 6:0", "d": "700 dir 2:0", "d/f": "whiteout"})
	})
	t.Run("a later entry takes the link's place", func(t *testing.T) {
		dirs, _ := stack(t, bottom, (&maker{}).hard("a", "nowhere").file("a", "new").hard("x/b", "nowhere").file("x", "y"))
		wantTree(t, dirs[1], map[string]string{"a": "644 file new", "x": "644 file y"})
	})
	for name, top := range map[string]*maker{"nowhere": (&maker{}).hard("a", "nowhere"), "a directory": (&maker{}).hard("a", "d"), "a later entry": (&maker{}).hard("a", "z").file("z", "x")} {
		t.Run(name, func(t *testing.T) {
			dirs, _ := stack(t, bottom)
			dir := t.TempDir()
			err := Finish(context.Background(), dir, apply(t, dir, top.end()), dirs)
			wantKind(t, err, diag.Invalid, "neither in this layer nor below")
		})
	}
}

func TestOpaqueRoot(t *testing.T) {
	needRoot(t)
	dirs, a := stack(t, (&maker{}).file("a", "x").file("d/f", "x").file("gone", "x"), (&maker{}).file(".wh.gone", "").link("l", "a"), (&maker{}).file(".wh..wh..opq", "").file("d/g", "y").file("l", "z"))
	if !a.OpaqueRoot {
		t.Error("not noticed")
	}
	wantTree(t, dirs[2], map[string]string{"a": "whiteout", "d": "755 dir opaque", "d/g": "644 file y", "l": "644 file z"})
	if opaqueAt(dirs[2]) {
		t.Error("the root is still marked")
	}
}

// Finish may touch nothing outside of the layer and must leave the layers below alone.
func TestFinishStaysInside(t *testing.T) {
	needRoot(t)
	c := newCage(t)
	bottom := t.TempDir()
	must(t, Finish(context.Background(), bottom, apply(t, bottom, (&maker{}).link("l", "../../../canary.d").link("m", "/").file("f", "x").end()), nil))
	before := tree(t, bottom)
	a := apply(t, c.dir, (&maker{}).file("l/canary", "dead").file("m/x", "1").hard("h", "l/../f").hard("k", "m/f").end())
	err := Finish(context.Background(), c.dir, a, []string{bottom})
	must(t, err)
	c.check(t)
	if !maps.Equal(before, tree(t, bottom)) {
		t.Error("the layer below has changed")
	}
	wantTree(t, c.dir, map[string]string{"canary.d": "755 dir", "canary.d/canary": "644 file dead", "x": "644 file 1", "f": "644 file x", "h": "644 file x", "k": "644 file x"})
}

func TestLookup(t *testing.T) {
	needRoot(t)
	dirs, _ := stack(t, (&maker{}).file("d/a", "1").file("d/b", "1").file("e/x/y", "1").file("g", "1"),
		(&maker{}).file("d/a", "2").file("d/.wh.b", "").file("e/.wh..wh..opq", "").file("e/z", "2").file(".wh.g", ""), (&maker{}).file("g/h", "3"))
	l := lower(dirs)
	for p, want := range map[string]int{".": 2, "d": 1, "d/a": 1, "d/b": -1, "e": 1, "e/x": -1, "e/x/y": -1, "e/z": 1, "g": 2, "g/h": 2, "d/a/x": -1, "no": -1} {
		host, _, ok := l.lookup(p)
		if want < 0 {
			if ok {
				t.Errorf("%s: found %s", p, host)
			}
		} else if host != filepath.Join(dirs[want], p) || !ok {
			t.Errorf("%s: got %s %v, want layer %d", p, host, ok, want)
		}
	}
}
