package store

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/internal/faultdisk"
)

// The disk loses a part of the database. What it said is written to a new one.
func TestDiskErrorOfTheDatabase(t *testing.T) {
	d := faultdisk.New(t, 64<<20, "ext4")
	root := filepath.Join(d.Dir, "root")
	s := open(t, root, slow())
	for round := range 4 {
		for i := range 200 {
			addLayer(t, s, key("%d %d", round, i), 1)
		}
		d.FailWritesOf(bucketPage, 1)
		err := s.flush()
		for n := 0; err != nil && n < 10; n++ {
			_ = s.rebuilt(t.Context())
			err = s.flush()
		}
		if err != nil {
			t.Fatal(err)
		}
		d.FailWrites(0)
		d.DropCaches()
	}
	if d.Failed() < 4 {
		t.Fatalf("only %d writes failed", d.Failed())
	}
	if p, err := s.Check(t.Context(), CheckOptions{Full: true}); err != nil || len(p) > 0 {
		t.Errorf("%v, %v", p, err)
	}
	closeStore(t, s)
	d.DropCaches()
	s = open(t, root, slow())
	for i := range 200 {
		for round := range 4 {
			r, err := s.Result(key("%d %d", round, i))
			if err != nil {
				continue // dropped: a failed sync
			}
			if b, err := os.ReadFile(filepath.Join(s.LayerDir(r.Outputs[0][0]), "file")); err != nil || graph.Digest(b) != key("%d %d", round, i) {
				t.Errorf("%d %d: %q, %v", round, i, b, err)
			}
		}
	}
	closeStore(t, s)
}

// bucketPage is in the pages of the database that hold records of results.
const bucketPage = "rsha256:"

// The disk loses one of the files that were written last.
func TestDiskErrorOfOneFile(t *testing.T) {
	for _, lost := range []string{string(key("during 2")), strconv.Itoa(os.Getpid()) + " serves"} {
		t.Run(lost, func(t *testing.T) { testDiskError(t, lost) })
	}
}

func testDiskError(t *testing.T, lost string) {
	d := faultdisk.New(t, 64<<20, "ext4")
	root := filepath.Join(d.Dir, "root")
	opt := slow()
	opt.Serves = true
	s := open(t, root, opt)
	for i := range 5 {
		addLayer(t, s, key("before %d", i), 1)
	}
	if lost[0] == 's' { // else the lock has still to be written
		if err := s.flush(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		addLayer(t, s, key("during %d", i), 1)
	}
	d.FailWritesOf(lost, 1)
	err := s.flush()
	for n := 0; err != nil && n < 5; n++ {
		err = s.flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		addLayer(t, s, key("after %d", i), 1)
	}
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	d.DropCaches()
	b, err := os.ReadFile(s.path("lock"))
	if want := strconv.Itoa(os.Getpid()) + " serves\n"; string(b) != want || d.Failed() != 1 {
		t.Errorf("the lock says %q, %v; %d writes failed", b, err, d.Failed())
	}
	for i := range 5 {
		for _, when := range []string{"before", "during", "after"} {
			r, err := s.Result(key("%s %d", when, i))
			if err != nil {
				if when == "after" {
					t.Errorf("%s %d: %v", when, i, err)
				}
				continue
			}
			if b, err := os.ReadFile(filepath.Join(s.LayerDir(r.Outputs[0][0]), "file")); err != nil || graph.Digest(b) != key("%s %d", when, i) {
				t.Errorf("%s %d: %q, %v", when, i, b, err)
			}
		}
	}
}
