package engine

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Run-time state stays as long as its root is there, or may come.
func TestSweepRunDirs(t *testing.T) {
	dir, root := t.TempDir(), t.TempDir()
	old := time.Now().Add(-2 * goneAge)
	add := func(id, of string, at time.Time) string {
		t.Helper()
		path := filepath.Join(dir, id)
		if err := os.MkdirAll(filepath.Join(path, "run", "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		if of != "" {
			if err := os.WriteFile(filepath.Join(path, rootFile), []byte(of), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(path+".sock", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		return path
	}
	gone := add("00000000000000aa", filepath.Join(root, "gone"), old)
	stay := map[string]string{
		"its root exists":   add("00000000000000ab", root, old),
		"its root may come": add("00000000000000ac", filepath.Join(root, "soon"), time.Now()),
		"nobody knows":      add("00000000000000ad", "", old),
		"a relative root":   add("00000000000000ae", "gone", old),
		"another name":      add("others", filepath.Join(root, "gone"), old),
	}
	if err := sweepRunDirs(dir); err != nil {
		t.Error(err)
	}
	for _, path := range []string{gone, gone + ".sock"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
	for what, path := range stay {
		for _, p := range []string{path, path + ".sock"} {
			if _, err := os.Lstat(p); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// A root has one id, before it exists and afterwards, by whichever path.
func TestRootIDThroughLinks(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	id := func(elem ...string) string {
		t.Helper()
		id, err := RootID(filepath.Join(append([]string{dir}, elem...)...))
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	before := id("link", "a", "state")
	if err := os.MkdirAll(filepath.Join(dir, "real", "a", "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	if after, real := id("link", "a", "state"), id("real", "a", "state"); after != before || real != before {
		t.Errorf("%s before the root exists, %s afterwards, %s by its real path", before, after, real)
	}
}

// An engine that ends leaves no run-time state, unless something is in it.
func TestRunDirGoesWithTheEngine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root := t.TempDir()
	e, err := Open(t.Context(), Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(e.runDir, rootFile)); err != nil || string(data) != root {
		t.Errorf("%q, %v", data, err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(e.runDir); err == nil {
		t.Errorf("%s is left", e.runDir)
	}
	dir := t.TempDir()
	for _, sub := range []string{"run", "cni/x"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	dropRunDir(dir)
	if _, err := os.Lstat(filepath.Join(dir, "cni", "x")); err != nil {
		t.Error(err)
	}
}
