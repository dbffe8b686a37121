package tree

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
)

func TestMaterializeAppliesTheFilters(t *testing.T) {
	needRoot(t)
	s := newStore(t)
	dir := t.TempDir()
	write(t, dir, map[string]string{"src/a.go": "a", "src/a.log": "l", "node_modules/x": "x", "lnk": "->src"})
	check(t, os.Chmod(dir+"/src", 0o750))
	l := NewLocal(NewIndexes(s.Root()).Get("k"), session.Dir{Path: dir}, &graph.Local{Exclude: []string{"**/*.log", "node_modules"}})
	defer l.Release()
	for q, want := range map[string]string{"/": "lnk src/ src/a.go", "/lnk": "lnk src/ src/a.go", "/src/a.go": "src/ src/a.go"} {
		st, err := l.Materialize(context.Background(), s, sel(graph.Select{Path: q, Follow: true}))
		check(t, err)
		d, info := st.Pending()
		if got := strings.Join(names(t, d.Dir), " "); got != want {
			t.Errorf("%s: %q, want %q", q, got, want)
		}
		if _, ok := st.Layers(); ok || info.Files == 0 {
			t.Errorf("%s: the stack is not pending, or empty: %+v", q, info)
		}
		st.Discard()
	}
	if _, err := l.Materialize(context.Background(), s, sel(graph.Select{Path: "/no"})); diag.KindOf(err) != diag.NotFound {
		t.Errorf("got %v", err)
	}
	left, err := os.ReadDir(filepath.Join(s.Root(), "snapshots"))
	check(t, err)
	if len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// A directory of the layers below that gets a file keeps all that it had.
func TestCopyUpOfDirectories(t *testing.T) {
	needRoot(t)
	s := newStore(t)
	base := NewStack(s, []store.LayerID{layerOf(t, s, func(d string) {
		write(t, d, map[string]string{"a/b/f": "f"})
		check(t, unix.Chmod(d+"/a", 0o2751))
		check(t, os.Lchown(d+"/a/b", 5, 6))
		check(t, unix.Lsetxattr(d+"/a/b", "user.note", []byte("n"), 0))
		check(t, setTimes(unix.AT_FDCWD, d+"/a/b", 1e18))
	})})
	defer base.Release()
	d, err := s.NewLayer(context.Background())
	check(t, err)
	defer d.Discard()
	u, err := NewUpper(base, d)
	check(t, err)
	defer u.Close()
	check(t, u.WriteFile("/a/b/new", []byte("new"), Meta{Mode: 0o600, UID: 7}))
	info, err := u.Finish(context.Background())
	check(t, err)
	var st unix.Stat_t
	check(t, unix.Lstat(d.Dir+"/a", &st))
	if st.Mode&0o7777 != 0o751|unix.S_ISGID {
		t.Errorf("mode of a: %o", st.Mode)
	}
	check(t, unix.Lstat(d.Dir+"/a/b", &st))
	if st.Uid != 5 || st.Gid != 6 || nanos(st.Mtim) != 1e18 || string(attr(d.Dir+"/a/b", "user.note")) != "n" {
		t.Errorf("a/b: %+v", st)
	}
	check(t, unix.Lstat(d.Dir+"/a/b/new", &st))
	if st.Mode&0o7777 != 0o600 || st.Uid != 7 {
		t.Errorf("new: %+v", st)
	}
	if info.Files != 3 || info.Size != 3 {
		t.Errorf("info: %+v", info)
	}
	if _, err := os.Stat(d.Dir + "/a/b/f"); !os.IsNotExist(err) {
		t.Error("a file was copied up with its directory")
	}
}

func TestLongStorePath(t *testing.T) {
	needRoot(t)
	root := filepath.Join(t.TempDir(), strings.Repeat("long", 50), strings.Repeat("er", 50))
	s, err := store.Open(root, store.Options{})
	check(t, err)
	defer s.Close()
	st := NewStack(s, []store.LayerID{
		layerOf(t, s, func(d string) { write(t, d, map[string]string{"a": "a"}) }),
		layerOf(t, s, func(d string) { write(t, d, map[string]string{"b": "b"}) }),
	})
	defer st.Release()
	v, err := st.Open(context.Background())
	check(t, err)
	defer v.Close()
	if got := strings.Join(names(t, v.Dir), " "); got != "a b" {
		t.Errorf("got %q", got)
	}
}
