package e2e

import (
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
