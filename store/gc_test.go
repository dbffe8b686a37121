package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

func total(t *testing.T, s *Store) (n int64) {
	t.Helper()
	us, err := s.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range us {
		n += u.Size
	}
	return n
}

func has(s *Store, name string) bool {
	_, err := s.Result(key("%s", name))
	return err == nil
}

func TestCapHolds(t *testing.T) {
	opt := Options{Log: quiet, MaxBytes: 1000, flushDelay: time.Millisecond, overhead: func() int64 { return 0 }}
	s := open(t, t.TempDir(), opt)
	if err := s.count(); err != nil {
		t.Fatal(err)
	}
	const size = 40
	for i := range 200 {
		addLayer(t, s, key("%d", i), size)
		// Between two collections at most the slack of makeRoom and one layer more.
		if n := total(t, s); n > 1000+1000/20+2*size {
			t.Fatalf("after %d layers: %d bytes", i+1, n)
		}
		if i > 0 && !has(s, "0") {
			t.Fatalf("after %d layers: the result that is used all the time is gone", i+1)
		}
	}
	if !has(s, "199") || has(s, "50") {
		t.Error("the wrong results were kept")
	}
	if entries, _ := os.ReadDir(s.path("snapshots")); len(entries) > 30 {
		t.Errorf("%d layers are on the disk", len(entries))
	}
	if p, err := s.Check(t.Context(), CheckOptions{Full: true}); err != nil || len(p) > 0 {
		t.Errorf("%v, %v", p, err)
	}
}

