package tree

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/store"
)

// squashed merges layers above a base and returns the new layer's directory and a view of the result.
func squashed(t *testing.T, s *store.Store, base, own []store.LayerID) (dir string, view *View) {
	t.Helper()
	before := NewStack(s, slices.Concat(base, own))
	defer before.Release()
	st, err := Squash(context.Background(), s, base, own)
	check(t, err)
	d, info := st.Pending()
	if d == nil {
		t.Fatal("no new layer")
	}
	check(t, s.Update(t.Context(), func(b *store.Batch) error { b.Layer(d, info); return nil }))
	st.Committed()
	t.Cleanup(st.Release)
	v, err := st.Open(t.Context())
	check(t, err)
	t.Cleanup(func() { check(t, v.Close()) })
	was, err := before.Open(t.Context())
	check(t, err)
	defer was.Close()
	if a, b := names(t, was.Dir), names(t, v.Dir); !slices.Equal(a, b) {
		t.Errorf("the tree was %q, is %q", a, b)
	}
	return d.Dir, v
}

func TestSquash(t *testing.T) {
	needRoot(t)
	s := newStore(t)
	base := layerOf(t, s, func(d string) {
		write(t, d, map[string]string{"etc/a": "base", "etc/b": "base", "gone/x": "x", "opq/old": "old", "file": "f", "both/low": "low"})
	})
	one := layerOf(t, s, func(d string) {
		write(t, d, map[string]string{"etc/a": "one", "tmp/t": "t", "both/one": "1", "replaced/in": "x"})
		whiteout(t, filepath.Join(d, "gone"))
		whiteout(t, filepath.Join(d, "opq"))
		check(t, os.Link(filepath.Join(d, "etc/a"), filepath.Join(d, "etc/a2")))
	})
	two := layerOf(t, s, func(d string) {
		write(t, d, map[string]string{"opq/new": "new", "both/two": "2", "replaced": "a file now"})
		whiteout(t, filepath.Join(d, "tmp"))
		check(t, os.Chmod(filepath.Join(d, "both"), 0o700))
		// What layers share is one inode; in the new layer these are still two files.
		check(t, os.Link(filepath.Join(s.LayerDir(one), "both/one"), filepath.Join(d, "both/shared")))
	})
	dir, view := squashed(t, s, []store.LayerID{base}, []store.LayerID{one, two})
	want := []string{"both/", "both/one", "both/shared", "both/two", "etc/", "etc/a", "etc/a2", "gone", "opq/", "opq/new", "replaced"}
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("the layer has %q, not %q", got, want)
	}
	ino := func(p string) uint64 {
		var st unix.Stat_t
		check(t, unix.Lstat(p, &st))
		return st.Ino
	}
	if ino(dir+"/etc/a") != ino(s.LayerDir(one)+"/etc/a") || ino(dir+"/etc/a") != ino(dir+"/etc/a2") {
		t.Error("a file was copied, or lost a name")
	}
	if ino(dir+"/both/one") == ino(dir+"/both/shared") {
		t.Error("files of two layers became one")
	}
	if b, _ := os.ReadFile(dir + "/both/shared"); string(b) != "1" {
		t.Errorf("a copied file has %q", b)
	}
	if hides, err := isOpaque(dir + "/opq"); err != nil || !hides {
		t.Error("a directory that replaced another is not opaque", err)
	}
	if hides, err := isOpaque(dir + "/both"); err != nil || hides {
		t.Error("a merged directory is opaque", err)
	}
	if fi, _ := os.Stat(view.Dir + "/both"); fi.Mode().Perm() != 0o700 {
		t.Errorf("a directory has mode %o", fi.Mode().Perm())
	}
	// At scratch nothing is hidden, so no whiteout stays.
	dir, _ = squashed(t, s, nil, []store.LayerID{base, one, two})
	for _, n := range names(t, dir) {
		var st unix.Stat_t
		check(t, unix.Lstat(filepath.Join(dir, n), &st))
		if isWhiteout(st.Mode, uint64(st.Rdev)) {
			t.Errorf("%s is a whiteout of nothing", n)
		}
	}
	if hides, _ := isOpaque(dir + "/opq"); hides {
		t.Error("a directory hides nothing and is opaque")
	}
	if st, err := Squash(t.Context(), s, []store.LayerID{base}, []store.LayerID{one}); err != nil || !slices.Equal(st.IDs(), []store.LayerID{base, one}) {
		t.Error("one layer is merged with nothing", err)
	} else {
		st.Release()
	}
}
