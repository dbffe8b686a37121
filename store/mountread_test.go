package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/strata-build/strata/graph"
)

// TestReadCacheMount reads a mount when those who want it for themselves do not have it, and beside those who share it.
func TestReadCacheMount(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	read := func(sharing graph.Sharing) (text string, ok bool, err error) {
		ok, err = s.ReadCacheMount(t.Context(), "key", sharing, func(dir string) error {
			raw, err := os.ReadFile(filepath.Join(dir, "f"))
			text = string(raw)
			return err
		})
		return text, ok, err
	}
	if _, ok, err := read(graph.SharingLocked); ok || err != nil {
		t.Fatalf("a mount that does not exist: %v, %v", ok, err)
	}
	for _, sharing := range []graph.Sharing{graph.SharingLocked, graph.SharingPrivate} {
		dir, release, err := s.CacheMount(t.Context(), "key", sharing, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan string)
		go func() {
			text, _, err := read(sharing)
			if err != nil {
				text = err.Error()
			}
			done <- text
		}()
		select {
		case got := <-done:
			t.Fatalf("%s: %q was read while a step had the mount", sharing, got)
		default:
		}
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte(sharing), 0o644); err != nil {
			t.Fatal(err)
		}
		release()
		if got := <-done; got != string(sharing) {
			t.Errorf("%s: %q", sharing, got)
		}
	}
	_, release, err := s.CacheMount(t.Context(), "key", graph.SharingShared, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if got, ok, err := read(""); got != string(graph.SharingPrivate) || !ok || err != nil {
		t.Errorf("beside one who shares it: %q, %v, %v", got, ok, err)
	}
}

// TestEmptyCacheMountIsRefilled fills a mount that is empty, if nobody else has it and there is something to fill it with.
func TestEmptyCacheMountIsRefilled(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	asked, has := 0, false
	get := func() (string, func()) {
		t.Helper()
		dir, release, err := s.CacheMount(t.Context(), "key", graph.SharingShared, nil, func(dir string) (bool, error) {
			asked++
			return has, os.WriteFile(filepath.Join(dir, "f"), []byte("refilled"), 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
		return dir, release
	}
	dir, release := get()
	_, other := get()
	if all, err := os.ReadDir(dir); err != nil || len(all) != 0 || asked != 0 {
		t.Errorf("a new mount, and one that others have: %v, %v, asked %d times", all, err, asked)
	}
	other()
	release()
	_, release = get()
	release()
	if all, err := os.ReadDir(dir); err != nil || len(all) != 0 || asked != 1 {
		t.Errorf("nothing to fill it with: %v, %v, asked %d times", all, err, asked)
	}
	has = true
	for range 2 {
		_, release = get()
		release()
		if raw, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(raw) != "refilled" || asked != 2 {
			t.Errorf("%q, %v, asked %d times", raw, err, asked)
		}
	}
}
