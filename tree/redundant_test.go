package tree

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/store"
)

// Only what says nothing goes: a directory that is another one below, or hides something, stays.
func TestDropRedundant(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	s, err := store.Open(t.TempDir(), store.Options{MaxBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	then := time.Unix(1_000_000_000, 5)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	layer := func(dirs ...string) *store.Draft {
		d, err := s.NewLayer(t.Context())
		must(err)
		for _, p := range dirs {
			must(os.MkdirAll(filepath.Join(d.Dir, p), 0o755))
		}
		return d
	}
	clock := func(d *store.Draft) {
		must(filepath.WalkDir(d.Dir, func(p string, _ os.DirEntry, err error) error {
			must(err)
			ts := unix.NsecToTimespec(then.UnixNano())
			return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
		}))
	}
	names := []string{"etc/a/b", "mode", "owner", "time", "opaque", "attr", "gone", "hidden/x", "link", "file"}
	low, mid, up := layer(names...), layer(), layer(append(names, "new", "full")...)
	must(unix.Mknod(filepath.Join(mid.Dir, "gone"), unix.S_IFCHR, 0))
	must(os.Mkdir(filepath.Join(mid.Dir, "hidden"), 0o755))
	must(unix.Lsetxattr(filepath.Join(mid.Dir, "hidden"), opaqueAttr, []byte("y"), 0))
	must(os.Symlink("etc", filepath.Join(mid.Dir, "link")))
	must(os.WriteFile(filepath.Join(mid.Dir, "file"), nil, 0o644))
	must(os.WriteFile(filepath.Join(up.Dir, "full", "f"), nil, 0o644))
	for _, d := range []*store.Draft{low, mid, up} {
		clock(d)
	}
	must(os.Chmod(filepath.Join(up.Dir, "mode"), 0o700))
	must(os.Chown(filepath.Join(up.Dir, "owner"), 1, 1))
	must(os.Chtimes(filepath.Join(up.Dir, "time"), time.Now(), time.Now()))
	must(unix.Lsetxattr(filepath.Join(up.Dir, "opaque"), opaqueAttr, []byte("y"), 0))
	must(unix.Lsetxattr(filepath.Join(up.Dir, "attr"), "user.x", []byte("y"), 0))
	must(s.Update(t.Context(), func(b *store.Batch) error {
		b.Layer(low, store.LayerInfo{})
		b.Layer(mid, store.LayerInfo{})
		return nil
	}))
	base := NewStack(s, []store.LayerID{low.ID, mid.ID})
	defer base.Release()
	n, err := base.DropRedundant(up.Dir, append(names, "new"))
	must(err)
	if n != 3 {
		t.Errorf("%d directories went, want 3: etc/a/b, etc/a, etc", n)
	}
	left, err := os.ReadDir(up.Dir)
	must(err)
	var got []string
	for _, e := range left {
		got = append(got, e.Name())
	}
	want := []string{"attr", "file", "full", "gone", "hidden", "link", "mode", "new", "opaque", "owner", "time"}
	if !slices.Equal(got, want) {
		t.Errorf("left: %v, want %v", got, want)
	}
	if fi, err := os.Stat(up.Dir); err != nil || !fi.ModTime().Equal(then) {
		t.Errorf("the time of the directory around them has changed: %v, %v", fi.ModTime(), err)
	}
	up.Discard()
}
