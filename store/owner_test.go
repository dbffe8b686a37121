package store

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/graph"
)

// What an owner has is counted as it comes and goes, and only that is collected for it.
func TestSpaceOfOwners(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, slow())
	a, b := WithOwner(t.Context(), "a"), WithOwner(t.Context(), "b")
	if got := WithOwner(t.Context(), ""); got != t.Context() {
		t.Error("a context without an owner is another one")
	}
	want := func(what string, owner string, bytes int64) {
		t.Helper()
		if got, err := s.Owned(owner); err != nil || got != bytes {
			t.Errorf("%s: %q has %d bytes, want %d (%v)", what, owner, got, bytes, err)
		}
	}
	layer := func(ctx context.Context, name, owner string, size int64, below ...LayerID) LayerID {
		t.Helper()
		d, err := s.NewLayer(ctx)
		if err != nil {
			t.Fatal(err)
		}
		update(t, s, func(u *Batch) {
			u.Layer(d, LayerInfo{Size: size})
			u.Result(key("%s", name), Result{Outputs: [][]LayerID{append(below, d.ID)}, Owner: owner})
		})
		return d.ID
	}
	base := layer(a, "base of a", "a", 100)
	layer(a, "old of a", "a", 200, base)
	layer(b, "of b", "b", 400, base)
	layer(a, "new of a", "a", 300)
	if _, err := s.PutBlob(a, []byte("12345")); err != nil {
		t.Fatal(err)
	}
	want("made", "a", 605)
	want("made", "b", 400)
	want("made", "", 0)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, slow())
	want("opened again", "a", 605)
	want("opened again", "b", 400)

	// Least recently used first, and no more than is needed; what b's result needs stays though a made it.
	if _, err := s.GC(t.Context(), Policy{Owner: "a", MaxBytes: 450}); err != nil {
		t.Fatal(err)
	}
	want("collected", "a", 405)
	want("collected", "b", 400)
	if has(s, "old of a") || !has(s, "new of a") || !has(s, "of b") {
		t.Error("the wrong results were kept")
	}
	if _, err := s.GC(t.Context(), Policy{Owner: "a", MaxBytes: 1}); err != nil {
		t.Fatal(err)
	}
	want("collected all", "a", 100)
	if !has(s, "of b") {
		t.Error("another owner's result is gone")
	}
}

// What is being written counts before it is committed.
func TestSpaceThatGrows(t *testing.T) {
	s := open(t, t.TempDir(), slow())
	a := WithOwner(t.Context(), "a")
	const size = 1 << 20
	empty := s.Growing(t.Context(), "a")
	d, err := s.NewLayer(a)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	if err := os.WriteFile(filepath.Join(d.Dir, "f"), make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := s.NewBlob(a, "")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	dir, release, err := s.CacheMount(a, MountKey("a", "cache"), graph.SharingShared, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := s.Growing(t.Context(), "a"); empty != 0 || n < 3*size || n > 3*size+100_000 {
		t.Errorf("%d bytes, and %d at first", n, empty)
	}
	if n := s.Growing(t.Context(), "b"); n != 0 {
		t.Errorf("somebody else has %d bytes", n)
	}
	w.Abort()
	d.Discard()
	release()
	if n := s.Growing(t.Context(), "a"); n != 0 {
		t.Errorf("%d bytes are left", n)
	}
	s.measureMounts(t.Context(), true)
	if n, err := s.Owned("a"); err != nil || n < size {
		t.Errorf("the cache mount has %d bytes, %v", n, err)
	}
	if _, err := s.GC(t.Context(), Policy{Owner: "a", MaxBytes: 1}); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Owned("a"); err != nil || n != 0 {
		t.Errorf("%d bytes are left, %v", n, err)
	}
}

// Two owners write a blob at the same time: neither waits for the other, and it counts once, for the first to end. A transfer that
// is broken off counts for its owner, also after another start, and is collected for it.
func TestBlobsOfTwoOwners(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, slow())
	a, b := WithOwner(t.Context(), "a"), WithOwner(t.Context(), "b")
	body := []byte("12345")
	d := digest.FromBytes(body)
	begin := func(ctx context.Context, d graph.Digest, part []byte) *BlobWriter {
		t.Helper()
		w, err := s.NewBlob(ctx, d)
		if err == nil {
			_, err = w.Write(part)
		}
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	owned := func(what string, ofA, ofB int64) {
		t.Helper()
		for owner, want := range map[string]int64{"a": ofA, "b": ofB} {
			if got, err := s.Owned(owner); err != nil || got != want {
				t.Errorf("%s: %q has %d bytes, want %d (%v)", what, owner, got, want, err)
			}
		}
	}
	first, second := begin(a, d, body[:2]), begin(b, d, body)
	if _, _, err := second.Commit(b); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Write(body[2:]); err != nil {
		t.Fatal(err)
	}
	if _, _, err := first.Commit(a); err != nil {
		t.Fatal(err)
	}
	owned("both written", 0, 5)
	begin(a, digest.FromString("of a"), make([]byte, 1000)).Abort()
	begin(b, digest.FromString("of b"), make([]byte, 2000)).Abort()
	owned("broken off", 1000, 2005)
	if w, err := s.NewBlob(b, digest.FromString("of a")); err != nil || w.Offset() != 0 {
		t.Errorf("another owner goes on at %d, %v", w.Offset(), err)
	} else {
		w.Abort()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, slow())
	owned("opened again", 1000, 2005)
	if _, err := s.GC(t.Context(), Policy{Owner: "b", MaxBytes: 1}); err != nil {
		t.Fatal(err)
	}
	owned("collected", 1000, 0)
	if w := begin(a, digest.FromString("of a"), nil); w.Offset() != 1000 {
		t.Errorf("the owner goes on at %d", w.Offset())
	} else {
		w.Abort()
	}
}
