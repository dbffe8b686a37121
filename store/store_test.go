package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

var quiet = slog.New(slog.DiscardHandler)

func key(format string, args ...any) graph.Digest {
	return digest.FromString(fmt.Sprintf(format, args...))
}

// slow options never flush by themselves: what a test sees is the log.
func slow() Options { return Options{Log: quiet, MaxBytes: -1, flushDelay: time.Hour} }

func open(t *testing.T, root string, opt Options) *Store {
	t.Helper()
	s, err := Open(root, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func closeStore(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// crash drops a store as a kill -9 would: nothing is flushed, and the kernel closes the files.
func crash(t *testing.T, s *Store) {
	t.Helper()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	s.trash.stop()
	s.release()
}

// addLayer commits a layer with one file, and a result for it on top of below.
func addLayer(t *testing.T, s *Store, k graph.Digest, size int64, below ...LayerID) LayerID {
	t.Helper()
	d, err := s.NewLayer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	if err := os.WriteFile(filepath.Join(d.Dir, "file"), []byte(k), 0o644); err != nil {
		t.Fatal(err)
	}
	err = s.Update(t.Context(), func(b *Batch) error {
		b.Layer(d, LayerInfo{Size: size, Files: 2})
		b.Result(k, Result{Outputs: [][]LayerID{append(append([]LayerID(nil), below...), d.ID)}, Label: "RUN " + string(k[7:12])})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return d.ID
}

func wantMiss(t *testing.T, err error) {
	t.Helper()
	if diag.KindOf(err) != diag.NotFound {
		t.Fatalf("got %v, want a miss", err)
	}
}

func wantKind(t *testing.T, err error, k diag.Kind) {
	t.Helper()
	if err == nil || diag.KindOf(err) != k {
		t.Fatalf("got %v, want an error of kind %v", err, k)
	}
}

func update(t *testing.T, s *Store, f func(*Batch)) {
	t.Helper()
	if err := s.Update(t.Context(), func(b *Batch) error { f(b); return nil }); err != nil {
		t.Fatal(err)
	}
}

func TestRecordsRoundTrip(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, slow())
	config, err := s.PutBlob(t.Context(), []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	base := addLayer(t, s, key("base"), 10)
	top := addLayer(t, s, key("top"), 20, base)
	created := time.Unix(1_700_000_000, 0)
	desc := image.Descriptor{MediaType: image.DockerLayerGzip, Digest: key("gz"), Size: 7}
	im := Image{Updated: created.UTC(), Platforms: []PlatformImage{{Config: config, Layers: []LayerID{base, top}, Platform: graph.Platform{OS: "linux"}}}}
	update(t, s, func(b *Batch) {
		b.SetLayer(LayerInfo{ID: top, DiffID: key("diff"), Size: 20, TarSize: 99, Files: 3, Created: created})
		b.Result(key("two"), Result{Outputs: [][]LayerID{{base}, {base, top}, {}}, Label: "two", Cost: time.Minute, Created: created, Extra: []byte(`{"a":1}`)})
		b.Memo(key("def"), key("two"))
		b.Preimage(key("two"), []byte("what was hashed"))
		b.Chain(key("chain"), top)
		b.Variant(key("diff"), desc)
		b.Variant(key("diff"), image.Descriptor{MediaType: image.DockerLayerZstd, Digest: key("zstd")})
		b.Variant(key("diff"), desc) // no second time
		b.Image("example.com/app:1", im)
		b.Image("gone", im)
		b.DeleteImage("gone")
	})
	verify := func(s *Store) {
		t.Helper()
		l, err := s.Layer(top)
		if want := (LayerInfo{ID: top, DiffID: key("diff"), Size: 20, TarSize: 99, Files: 3, Created: created}); err != nil || l != want {
			t.Errorf("layer: %+v, %v", l, err)
		}
		r, err := s.Result(key("two"))
		if got := fmt.Sprintf("%v %s %v %v %s", r.Outputs, r.Label, r.Cost, r.Created.Equal(created), r.Extra); err != nil || got != fmt.Sprintf("[[%d] [%d %d] []] two 1m0s true {\"a\":1}", base, base, top) {
			t.Errorf("result: %v, %v", got, err)
		}
		if m, err := s.Memo(key("def")); m != key("two") || err != nil {
			t.Errorf("memo: %v, %v", m, err)
		}
		if p, err := s.Preimage(key("two")); string(p) != "what was hashed" || err != nil {
			t.Errorf("preimage: %q, %v", p, err)
		}
		if id, err := s.Chain(key("chain")); id != top || err != nil {
			t.Errorf("chain: %v, %v", id, err)
		}
		if v := s.Variants(key("diff")); len(v) != 2 || v[0].Digest != key("gz") && v[1].Digest != key("gz") {
			t.Errorf("variants: %v", v)
		}
		got, err := s.Image("example.com/app:1")
		if err != nil || got.Name != "example.com/app:1" || len(got.Platforms) != 1 || got.Platforms[0].Config != config {
			t.Errorf("image: %+v, %v", got, err)
		}
		if all, err := s.Images(); len(all) != 1 || err != nil {
			t.Errorf("images: %v, %v", all, err)
		}
		_, err = s.Image("gone")
		wantMiss(t, err)
		_, err = s.Result(key("never"))
		wantMiss(t, err)
		if _, err := os.Stat(filepath.Join(s.LayerDir(top), "file")); err != nil {
			t.Error(err)
		}
	}
	verify(s)
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	verify(s) // from the database
	closeStore(t, s)
	verify(open(t, root, slow()))
}

func TestUpdateIsAllOrNothing(t *testing.T) {
	s := open(t, t.TempDir(), slow())
	mine := errors.New("mine")
	if err := s.Update(t.Context(), func(b *Batch) error { b.Memo(key("a"), key("b")); return mine }); err != mine {
		t.Fatal(err)
	}
	err := s.Update(t.Context(), func(b *Batch) error {
		b.Memo(key("a"), key("b"))
		b.Result(key("r"), Result{Outputs: [][]LayerID{{12345}}})
		return nil
	})
	wantKind(t, err, diag.Internal)
	_, err = s.Memo(key("a"))
	wantMiss(t, err)

	d, err := s.NewLayer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d.Discard()
	err = s.Update(t.Context(), func(b *Batch) error { b.Layer(d, LayerInfo{}); return nil })
	wantKind(t, err, diag.Internal)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantKind(t, s.Update(ctx, func(*Batch) error { return nil }), diag.Canceled)
}

func TestDraftsAndNumbers(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, slow())
	d, err := s.NewLayer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{d.Dir, d.Work} {
		if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
			t.Fatal(err)
		}
	}
	d.Discard()
	d.Discard()
	if _, err := os.Lstat(d.Dir); !os.IsNotExist(err) {
		t.Fatalf("a discarded draft is still there: %v", err)
	}
	id := addLayer(t, s, key("a"), 1)
	if id == d.ID {
		t.Fatal("a number was used twice")
	}
	if _, err := s.GC(t.Context(), Policy{All: true}); err != nil {
		t.Fatal(err)
	}
	_, err = s.Layer(id)
	wantMiss(t, err)
	closeStore(t, s)
	s = open(t, root, slow())
	if again := addLayer(t, s, key("b"), 1); again <= id {
		t.Fatalf("number %d was used again", again)
	}
}

func TestOpenCloseWithoutChangeWritesNothing(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, slow())
	addLayer(t, s, key("a"), 1)
	closeStore(t, s)
	before, err := os.Stat(filepath.Join(root, "meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	s = open(t, root, slow())
	if _, err := s.Result(key("a")); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	after, err := os.Stat(filepath.Join(root, "meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	if !after.ModTime().Equal(before.ModTime()) {
		t.Error("the database was written")
	}
	if b, _ := os.ReadFile(filepath.Join(root, "lock")); len(b) != 0 {
		t.Errorf("the lock says %q", b)
	}
	// The use of the result was kept all the same.
	s = open(t, root, slow())
	us, err := s.Usage(t.Context())
	if err != nil || len(us) != 1 || !us[0].LastUsed.After(us[0].Created.Add(-time.Second)) {
		t.Errorf("usage: %+v, %v", us, err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if v, err := s.value(useKey(keyOf(kindResult, string(key("a"))))); v == nil || err != nil {
		t.Errorf("the use was lost: %v", err)
	}
}

func TestLayoutIsAnOCILayout(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, slow())
	if s.Root() != root {
		t.Errorf("root is %s", s.Root())
	}
	for _, f := range []string{"oci-layout", "index.json", "blobs/sha256", "snapshots", "ingest", "mounts", "tmp", "index", "version"} {
		if _, err := os.Stat(filepath.Join(root, f)); err != nil {
			t.Error(err)
		}
	}
	dir, cleanup, err := s.TempDir("a/b")
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Dir(dir) != filepath.Join(root, "tmp") {
		t.Errorf("temporary directory %s", dir)
	}
	cleanup()
	cleanup()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Error("the temporary directory is still there")
	}
	closeStore(t, s)
	if err := os.WriteFile(filepath.Join(root, "version"), []byte("999\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = Open(root, slow())
	wantKind(t, err, diag.Conflict)
}

func TestClosedStore(t *testing.T) {
	s := open(t, t.TempDir(), slow())
	closeStore(t, s)
	closeStore(t, s)
	if err := s.Update(t.Context(), func(b *Batch) error { b.Memo(key("a"), key("b")); return nil }); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if _, err := s.Result(key("a")); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if _, err := s.NewLayer(t.Context()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}
