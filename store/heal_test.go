package store

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/internal/faultdisk"
)

// A root is there as a whole after a power cut just after it was made.
func TestPowerCutSoonAfterCreation(t *testing.T) {
	if os.Geteuid() == 0 && !inOwnNamespace(t) {
		return
	}
	d := faultdisk.New(t, 64<<20, "ext4")
	root := filepath.Join(d.Dir, "root")
	s := open(t, root, slow())
	crash(t, s)
	d.PowerCut(nil)
	d.Mount()
	s = open(t, root, slow())
	addLayer(t, s, key("a"), 1)
	closeStore(t, s)
	s = open(t, root, slow())
	if !has(s, "a") {
		t.Error("a result is gone")
	}
	closeStore(t, s)
}

func TestEmptyFilesAndMissingDirectoriesAreMadeAgain(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, slow())
	addLayer(t, s, key("a"), 1)
	closeStore(t, s)
	for _, f := range []string{"version", "oci-layout", "index.json"} {
		if err := os.Truncate(filepath.Join(root, f), 0); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, root, slow())
	if !has(s, "a") {
		t.Error("a result is gone")
	}
	closeStore(t, s)
	for _, f := range []string{"version", "oci-layout", "index.json"} {
		if fi, err := os.Stat(filepath.Join(root, f)); err != nil || fi.Size() == 0 {
			t.Errorf("%s: %v", f, err)
		}
	}
	for _, dir := range []string{"ingest", "snapshots", "mounts", "tmp", "index", "blobs"} {
		if err := os.RemoveAll(filepath.Join(root, dir)); err != nil {
			t.Fatal(err)
		}
		s = open(t, root, slow())
		if _, err := s.PutBlob(t.Context(), []byte(dir)); err != nil {
			t.Errorf("without %s: %v", dir, err)
		}
		addLayer(t, s, key("after %s", dir), 1)
		if _, err := s.Usage(t.Context()); err != nil {
			t.Errorf("without %s: %v", dir, err)
		}
		closeStore(t, s)
	}
}

// The files that a collection deleted stay deleted after a power cut that takes the records of the collection.
func TestPowerCutSoonAfterACollection(t *testing.T) {
	root := t.TempDir()
	opt := slow()
	opt.incarnation = "first"
	s := open(t, root, opt)
	addLayer(t, s, key("a"), 100)
	addLayer(t, s, key("b"), 100)
	if _, err := s.PutBlob(t.Context(), []byte("blob")); err != nil {
		t.Fatal(err)
	}
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	if f, err := s.GC(t.Context(), Policy{All: true}); err != nil || len(f.Items) != 3 {
		t.Fatalf("%+v, %v", f, err)
	}
	if err := unix.Syncfs(int(s.dir.Fd())); err != nil { // sync would wait for the disks of other tests, too
		t.Fatal(err)
	}
	crash(t, s)
	opt.incarnation = "second" // the log is dropped, and the database knows the layers
	s = open(t, root, opt)
	waitSwept(s)
	if p, err := s.Check(t.Context(), CheckOptions{Full: true}); err != nil || len(p) > 0 {
		t.Errorf("%v, %v", p, err)
	}
	closeStore(t, s)
}
