package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

func TestBlobRoundTrip(t *testing.T) {
	s := open(t, t.TempDir(), slow())
	data := bytes.Repeat([]byte("strata"), 100_000)
	for _, algo := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		d := algo.FromBytes(data)
		w, err := s.NewBlob(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		if _, err := io.Copy(w, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		if got, n, err := w.Commit(t.Context()); err != nil || got != d || n != int64(len(data)) {
			t.Fatal(got, n, err)
		}
		b, err := s.OpenBlob(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(b.Reader())
		if err != nil || !bytes.Equal(got, data) || b.Size() != int64(len(data)) || b.Digest() != d {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		part := make([]byte, 6)
		if _, err := b.ReadAt(part, 6); err != nil || string(part) != "strata" {
			t.Errorf("%q, %v", part, err)
		}
		for range 2 { // the second does nothing
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, err := os.Stat(filepath.Join(s.Root(), "blobs", algo.String(), d.Encoded())); err != nil {
			t.Error(err)
		}
	}
	w, err := s.NewBlob(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "unnamed")
	if d, n, err := w.Commit(t.Context()); err != nil || d != digest.FromString("unnamed") || n != 7 {
		t.Error(d, n, err)
	}
	if _, err := s.OpenBlob(t.Context(), key("none")); diag.KindOf(err) != diag.NotFound {
		t.Error(err)
	}
	for _, bad := range []graph.Digest{"x", "sha256:../../etc/passwd", "sha256:" + graph.Digest(strings.Repeat("A", 64)), "md5:00"} {
		_, err := s.NewBlob(t.Context(), bad)
		wantKind(t, err, diag.Invalid)
		if _, ok := s.HasBlob(bad); ok {
			t.Error(bad)
		}
	}
	if left, _ := os.ReadDir(s.path("ingest")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestWrongContentIsRefused(t *testing.T) {
	s := open(t, t.TempDir(), slow())
	w, err := s.NewBlob(t.Context(), key("right"))
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "wrong")
	_, _, err = w.Commit(t.Context())
	wantKind(t, err, diag.Invalid)
	w.Abort()
	if _, ok := s.HasBlob(key("right")); ok {
		t.Error("it was stored")
	}
	w, err = s.NewBlob(t.Context(), key("right"))
	if err != nil || w.Offset() != 0 {
		t.Error("wrong bytes are resumed: ", err)
	}
	w.Abort()
}

func TestResumePartialBlob(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, slow())
	d := digest.FromString("one two")
	w, err := s.NewBlob(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "one ")
	w.Abort()
	w.Abort()
	crash(t, s)
	s = open(t, root, slow())
	waitSwept(s)
	w, err = s.NewBlob(t.Context(), d)
	if err != nil || w.Offset() != 4 || w.Complete() {
		t.Fatal(w, err)
	}
	io.WriteString(w, "two")
	if got, n, err := w.Commit(t.Context()); err != nil || got != d || n != 7 {
		t.Error(got, n, err)
	}
	w, err = s.NewBlob(t.Context(), d)
	if err != nil || !w.Complete() || w.Offset() != 7 {
		t.Error(w, err)
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("a complete blob can be written to")
	}
	if got, n, err := w.Commit(t.Context()); err != nil || got != d || n != 7 {
		t.Error(got, n, err)
	}
}

func TestOneWriterPerBlob(t *testing.T) {
	s := open(t, t.TempDir(), slow())
	data := bytes.Repeat([]byte("x"), 1<<16)
	d := digest.FromBytes(data)
	first, err := s.NewBlob(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.NewBlob(ctx, d); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	var wrote atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			w, err := s.NewBlob(t.Context(), d)
			if err != nil {
				t.Error(err)
				return
			}
			defer w.Abort()
			if !w.Complete() {
				wrote.Add(1)
				if _, err := w.Write(data[w.Offset():]); err != nil {
					t.Error(err)
				}
			}
			if got, n, err := w.Commit(t.Context()); got != d || n != int64(len(data)) || err != nil {
				t.Error(got, n, err)
			}
		})
	}
	first.Write(data[:100])
	first.Abort() // its successor goes on where it stopped
	wg.Wait()
	if wrote.Load() != 1 {
		t.Errorf("%d writers wrote", wrote.Load())
	}
}

func TestCheckFindsAndRepairs(t *testing.T) {
	s := open(t, t.TempDir(), slow())
	good, _ := s.PutBlob(t.Context(), []byte("good"))
	bad, _ := s.PutBlob(t.Context(), []byte("bad1"))
	gone := addLayer(t, s, key("gone"), 1)
	changed := addLayer(t, s, key("changed"), 1)
	fine := addLayer(t, s, key("fine"), 1)
	update(t, s, func(b *Batch) {
		b.SetLayer(LayerInfo{ID: changed, DiffID: key("content of changed")})
		b.SetLayer(LayerInfo{ID: fine, DiffID: key("content of fine")})
		b.Image("whole", Image{Platforms: []PlatformImage{{Config: good, Layers: []LayerID{fine}}}})
		b.Image("broken", Image{Platforms: []PlatformImage{{Config: bad, Layers: []LayerID{changed}}}})
	})
	os.Chmod(s.blobPath(bad), 0o644)
	os.WriteFile(s.blobPath(bad), []byte("bad2"), 0o644)
	os.RemoveAll(s.layerRoot(gone))
	opt := CheckOptions{Full: true, DiffID: func(_ context.Context, dir string) (graph.Digest, error) {
		b, err := os.ReadFile(filepath.Join(dir, "file"))
		if string(b) == string(key("fine")) {
			return key("content of fine"), err
		}
		return key("something else"), err
	}}
	if p, err := s.Check(t.Context(), CheckOptions{}); err != nil || len(p) != 2 { // the layer and its result
		t.Errorf("%+v, %v", p, err)
	}
	opt.Repair = true
	p, err := s.Check(t.Context(), opt)
	kinds := map[string]int{}
	for _, x := range p {
		kinds[x.Kind]++
		if !x.Repaired || x.What == "" {
			t.Errorf("%+v", x)
		}
	}
	if err != nil || kinds["layer"] != 2 || kinds["result"] != 2 || kinds["blob"] != 1 || kinds["image"] != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := s.Check(t.Context(), opt); err != nil || len(p) != 0 {
		t.Errorf("after repair: %+v, %v", p, err)
	}
	if !has(s, "fine") || has(s, "changed") || has(s, "gone") {
		t.Error("the wrong results are left")
	}
	if _, err := s.Image("whole"); err != nil {
		t.Error(err)
	}
	if _, ok := s.HasBlob(bad); ok {
		t.Error("the bad blob is still served")
	}
	if again, err := s.PutBlob(t.Context(), []byte("bad1")); err != nil || again != bad {
		t.Error(err)
	}
}

func TestCacheMounts(t *testing.T) {
	s := open(t, t.TempDir(), slow())
	made := 0
	get := func(sharing graph.Sharing) (string, func()) {
		t.Helper()
		dir, release, err := s.CacheMount(t.Context(), "go-mod", sharing, func(dir string) error {
			made++
			return os.WriteFile(filepath.Join(dir, "seed"), nil, 0o644)
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "seed")); err != nil {
			t.Fatal(err)
		}
		return dir, release
	}
	a, releaseA := get(graph.SharingShared)
	b, releaseB := get("")
	if a != b || made != 1 {
		t.Errorf("shared: %s and %s, made %d", a, b, made)
	}
	c, releaseC := get(graph.SharingPrivate)
	d, releaseD := get(graph.SharingPrivate)
	if c == a || d == a || c == d || made != 3 {
		t.Errorf("private: %s, %s, %s", a, c, d)
	}
	releaseC()
	releaseC()
	if e, release := get(graph.SharingPrivate); e != c || made != 3 {
		t.Errorf("an idle copy was not used: %s", e)
	} else {
		release()
	}
	releaseD()

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	_, _, err := s.CacheMount(ctx, "go-mod", graph.SharingLocked, nil, nil)
	wantKind(t, err, diag.Canceled)
	got := make(chan string)
	go func() {
		dir, release, err := s.CacheMount(context.WithoutCancel(ctx), "go-mod", graph.SharingLocked, nil, nil)
		if err == nil {
			release()
		}
		got <- dir
	}()
	releaseA()
	releaseB()
	if dir := <-got; dir != a {
		t.Errorf("locked: %s", dir)
	}
	_, _, err = s.CacheMount(t.Context(), "x", "odd", nil, nil)
	wantKind(t, err, diag.Invalid)
	boom := errors.New("boom")
	if _, _, err := s.CacheMount(t.Context(), "y", graph.SharingLocked, func(string) error { return boom }, nil); !errors.Is(err, boom) {
		t.Error(err)
	}
	if _, release, err := s.CacheMount(t.Context(), "y", graph.SharingLocked, nil, nil); err != nil {
		t.Error(err) // the failure left no lock
	} else {
		release()
	}

	os.WriteFile(filepath.Join(a, "big"), make([]byte, 1<<16), 0o644)
	_, release := get(graph.SharingShared)
	release()
	us, err := s.Usage(t.Context())
	if err != nil || len(us) != 4 {
		t.Fatalf("%+v, %v", us, err)
	}
	for _, u := range us {
		if u.ID == filepath.Base(a) && (u.Size < 1<<16 || u.Label != "go-mod" || u.InUse || u.LastUsed.IsZero()) {
			t.Errorf("%+v", u)
		}
	}
	if _, err := s.GC(t.Context(), Policy{All: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(a); !os.IsNotExist(err) {
		t.Error("a cache mount is left")
	}
	if _, release := get(graph.SharingShared); made != 4 {
		t.Error("it was not made again")
	} else {
		release()
	}
}
