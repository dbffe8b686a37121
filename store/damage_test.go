package store

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/graph"
)

func TestCutAndDamagedLog(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, slow())
	for i := range 20 {
		update(t, s, func(b *Batch) { b.Memo(key("def %d", i), key("%d", i)) })
	}
	log := s.wal.files[0]
	crash(t, s)
	whole, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	frame := (len(whole) - 90) / 20
	count := func(content []byte) (n int) {
		t.Helper()
		if err := os.WriteFile(log, content, 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, root, slow())
		defer crash(t, s)
		for i := range 20 {
			m, err := s.Memo(key("def %d", i))
			if err != nil {
				wantMiss(t, err)
				continue
			}
			if m != key("%d", i) {
				t.Fatalf("memo %d is %s", i, m)
			}
			n++
		}
		return n
	}
	if n := count(whole); n != 20 {
		t.Errorf("%d of 20 records", n)
	}
	if n := count(whole[:len(whole)-1]); n != 19 {
		t.Errorf("one byte short: %d records", n)
	}
	for range 30 {
		cut := rand.IntN(len(whole))
		if n := count(whole[:cut]); n > cut/frame {
			t.Errorf("cut to %d bytes: %d records", cut, n)
		}
		bad := append([]byte(nil), whole...)
		at := 90 + rand.IntN(len(whole)-90)
		bad[at] ^= byte(1 + rand.IntN(255))
		if n := count(bad); n < 19 {
			t.Errorf("byte %d damaged: %d records", at, n)
		}
	}
}

