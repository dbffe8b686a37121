package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// failing options let the next n syncs fail. Layers consist of one file, whose digest is the diff_id.
func failing(n *atomic.Int64) Options {
	o := slow()
	o.syncfs = func(int) error {
		if n.Add(-1) >= 0 {
			return syscall.EIO
		}
		return nil
	}
	o.Copy = func(_ context.Context, from, to string) (graph.Digest, error) {
		b, err := os.ReadFile(filepath.Join(from, "file"))
		if err != nil {
			return "", err
		}
		return digest.FromBytes(b), os.WriteFile(filepath.Join(to, "file"), b, 0o644)
	}
	return o
}

func TestFailedSyncRefusesWhatWasBegunBefore(t *testing.T) {
	var fails atomic.Int64
	root := t.TempDir()
	s := open(t, root, failing(&fails))
	old := addLayer(t, s, key("durable"), 1)
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	d, err := s.NewLayer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	blob, err := s.NewBlob(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Abort()
	blob.Write([]byte("begun before"))
	partial := digest.FromString("whole")
	w, err := s.NewBlob(t.Context(), partial)
	if err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("who"))
	w.Abort()
	mount, release, err := s.CacheMount(t.Context(), "cache", "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(mount, "written"), []byte("before"), 0o644)
	lost := addLayer(t, s, key("lost"), 1)
	update(t, s, func(b *Batch) { b.Memo(key("def"), key("hashed from damaged files")) })

	fails.Store(1)
	wantKind(t, s.flush(), diag.Unavailable)

	wantKind(t, s.Update(t.Context(), func(b *Batch) error { b.Layer(d, LayerInfo{Size: 1}); return nil }), diag.Unavailable)
	_, _, err = blob.Commit(t.Context())
	wantKind(t, err, diag.Unavailable)
	if w, err = s.NewBlob(t.Context(), partial); err != nil || w.Offset() != 0 {
		t.Errorf("a partial blob of before the failure is resumed at %d, %v", w.Offset(), err)
	}
	w.Abort()
	if has(s, "lost") || !has(s, "durable") {
		t.Error("the newest result must be gone, and the durable one stay")
	}
	if _, err := s.Memo(key("def")); err == nil {
		t.Error("a memo that was made since the last good sync is believed")
	}
	wantKind(t, s.Sound(old, lost), diag.Unavailable)
	if err := s.Sound(old); err != nil {
		t.Error(err)
	}
	again, release2, err := s.CacheMount(t.Context(), "cache", "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(again, "written")); err == nil {
		t.Error("a cache mount of before the failure is used again")
	}
	release2()
	release()
	addLayer(t, s, key("after"), 1)
	closeStore(t, s)

	s = open(t, root, slow())
	if s.swept != nil {
		waitSwept(s)
	}
	if !has(s, "durable") || !has(s, "after") || has(s, "lost") {
		t.Error("the next owner finds other results than those before and after the failure")
	}
	if _, err := os.Stat(s.layerRoot(lost)); err == nil {
		t.Error("the directory of a dropped layer is still there")
	}
	if p, err := s.Check(t.Context(), CheckOptions{Full: true}); err != nil || len(p) > 0 {
		t.Errorf("%v, %v", p, err)
	}
}

// imageOf commits a layer and names an image of it.
func imageOf(t *testing.T, s *Store, name string) LayerID {
	t.Helper()
	id := addLayer(t, s, key("%s", name), 1)
	info, err := s.Layer(id)
	if err != nil {
		t.Fatal(err)
	}
	info.DiffID = digest.FromString(string(key("%s", name)))
	config, err := s.PutBlob(t.Context(), []byte(`{"of":"`+name+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	update(t, s, func(b *Batch) {
		b.SetLayer(info)
		b.Image(name, Image{Platforms: []PlatformImage{{Config: config, Layers: []LayerID{id}, DiffIDs: []graph.Digest{info.DiffID}}}})
	})
	return id
}

func TestFailedSyncKeepsImagesThatWerePromised(t *testing.T) {
	var fails atomic.Int64
	root := t.TempDir()
	s := open(t, root, failing(&fails))
	imageOf(t, s, "earlier")
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	update(t, s, func(b *Batch) {
		im, _ := s.image("earlier")
		b.Image("tagged", im)
		b.DeleteImage("earlier")
	})
	whole := imageOf(t, s, "whole")
	damaged := imageOf(t, s, "damaged")
	os.WriteFile(filepath.Join(s.LayerDir(damaged), "file"), make([]byte, 71), 0o644) // holes in the place of what was written

	fails.Store(3)
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	check := func(s *Store) {
		t.Helper()
		im, err := s.Image("whole")
		if err != nil {
			t.Fatal(err)
		}
		id := im.Platforms[0].Layers[0]
		if b, err := os.ReadFile(filepath.Join(s.LayerDir(id), "file")); err != nil || graph.Digest(b) != key("whole") || id == whole {
			t.Errorf("layer %d holds %q, %v", id, b, err)
		}
		if _, err := s.OpenVerified(t.Context(), im.Platforms[0].Config); err != nil {
			t.Error(err)
		}
		if _, err := s.Image("damaged"); err == nil {
			t.Error("an image with a damaged layer is still there")
		}
		if _, err := s.Image("tagged"); err != nil {
			t.Error("a name of an old image was lost: ", err)
		}
		if _, err := s.Image("earlier"); err == nil {
			t.Error("a name that was removed is back")
		}
	}
	check(s)
	closeStore(t, s)
	s = open(t, root, slow())
	check(s)
	closeStore(t, s)
}

func TestFailedSyncGivesUpAfterAWhile(t *testing.T) {
	var fails atomic.Int64
	s := open(t, t.TempDir(), failing(&fails))
	imageOf(t, s, "image")
	told := 0
	s.OnFailure(func() { told++ })
	fails.Store(1 << 30)
	err := s.flush()
	wantKind(t, err, diag.Unavailable)
	if !errors.Is(err, syscall.EIO) || told == 0 {
		t.Errorf("%v; listeners were called %d times", err, told)
	}
	fails.Store(0)
	if _, err := s.Image("image"); err == nil {
		t.Error("an image that could never be written is still there")
	}
}
