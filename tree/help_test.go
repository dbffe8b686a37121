package tree

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(t.TempDir(), store.Options{})
	check(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// old makes a file's times trustworthy: the index does not believe what changed a moment ago.
func old(t testing.TB, dir string) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	var st unix.Stat_t
	for {
		check(t, unix.Stat(dir, &st))
		newest := int64(0)
		filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if unix.Lstat(p, &st) == nil {
				newest = max(newest, nanos(st.Ctim))
			}
			return nil
		})
		if time.Now().UnixNano()-newest > 2*int64(racyWindow) || time.Now().After(deadline) {
			return
		}
		time.Sleep(racyWindow / 4)
	}
}

func write(t testing.TB, root string, files map[string]string) {
	t.Helper()
	for name, data := range files {
		p := filepath.Join(root, name)
		check(t, os.MkdirAll(filepath.Dir(p), 0o755))
		switch {
		case len(data) > 2 && data[:2] == "->":
			check(t, os.Symlink(data[2:], p))
		case data == "DIR":
			check(t, os.MkdirAll(p, 0o755))
		default:
			check(t, os.WriteFile(p, []byte(data), 0o644))
		}
	}
}

// layerOf commits a layer that fill writes.
func layerOf(t testing.TB, s *store.Store, fill func(dir string)) store.LayerID {
	t.Helper()
	d, err := s.NewLayer(context.Background())
	check(t, err)
	fill(d.Dir)
	check(t, s.Update(context.Background(), func(b *store.Batch) error {
		b.Layer(d, store.LayerInfo{ID: d.ID})
		return nil
	}))
	return d.ID
}

func whiteout(t testing.TB, p string) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(p), 0o755))
	check(t, unix.Mknod(p, unix.S_IFCHR, 0))
}

func opaque(t testing.TB, p string) {
	t.Helper()
	check(t, os.MkdirAll(p, 0o755))
	check(t, unix.Lsetxattr(p, opaqueAttr, []byte("y"), 0))
}

func local(t testing.TB, dir string, op *graph.Local) *Local {
	t.Helper()
	l := NewLocal(nil, session.Dir{Path: dir}, op)
	t.Cleanup(l.Release)
	return l
}

func sel(paths ...graph.Select) graph.Selector { return graph.Selector{Paths: paths} }

func digestOf(t testing.TB, tr Tree, s graph.Selector) graph.Digest {
	t.Helper()
	d, err := tr.Content(context.Background(), s)
	check(t, err)
	return d
}

// names lists a directory as a mount shows it: "a", "d/", "d/x".
func names(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	check(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		if rel == "." {
			return nil
		}
		if d.IsDir() {
			rel += "/"
		}
		out = append(out, rel)
		return nil
	}))
	return out
}
