package tree

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/store"
)

// Only what says nothing goes: a directory that is another one below, or hides something, stays.
func TestDropUnchangedDirectories(t *testing.T) {
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
	names := []string{"etc/a/b", "mode", "owner", "time", "later", "opaque", "void", "attr", "gone", "hidden/x", "link", "file"}
	low, mid, up := layer(names...), layer(), layer(append(names, "new", "full")...)
	must(unix.Mknod(filepath.Join(mid.Dir, "gone"), unix.S_IFCHR, 0))
	must(os.Mkdir(filepath.Join(mid.Dir, "hidden"), 0o755))
	must(unix.Lsetxattr(filepath.Join(mid.Dir, "hidden"), opaqueAttr, []byte("y"), 0))
	must(os.Symlink("etc", filepath.Join(mid.Dir, "link")))
	must(os.WriteFile(filepath.Join(mid.Dir, "file"), nil, 0o644))
	must(os.WriteFile(filepath.Join(low.Dir, "opaque/f"), nil, 0o644))
	must(os.WriteFile(filepath.Join(up.Dir, "full", "f"), nil, 0o644))
	for _, d := range []*store.Draft{low, mid, up} {
		clock(d)
	}
	must(os.Chmod(filepath.Join(up.Dir, "mode"), 0o700))
	must(os.Chown(filepath.Join(up.Dir, "owner"), 1, 1))
	must(os.Chtimes(filepath.Join(up.Dir, "time"), then.Add(-time.Hour), then.Add(-time.Hour)))
	must(os.Chtimes(filepath.Join(up.Dir, "later"), time.Now().Add(time.Hour), time.Now().Add(time.Hour)))
	must(unix.Lsetxattr(filepath.Join(up.Dir, "void"), opaqueAttr, []byte("y"), 0))
	must(unix.Lsetxattr(filepath.Join(up.Dir, "opaque"), opaqueAttr, []byte("y"), 0))
	must(unix.Lsetxattr(filepath.Join(up.Dir, "attr"), "user.x", []byte("y"), 0))
	must(s.Update(t.Context(), func(b *store.Batch) error {
		b.Layer(low, store.LayerInfo{})
		b.Layer(mid, store.LayerInfo{})
		return nil
	}))
	base := NewStack(s, []store.LayerID{low.ID, mid.ID})
	defer base.Release()
	got0, err := base.DropUnchanged(t.Context(), up.Dir, time.Now())
	must(err)
	if got0.Entries != 14 {
		t.Errorf("%d entries are left, want 14", got0.Entries)
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

// Of files, those go that are in all that counts as they are below. Opaque marks and whiteouts go that hide nothing.
func TestDropUnchangedFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	s, err := store.Open(t.TempDir(), store.Options{MaxBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	draft := func() *store.Draft {
		d, err := s.NewLayer(t.Context())
		must(err)
		return d
	}
	then := time.Unix(1_000_000_000, 5)
	low, up := draft(), draft()
	in := func(d *store.Draft, name string) string { return filepath.Join(d.Dir, name) }
	at := func(p string, when time.Time) {
		ts := unix.NsecToTimespec(when.UnixNano())
		must(unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
	same := []string{"same", "empty", "content", "longer", "mode", "owner", "time", "attr", "cap", "twice", "d/same", "d/other", "hidden/f"}
	for _, d := range []*store.Draft{low, up} {
		must(os.MkdirAll(in(d, "d"), 0o755))
		must(os.MkdirAll(in(d, "hidden"), 0o755))
		must(os.MkdirAll(in(d, "fresh"), 0o755))
		for _, n := range same {
			must(os.WriteFile(in(d, n), []byte("content"), 0o644))
		}
		must(os.WriteFile(in(d, "empty"), nil, 0o644))
		must(os.Symlink("to", in(d, "link")))
		must(os.Symlink("to", in(d, "elsewhere")))
		must(unix.Mkfifo(in(d, "fifo"), 0o600))
		must(unix.Mknod(in(d, "node"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
		must(unix.Mknod(in(d, "other-node"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	}
	must(os.WriteFile(in(up, "content"), []byte("CONTENT"), 0o644))
	must(os.WriteFile(in(up, "longer"), []byte("content and more"), 0o644))
	must(os.WriteFile(in(up, "d/other"), []byte("Content"), 0o644))
	must(os.Chmod(in(up, "mode"), 0o600))
	must(os.Chown(in(up, "owner"), 1, 1))
	must(unix.Lsetxattr(in(up, "attr"), "user.x", []byte("1"), 0))
	must(unix.Lsetxattr(in(low, "attr"), "user.x", []byte("2"), 0))
	must(unix.Lsetxattr(in(up, "cap"), capabilityKey, []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	must(os.Remove(in(up, "elsewhere")))
	must(os.Symlink("ot", in(up, "elsewhere")))
	must(os.Remove(in(up, "other-node")))
	must(unix.Mknod(in(up, "other-node"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
	must(os.Link(in(up, "twice"), in(up, "twice-again")))
	must(unix.Lsetxattr(in(up, "hidden"), opaqueAttr, []byte("y"), 0))
	must(os.Remove(in(low, "fresh")))
	must(unix.Lsetxattr(in(up, "fresh"), opaqueAttr, []byte("y"), 0))
	must(os.WriteFile(in(up, "fresh/f"), nil, 0o644))
	must(unix.Mknod(in(up, "nothing"), unix.S_IFCHR, 0))
	must(os.WriteFile(in(low, "removed"), nil, 0o644))
	must(unix.Mknod(in(up, "removed"), unix.S_IFCHR, 0))
	for _, d := range []*store.Draft{low, up} {
		must(filepath.WalkDir(d.Dir, func(p string, _ os.DirEntry, err error) error { at(p, then); return err }))
	}
	at(in(up, "time"), then.Add(time.Nanosecond))
	must(s.Update(t.Context(), func(b *store.Batch) error { b.Layer(low, store.LayerInfo{}); return nil }))
	base := NewStack(s, []store.LayerID{low.ID})
	defer base.Release()
	got, err := base.DropUnchanged(t.Context(), up.Dir, time.Now())
	must(err)
	var left []string
	must(filepath.WalkDir(up.Dir, func(p string, _ os.DirEntry, err error) error {
		left = append(left, strings.TrimPrefix(p, up.Dir))
		return err
	}))
	want := []string{
		"", "/attr", "/cap", "/content", "/d", "/d/other", "/elsewhere", "/fresh", "/fresh/f", "/hidden", "/hidden/f", "/longer", "/mode", "/other-node", "/owner",
		"/removed", "/time", "/twice", "/twice-again",
	}
	if !slices.Equal(left, want) {
		t.Errorf("left: %v\nwant: %v", left, want)
	}
	if got.Entries != int64(len(want)) || got.Bytes == 0 {
		t.Errorf("counted %+v of %d", got, len(want))
	}
	if o, err := isOpaque(in(up, "fresh")); err != nil || o {
		t.Errorf("the mark of a new directory stays: %v, %v", o, err)
	}
	if o, err := isOpaque(in(up, "hidden")); err != nil || !o {
		t.Errorf("the mark of a directory that hides others is gone: %v, %v", o, err)
	}
	for _, dir := range []string{"", "d"} {
		if fi, err := os.Stat(in(up, dir)); err != nil || !fi.ModTime().Equal(then) {
			t.Errorf("the time of %q has changed: %v, %v", dir, fi.ModTime(), err)
		}
	}
	up.Discard()
}
