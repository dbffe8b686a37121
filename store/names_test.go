package store

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// naming are options with which layers of one file, whose digest is the diff_id, can be found again.
func naming() Options {
	o := slow()
	o.DiffID = func(_ context.Context, dir string) (graph.Digest, error) {
		b, err := os.ReadFile(filepath.Join(dir, "file"))
		return digest.FromBytes(b), err
	}
	o.Differs = func(context.Context, io.Reader, string) (string, error) { return "", nil }
	return o
}

// packedImage names an image that is kept as blobs, and returns its layer's blob.
func packedImage(t *testing.T, s *Store, name string) graph.Digest {
	t.Helper()
	data := []byte("layer of " + name)
	layer, err := s.PutBlob(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	config, err := s.PutBlob(t.Context(), []byte("config of "+name))
	if err != nil {
		t.Fatal(err)
	}
	im := Image{Updated: time.Now(), Made: true, Platforms: []PlatformImage{{
		Config: config, DiffIDs: []graph.Digest{layer}, Annotations: map[string]string{"a": "b"},
		Blobs: []image.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: layer, Size: int64(len(data))}},
	}}}
	update(t, s, func(b *Batch) { b.Image(name, im) })
	return layer
}

// The database is lost. Images whose blobs and layers are whole keep their names; the others are reported until they are made again.
func TestNamesSurviveTheLossOfTheDatabase(t *testing.T) {
	for what, lose := range map[string]func(path string) error{
		"gone":    os.Remove,
		"emptied": func(path string) error { return os.Truncate(path, 0) },
		"new": func(path string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			d, err := openDatabase(path)
			if err != nil {
				return err
			}
			return d.close()
		},
		"damaged": func(path string) error {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, make([]byte, len(b)), 0o600)
		},
	} {
		t.Run(what, func(t *testing.T) { testLostDatabase(t, lose) })
	}
}

func testLostDatabase(t *testing.T, lose func(path string) error) {
	root := t.TempDir()
	s := open(t, root, naming())
	packedImage(t, s, "whole:1")
	gone := packedImage(t, s, "lacks:1")
	packedImage(t, s, "deleted:1")
	built := imageOf(t, s, "built:1")
	damaged := imageOf(t, s, "damaged:1")
	update(t, s, func(b *Batch) {
		b.DeleteImage("deleted:1")
		im, err := s.Image("built:1")
		if err != nil {
			t.Fatal(err)
		}
		b.Image(string(key("dangling")), im)
		im.Pulled = true
		b.Image("base:1", im)
	})
	want := map[string]string{}
	for _, name := range []string{"whole:1", "built:1"} {
		im, err := s.Image(name)
		if err != nil {
			t.Fatal(err)
		}
		want[name] = string(graph.Canonical(im))
	}
	blob, file := s.blobPath(gone), filepath.Join(s.LayerDir(damaged), "file")
	closeStore(t, s)
	if err := errors.Join(lose(filepath.Join(root, "meta.db")), os.Remove(blob), os.WriteFile(file, []byte("other"), 0o644)); err != nil {
		t.Fatal(err)
	}

	// What is lost is known at the first opening, and after the new database was flushed too.
	for range 2 {
		s = open(t, root, naming())
		for name, image := range want {
			if im, err := s.Image(name); err != nil || string(graph.Canonical(im)) != image {
				t.Errorf("found again as\n%s, %v, but it was\n%s", graph.Canonical(im), err, image)
			}
		}
		if have := names(t, s); len(have) != len(want) {
			t.Errorf("there are %v", have)
		}
		if _, err := s.Layer(built); err != nil {
			t.Error(err)
		}
		if lost := lostNames(t, s, false); lost != "damaged:1 lacks:1" {
			t.Errorf("lost are %q", lost)
		}
		addLayer(t, s, key("another"), 1)
		closeStore(t, s)
	}
	s = open(t, root, naming())
	packedImage(t, s, "lacks:1")
	if lost := lostNames(t, s, true); lost != "damaged:1" {
		t.Errorf("after lacks:1 was made again, lost are %q", lost)
	}
	if lost := lostNames(t, s, false); lost != "" {
		t.Errorf("after the repair, lost are %q", lost)
	}
	closeStore(t, s)
}

func lostNames(t *testing.T, s *Store, repair bool) string {
	t.Helper()
	problems, err := s.Check(t.Context(), CheckOptions{Full: true, Repair: repair})
	if err != nil {
		t.Fatal(err)
	}
	var lost []string
	for _, p := range problems {
		if p.Kind != "image" || !strings.Contains(p.What, "lost with the metadata database") || p.Repaired != repair {
			t.Errorf("%+v", p)
		}
		lost = append(lost, p.ID)
	}
	return strings.Join(lost, " ")
}

// A power cut may leave an index.json that is empty or cut short. It is written anew, and is never a reason to refuse the root.
func TestIndexIsWrittenAnew(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, slow())
	packedImage(t, s, "app")
	closeStore(t, s)
	index := filepath.Join(root, "index.json")
	whole, err := os.ReadFile(index)
	if err != nil || !strings.Contains(string(whole), `"app"`) {
		t.Fatalf("%s, %v", whole, err)
	}
	for _, cut := range []int{-1, 0, 1, 60} {
		err := os.Remove(index)
		if cut >= 0 {
			err = os.WriteFile(index, whole[:cut], 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		s := open(t, root, slow())
		addLayer(t, s, key("after %d", cut), 1)
		closeStore(t, s)
		if now, err := os.ReadFile(index); err != nil || string(now) != string(whole) {
			t.Errorf("cut to %d: it is %s, %v", cut, now, err)
		}
	}
}

// An index.json of somebody else's making does not keep the store from opening.
func FuzzFindNames(f *testing.F) {
	root := f.TempDir()
	s, err := Open(root, slow())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	f.Add([]byte(emptyIndex))
	f.Add([]byte(`{"manifests":[{"digest":"x","annotations":{"org.opencontainers.image.ref.name":"a"}}]}`))
	f.Add([]byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:../../../etc/passwd","size":-1,` +
		`"annotations":{"org.opencontainers.image.ref.name":"sha256:a"}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(filepath.Join(root, "index.json"), b, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := s.findNames(); err != nil {
			t.Error(err)
		}
		if all, err := s.Images(); err != nil || len(all) > 0 {
			t.Errorf("%v, %v", all, err)
		}
	})
}
