package store

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/graph"
)

// A blob that a result needs stays as long as the result, goes with it, and makes it a miss if it is lost.
func TestResultPinsBlobs(t *testing.T) {
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	blob, err := s.PutBlob(t.Context(), []byte("a layer"))
	if err != nil {
		t.Fatal(err)
	}
	key := digest.FromString("key")
	want := Result{Label: "OUTPUT", Outputs: [][]LayerID{{}}, Blobs: []graph.Digest{blob}}
	if err := s.Update(t.Context(), func(b *Batch) error { b.Result(key, want); return nil }); err != nil {
		t.Fatal(err)
	}
	onlyBlobs := func(u Usage) bool { return u.Kind == UsageBlob }
	if _, err := s.GC(t.Context(), Policy{All: true, Filter: onlyBlobs}); err != nil {
		t.Fatal(err)
	}
	r, err := s.Result(key)
	if err != nil || len(r.Blobs) != 1 || r.Blobs[0] != blob {
		t.Fatalf("the result is %+v, %v", r, err)
	}
	if _, ok := s.HasBlob(blob); !ok {
		t.Fatal("a blob that a result needs was collected")
	}
	f, err := s.GC(t.Context(), Policy{All: true})
	if err != nil || len(f.Items) != 2 {
		t.Errorf("collected %+v, %v", f.Items, err)
	}
	if _, ok := s.HasBlob(blob); ok {
		t.Error("the blob stays when the result is gone")
	}
	if err := s.Update(t.Context(), func(b *Batch) error { b.Result(key, want); return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Result(key); err == nil {
		t.Error("a result without its blob is no miss")
	}
}