func TestDamagedRecordIsAMiss(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, slow())
	addLayer(t, s, key("a"), 1)
	addLayer(t, s, key("b"), 1)
	closeStore(t, s)
	d, err := openDatabase(filepath.Join(root, "meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	k := keyOf(kindResult, string(key("a")))
	v, err := d.get(k)
	if err != nil || v == nil {
		t.Fatal(err)
	}
	v[len(v)-1] ^= 1
	if err := d.put(map[string][]byte{k: v}); err != nil {
		t.Fatal(err)
	}
	d.close()

	s = open(t, root, slow())
	_, err = s.Result(key("a"))
	wantMiss(t, err)
	if !strings.Contains(err.Error(), "checksum") {
		t.Errorf("the reason is %q", err)
	}
	if _, err := s.Result(key("b")); err != nil {
		t.Error(err)
	}
	problems, err := s.Check(t.Context(), CheckOptions{Repair: true})
	if err != nil || len(problems) != 1 || problems[0].Kind != "record" || !problems[0].Repaired {
		t.Errorf("%+v, %v", problems, err)
	}
	if problems, err := s.Check(t.Context(), CheckOptions{Full: true}); err != nil || len(problems) != 0 {
		t.Errorf("after repair: %+v, %v", problems, err)
	}
}

// Whatever byte of the database is flipped, the store opens and never returns anything wrong.
func TestFlippedBytesInDatabase(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, slow())
	const n = 120
	ids := make([]LayerID, n)
	for i := range n {
		ids[i] = addLayer(t, s, key("%d", i), 1)
	}
	closeStore(t, s)
	path := filepath.Join(root, "meta.db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Every page's header and some of its elements, and places all over.
	var places []int
	for page := 0; page < len(whole); page += 4096 {
		for range 2 {
			places = append(places, page+rand.IntN(16), page+16+rand.IntN(80))
		}
	}
	for range 40 {
		places = append(places, rand.IntN(len(whole)))
	}
	if testing.Short() {
		places = places[len(places)-40:]
	}
	lost := 0
	for _, at := range places {
		bad := append([]byte(nil), whole...)
		flip := byte(1 + rand.IntN(255))
		bad[at] ^= flip
		logs, _ := filepath.Glob(filepath.Join(root, "wal.*")) // a round that dropped results would drop them from all later ones
		for _, log := range append(logs, path) {
			os.Remove(log)
		}
		for i, id := range ids { // an earlier round may have deleted it as abandoned, or have begun to
			os.RemoveAll(filepath.Dir(s.LayerDir(id)))
			os.MkdirAll(s.LayerDir(id), 0o755)
			os.WriteFile(filepath.Join(s.LayerDir(id), "file"), []byte(key("%d", i)), 0o644)
		}
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(root, slow())
		if err != nil {
			t.Fatalf("byte %d xor %#x: %v", at, flip, err)
		}
		for i := range n {
			r, err := s.Result(key("%d", i))
			if err != nil {
				wantMiss(t, err)
				lost++
				continue
			}
			if b, err := os.ReadFile(filepath.Join(s.LayerDir(r.Outputs[0][0]), "file")); err != nil || graph.Digest(b) != key("%d", i) {
				t.Fatalf("byte %d xor %#x: result %d is wrong: %v", at, flip, i, err)
			}
		}
		crash(t, s)
	}
	mean := float64(lost) / float64(len(places))
	t.Logf("%d flips, %.2f results of %d lost on average", len(places), mean, n)
	if mean > n/10 {
		t.Error("one byte costs too much")
	}
}

func TestDatabaseThatIsNone(t *testing.T) {
	for name, content := range map[string]string{"empty": "", "text": strings.Repeat("not a database ", 5000), "zeros": strings.Repeat("\x00", 65536)} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root, slow())
			d, err := s.PutBlob(t.Context(), []byte("hello"))
			if err != nil {
				t.Fatal(err)
			}
			addLayer(t, s, key("a"), 1)
			closeStore(t, s)
			if err := os.WriteFile(filepath.Join(root, "meta.db"), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			s = open(t, root, slow())
			if _, err := s.OpenBlob(t.Context(), d); err != nil {
				t.Error(err) // kept: its hash is right
			}
			_, err = s.Result(key("a"))
			wantMiss(t, err)
			addLayer(t, s, key("b"), 1)
			closeStore(t, s)
			if bad, _ := filepath.Glob(filepath.Join(root, "meta.db.bad-*")); len(bad) != 1 && name != "empty" {
				t.Errorf("moved aside: %v", bad)
			}
			s = open(t, root, slow())
			if _, err := s.Result(key("b")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRebuildKeepsWhatCanBeRead(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, slow())
	for i := range 50 {
		addLayer(t, s, key("%d", i), 1)
	}
	closeStore(t, s)
	path := filepath.Join(root, "meta.db")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	clear(b[:8192]) // both meta pages
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, root, slow())
	for i := range 50 {
		if _, err := s.Result(key("%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if id := addLayer(t, s, key("new"), 1); id <= 50 {
		t.Errorf("number %d was used again", id)
	}
}

func TestDamageWhileOpen(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, slow())
	for i := range 200 {
		addLayer(t, s, key("%d", i), 1)
	}
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	addLayer(t, s, key("in the log"), 1)
	if err := os.Truncate(filepath.Join(root, "meta.db"), 8192); err != nil {
		t.Fatal(err)
	}
	misses := 0
	for i := range 200 {
		if _, err := s.Result(key("%d", i)); err != nil {
			wantMiss(t, err)
			misses++
		}
	}
	if misses == 0 {
		t.Error("nothing was missed")
	}
	if err := s.rebuilt(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !has(s, "in the log") {
		t.Error("lost what was not in the database")
	}
	addLayer(t, s, key("new"), 1)
	closeStore(t, s)
	s = open(t, root, slow())
	if !has(s, "new") || !has(s, "in the log") {
		t.Error("lost what came later")
	}
}

func TestFailedSyncDropsTheBatch(t *testing.T) {
	for _, fault := range []error{unix.EIO, unix.ENOSYS} {
		t.Run(fault.Error(), func(t *testing.T) {
			root := t.TempDir()
			opt := slow()
			var fail error
			opt.syncfs = func(int) error { return fail }
			s := open(t, root, opt)
			addLayer(t, s, key("before"), 1)
			if err := s.flush(); err != nil {
				t.Fatal(err)
			}
			id := addLayer(t, s, key("during"), 1)
			fail = fault
			if err := s.flush(); !errors.Is(err, fault) {
				t.Fatal(err)
			}
			fail = nil
			_, lerr := s.Layer(id)
			if want := fault != unix.EIO; !has(s, "before") || has(s, "during") != want || (lerr == nil) != want {
				t.Errorf("before %v, during %v, %v", has(s, "before"), has(s, "during"), lerr)
			}
			if again := addLayer(t, s, key("after"), 1); again <= id {
				t.Error("a number was used again")
			}
			closeStore(t, s)
			s = open(t, root, opt)
			if want := fault != unix.EIO; !has(s, "before") || has(s, "during") != want || !has(s, "after") {
				t.Error("not the same after opening it again")
			}
		})
	}
}