func TestHeldThingsSurviveGC(t *testing.T) {
	s := open(t, t.TempDir(), slow())
	base := addLayer(t, s, key("base"), 10)
	addLayer(t, s, key("held"), 10, base)
	addLayer(t, s, key("loser"), 10, base)
	imageLayer := addLayer(t, s, key("image"), 10)
	config, err := s.PutBlob(t.Context(), []byte("config"))
	if err != nil {
		t.Fatal(err)
	}
	free, _ := s.PutBlob(t.Context(), []byte("free"))
	reading, _ := s.PutBlob(t.Context(), []byte("reading"))
	update(t, s, func(b *Batch) {
		b.Image("app", Image{Platforms: []PlatformImage{{Config: config, Layers: []LayerID{imageLayer}}}})
	})
	blob, err := s.OpenBlob(t.Context(), reading)
	if err != nil {
		t.Fatal(err)
	}
	hold := s.Hold()
	r, err := hold.Result(key("held"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := hold.NewLayer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	draft, err := s.NewLayer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer draft.Discard()
	update(t, s, func(b *Batch) { b.Layer(d, LayerInfo{Size: 5}) })
	dir, release, err := s.CacheMount(t.Context(), "cache", graph.SharingShared, nil, nil)
	if err != nil {
		t.Fatal(err)
	}

	would, err := s.GC(t.Context(), Policy{All: true, DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	freed, err := s.GC(t.Context(), Policy{All: true})
	if err != nil || freed.Bytes != 10+int64(len("free")) || would.Bytes != freed.Bytes || len(would.Items) != len(freed.Items) {
		t.Errorf("freed %+v, would %+v, %v", freed, would, err)
	}
	for _, it := range freed.Items {
		if it.Why == "" {
			t.Errorf("no reason for %+v", it)
		}
	}
	for _, id := range append(r.Outputs[0], d.ID, imageLayer) {
		if _, err := s.Layer(id); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(s.LayerDir(id)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(draft.Dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
	if !has(s, "held") || has(s, "loser") {
		t.Error("the wrong results were kept")
	}
	for d, want := range map[graph.Digest]bool{config: true, reading: true, free: false} {
		if _, ok := s.HasBlob(d); ok != want {
			t.Errorf("blob %s: %v", d, ok)
		}
	}

	blob.Close()
	hold.Release()
	hold.Release()
	release()
	update(t, s, func(b *Batch) { b.DeleteImage("app") })
	if _, err := s.GC(t.Context(), Policy{All: true}); err != nil {
		t.Fatal(err)
	}
	us, err := s.Usage(t.Context())
	if err != nil || len(us) != 0 {
		t.Errorf("left: %+v, %v", us, err)
	}
	left, _ := os.ReadDir(s.path("snapshots"))
	if len(left) != 1 { // the draft
		t.Errorf("%d layers are on the disk", len(left))
	}
}

// The results below one that is used are as young as it is; layers go from the top.
func TestGCTakesStacksDownFromTheTop(t *testing.T) {
	s := open(t, t.TempDir(), slow())
	a := addLayer(t, s, key("a"), 100)
	b := addLayer(t, s, key("b"), 100, a)
	addLayer(t, s, key("c"), 100, a, b)
	addLayer(t, s, key("old"), 100)
	has(s, "c")
	freed, err := s.GC(t.Context(), Policy{MaxBytes: 350})
	if err != nil || freed.Bytes != 100 || has(s, "old") {
		t.Fatalf("%+v, %v", freed, err)
	}
	freed, err = s.GC(t.Context(), Policy{MaxBytes: 250})
	if err != nil || freed.Bytes != 100 || has(s, "c") || !has(s, "b") || !has(s, "a") {
		t.Fatalf("%+v, %v", freed, err)
	}
}

func TestGCPolicies(t *testing.T) {
	s := open(t, t.TempDir(), slow())
	addLayer(t, s, key("a"), 100)
	addLayer(t, s, key("b"), 100)
	if f, err := s.GC(t.Context(), Policy{All: true, KeepDuration: time.Hour}); err != nil || len(f.Items) != 0 {
		t.Errorf("%+v, %v", f, err)
	}
	f, err := s.GC(t.Context(), Policy{All: true, Filter: func(u Usage) bool { return u.Kind == UsageResult && u.ID == string(key("b")) }})
	if err != nil || len(f.Items) != 1 || f.Bytes != 100 || has(s, "b") || !has(s, "a") {
		t.Errorf("%+v, %v", f, err)
	}
	if f, err := s.GC(t.Context(), Policy{}); err != nil || len(f.Items) != 0 { // no cap
		t.Errorf("%+v, %v", f, err)
	}
}

func TestUsageCountsNothingTwice(t *testing.T) {
	s := open(t, t.TempDir(), slow())
	a := addLayer(t, s, key("a"), 1)
	b := addLayer(t, s, key("b"), 10, a)
	addLayer(t, s, key("c"), 100, a, b)
	addLayer(t, s, key("d"), 1000, a)
	update(t, s, func(bt *Batch) { bt.Result(key("same"), Result{Outputs: [][]LayerID{{a, b}, {a}}}) })
	if n := total(t, s); n != 1111 {
		t.Errorf("%d bytes", n)
	}
	us, _ := s.Usage(t.Context())
	i := slices.IndexFunc(us, func(u Usage) bool { return u.ID == string(key("c")) })
	if i < 0 || us[i].Size != 100 || !strings.HasPrefix(us[i].Label, "RUN ") || us[i].Shared {
		t.Errorf("%+v", us)
	}
}

// Under a store that is always too small, uses, updates and collections do not disturb one another.
func TestCollectingWhileBuilding(t *testing.T) {
	s := open(t, t.TempDir(), Options{Log: quiet, MaxBytes: 300, flushDelay: time.Millisecond, overhead: func() int64 { return 0 }})
	errs := make(chan error, 4)
	for w := range 4 {
		go func() {
			for i := range 40 {
				if err := buildOnce(s, w, i); err != nil {
					errs <- fmt.Errorf("worker %d, build %d: %w", w, i, err)
					return
				}
			}
			errs <- nil
		}()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if p, err := s.Check(t.Context(), CheckOptions{}); err != nil || len(p) > 0 {
		t.Errorf("%v, %v", p, err)
	}
}

func buildOnce(s *Store, w, i int) error {
	ctx := s.ctx
	hold := s.Hold()
	defer hold.Release()
	var stack []LayerID
	for step := range 3 {
		k := key("w%d step%d %d", w%2, step, i/(step+1)) // two workers share, lower steps repeat
		r, err := hold.Result(k)
		if err == nil {
			stack = r.Outputs[0]
			for _, id := range stack {
				if _, err := os.Stat(filepath.Join(s.LayerDir(id), "file")); err != nil {
					return err
				}
			}
			continue
		}
		if diag.KindOf(err) != diag.NotFound {
			return err
		}
		d, err := hold.NewLayer(ctx)
		if err != nil {
			return err
		}
		defer d.Discard()
		if err := os.WriteFile(filepath.Join(d.Dir, "file"), nil, 0o644); err != nil {
			return err
		}
		stack = append(slices.Clip(stack), d.ID)
		err = s.Update(ctx, func(b *Batch) error {
			b.Layer(d, LayerInfo{Size: 50})
			b.Result(k, Result{Outputs: [][]LayerID{stack}})
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func TestNearlyFullDiskCollectsThenRefuses(t *testing.T) {
	opt := slow()
	var full atomic.Bool
	opt.statfs = func(st *unix.Statfs_t) {
		st.Blocks, st.Bsize, st.Bavail, st.Files, st.Ffree = 1000, 4096, 500, 1000, 500
		if full.Load() {
			st.Bavail = 1
		}
	}
	s := open(t, t.TempDir(), opt)
	addLayer(t, s, key("a"), 4096*30)
	full.Store(true)
	_, err := s.NewLayer(t.Context())
	wantKind(t, err, diag.Exhausted)
	if has(s, "a") {
		t.Error("nothing was collected first")
	}
	_, err = s.NewBlob(t.Context(), "")
	wantKind(t, err, diag.Exhausted)
}

func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root := t.TempDir()
	if err := unix.Mount("none", root, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("cannot mount: ", err)
	}
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	opt := slow()
	opt.statfs = func(st *unix.Statfs_t) { st.Bavail, st.Ffree = st.Blocks, st.Files } // let it run into the wall
	s := open(t, root, opt)
	addLayer(t, s, key("before"), 1)
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		update(t, s, func(b *Batch) { b.Preimage(key("%d", i), bytes.Repeat([]byte{byte(i)}, 2000)) })
	}
	filler := filepath.Join(root, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(buf)
	}
	f.Close()

	w, err := s.NewBlob(t.Context(), "")
	if err == nil {
		_, err = w.Write(make([]byte, 1<<16))
		w.Abort()
	}
	wantKind(t, err, diag.Exhausted)
	acked := 0
	for err = error(nil); err == nil && acked < 10_000; {
		if err = s.Update(t.Context(), func(b *Batch) error { b.Memo(key("def %d", acked), key("%d", acked)); return nil }); err == nil {
			acked++
		}
	}
	wantKind(t, err, diag.Exhausted)
	var d *diag.Error
	if !errors.As(err, &d) || d.Hint == "" {
		t.Errorf("no hint in %v", err)
	}
	wantKind(t, s.flush(), diag.Exhausted)
	if !has(s, "before") {
		t.Error("the store lost what it had")
	}
	// Collecting needs no room.
	if _, err := s.GC(t.Context(), Policy{All: true, Filter: func(u Usage) bool { return u.Kind == UsageBlob }}); err != nil {
		t.Error(err)
	}

	os.Remove(filler)
	update(t, s, func(b *Batch) { b.Memo(key("after"), key("x")) })
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	s = open(t, root, opt)
	if !has(s, "before") {
		t.Error("lost")
	}
	for i := range 100 {
		if p, err := s.Preimage(key("%d", i)); !bytes.Equal(p, bytes.Repeat([]byte{byte(i)}, 2000)) {
			t.Fatalf("preimage %d: %v", i, err)
		}
	}
	for i := range acked {
		if m, err := s.Memo(key("def %d", i)); m != key("%d", i) {
			t.Fatalf("memo %d of %d: %v", i, acked, err)
		}
	}
	if _, err := s.Memo(key("after")); err != nil {
		t.Error(err)
	}
}

func TestOldMemosAreTrimmed(t *testing.T) {
	s := open(t, t.TempDir(), slow())
	for i := range 10 {
		update(t, s, func(b *Batch) { b.Preimage(key("%d", i), []byte("x")) })
	}
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	old, err := s.oldest(kindPreimage, 7)
	s.mu.Unlock()
	want := []string{keyOf(kindPreimage, string(key("0"))), keyOf(kindPreimage, string(key("1"))), keyOf(kindPreimage, string(key("2")))}
	if err != nil || !slices.Equal(old, want) {
		t.Errorf("%q, %v", old, err)
	}
}
