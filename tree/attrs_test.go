package tree

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
)

// TestAttributesOfAClientsFiles: attributes of users and capabilities are part of what a directory of a client is, for its digest and
// for copies, although only files that changed are looked at.
func TestAttributesOfAClientsFiles(t *testing.T) {
	s := newStore(t)
	dir := t.TempDir()
	write(t, dir, map[string]string{"src/f": "one", "src/g": "two", "src/d/h": "three"})
	attr := func(name, key string) string {
		b := make([]byte, 100)
		n, err := unix.Lgetxattr(name, key, b)
		if errors.Is(err, unix.ENODATA) {
			return ""
		}
		check(t, err)
		return string(b[:n])
	}
	set := func(name, key, value string) {
		t.Helper()
		check(t, unix.Lsetxattr(filepath.Join(dir, name), key, []byte(value), 0))
		old(t, dir)
	}
	old(t, dir)
	build := func() (graph.Digest, string) {
		t.Helper()
		ctx := context.Background()
		l := NewLocal(NewIndexes(s.Root()).Get(dir), session.Dir{Path: dir}, &graph.Local{})
		defer l.Release()
		q := graph.Select{Path: "/src", Contents: true}
		digest := digestOf(t, l, sel(q))
		d, err := s.NewLayer(ctx)
		check(t, err)
		u, err := NewUpper(NewStack(s, nil), d)
		check(t, err)
		defer u.Close()
		m, err := l.files.Pick(ctx, q, true)
		check(t, err)
		e := FindLineage(s, "lineage")
		defer e.Close()
		check(t, u.Copy(ctx, l.files, &m[0], "app", CopyOptions{Earlier: e}))
		_, err = u.Finish(ctx)
		check(t, err)
		check(t, u.SaveLineage(s, "lineage"))
		check(t, s.Update(ctx, func(b *store.Batch) error { b.Layer(d, store.LayerInfo{}); return nil }))
		return digest, filepath.Join(d.Dir, "app")
	}
	plain, app := build()
	for range 2 { // the second time the digests come from the index, and the files from the lineage
		if again, _ := build(); again != plain {
			t.Fatal("the digest of unchanged files changed")
		}
	}
	seen := map[graph.Digest]string{plain: "nothing"}
	for _, c := range []struct{ file, key, value string }{
		{"src/f", "user.a", "1"},
		{"src/f", "user.a", "2"},
		{"src/d", "user.b", "3"},
		{"src/g", "user.c", ""},
		{"src/g", "security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	} {
		set(c.file, c.key, c.value)
		for range 2 {
			digest, app := build()
			if was, ok := seen[digest]; ok && was != c.file+c.key+c.value {
				t.Errorf("%s %s: the digest is that of %q", c.file, c.key, was)
			}
			seen[digest] = c.file + c.key + c.value
			rel, _ := filepath.Rel("src", c.file)
			if got := attr(filepath.Join(app, rel), c.key); got != c.value {
				t.Errorf("%s: the copy's %s is %q", c.file, c.key, got)
			}
		}
	}
	set("src/f", "user.overlay.opaque", "y") // of an overlay, not of a user
	set("src/f", "trusted.x", "y")
	if digest, app := build(); seen[digest] == "" || attr(filepath.Join(app, "f"), "user.overlay.opaque") != "" || attr(filepath.Join(app, "f"), "trusted.x") != "" {
		t.Error("other attributes count")
	}
	for file, keys := range map[string][]string{"src/f": {"user.a"}, "src/d": {"user.b"}, "src/g": {"user.c", "security.capability"}} {
		for _, k := range keys {
			check(t, unix.Lremovexattr(filepath.Join(dir, file), k))
		}
	}
	old(t, dir)
	digest, app2 := build()
	if digest != plain || attr(filepath.Join(app2, "f"), "user.a") != "" || attr(filepath.Join(app, "f"), "user.a") != "" {
		t.Error("without the attributes it is not what it was")
	}
}

// TestNamesOfOneFile: a COPY keeps which names are one file, so it counts, within what is copied and wherever that lies.
func TestNamesOfOneFile(t *testing.T) {
	s := newStore(t)
	apart := func(dir string) {
		write(t, dir, map[string]string{"src/a": "same", "src/d/b": "same", "src/d/c": "same"})
	}
	joined := func(dir string) {
		write(t, dir, map[string]string{"src/a": "same", "src/d/b": "same"})
		check(t, os.Link(dir+"/src/a", dir+"/src/d/c"))
	}
	moved := func(dir string) {
		write(t, dir, map[string]string{"deep/src/a": "same", "deep/src/d/b": "same", "elsewhere": "x"})
		check(t, os.Link(dir+"/deep/src/a", dir+"/deep/src/d/c"))
	}
	outside := func(dir string) {
		apart(dir)
		check(t, os.Link(dir+"/src/a", dir+"/outside"))
	}
	for _, kind := range []string{"local", "layer"} {
		digest := func(fill func(dir string), at string) graph.Digest {
			t.Helper()
			times := func(dir string) {
				fill(dir)
				check(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
					return errors.Join(err, os.Chtimes(p, time.Unix(1e9, 0), time.Unix(1e9, 0)))
				}))
			}
			if kind == "layer" {
				st := NewStack(s, []store.LayerID{layerOf(t, s, times)})
				t.Cleanup(st.Release)
				return digestOf(t, st, sel(graph.Select{Path: at, Contents: true}))
			}
			dir := t.TempDir()
			times(dir)
			return digestOf(t, local(t, dir, &graph.Local{}), sel(graph.Select{Path: at, Contents: true}))
		}
		want := digest(apart, "/src")
		if digest(joined, "/src") == want {
			t.Errorf("%s: two names of one file are as two files", kind)
		}
		if digest(joined, "/src") != digest(moved, "/deep/src") {
			t.Errorf("%s: where the files lie counts", kind)
		}
		if digest(joined, "/src/d") != digest(apart, "/src/d") || digest(outside, "/src") != want {
			t.Errorf("%s: a name that is not copied counts", kind)
		}
	}
}
