package e2e

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestDamagedLayerDoesNotLeaveTheStore flips a byte of a file in a layer that was made here. The image is not exported with other
// content, and building it again makes the layer anew.
func TestDamagedLayerDoesNotLeaveTheStore(t *testing.T) {
	needBuild(t)
	s := newSite(t)
	s.base()
	s.write("Dockerfile", "FROM base\nCOPY file /copied-file\n")
	s.write("file", "content of the file\n")
	build := func() result { return s.ok("build", "--progress=plain", "-t", "app", ".") }
	build()
	want := s.layers("app")
	damage := func() {
		found, _ := filepath.Glob(filepath.Join(s.root, "snapshots", "*", "fs", "copied-file"))
		if len(found) != 1 {
			t.Fatalf("%q", found)
		}
		if err := os.WriteFile(found[0], []byte("content of the fool\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, format := range []string{"docker", "oci"} {
		damage()
		s.fails(s.run("image", "save", "--format", format, "-o", filepath.Join(t.TempDir(), "saved.tar"), "app"),
			"is damaged: its files make sha256:", "hint: the layer was dropped: build the image again")
		if r := build(); r.steps()["[2/2] COPY file /copied-file"] != "DONE" {
			t.Errorf("%s: the layer is not made again: %s", format, r.err)
		}
		if got := s.layers("app"); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", format, got, want)
		}
		s.healthy()
	}
}

// TestSavedImageIsTheOneOfTheStore saves an image whose times were rewritten. It goes out with the layers that it was made with.
func TestSavedImageIsTheOneOfTheStore(t *testing.T) {
	needBuild(t)
	s := newSite(t)
	s.base()
	s.write("Dockerfile", "FROM base\nCOPY file /copied-file\n")
	s.write("file", "content of the file\n")
	if r := s.build(); r.code != 0 {
		t.Fatal(r.err)
	}
	want := s.layers("app")
	saved := filepath.Join(t.TempDir(), "saved.tar")
	s.ok("image", "save", "-o", saved, "app")
	s.ok("image", "rm", "app")
	s.ok("image", "load", "-i", saved)
	if got := s.layers("app"); !slices.Equal(got, want) {
		t.Errorf("the saved image has the layers %q, the image of the store %q", got, want)
	}
}

// TestDamagedBlobIsMadeAgain damages a compressed layer that an earlier export has left in the store. The next export compresses the
// layer's files again, and gives the same archive.
func TestDamagedBlobIsMadeAgain(t *testing.T) {
	needBuild(t)
	s := newSite(t)
	s.base()
	s.write("Dockerfile", "FROM base\nCOPY file /copied-file\n")
	noise := make([]byte, 300_000)
	rand.NewChaCha8([32]byte{}).Read(noise)
	s.write("file", string(noise))
	export := func() []byte {
		t.Helper()
		dest := filepath.Join(t.TempDir(), "oci.tar")
		s.ok("build", "--progress=plain", "--output=type=oci,rewrite-timestamp=true,dest="+dest, ".")
		data, err := os.ReadFile(dest)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	first := export()
	s.ok("daemon", "stop") // an engine remembers which files it has hashed
	blobs, _ := filepath.Glob(filepath.Join(s.root, "blobs", "sha256", "*"))
	damaged := 0
	for _, b := range blobs {
		if fi, err := os.Stat(b); err != nil || fi.Size() < 300_000 || fi.Size() > 310_000 {
			continue
		}
		data, err := os.ReadFile(b)
		if err == nil {
			data[150_000] ^= 1
			err = os.WriteFile(b, data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		damaged++
	}
	if damaged == 0 {
		t.Fatal("the store has no blob of the layer")
	}
	if again := export(); !bytes.Equal(first, again) {
		t.Error("the archive is another one")
	}
	s.healthy()
}
