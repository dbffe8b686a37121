package cache

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// FuzzConfig reads the configuration of a cache that somebody else wrote.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		`{"layers":[{"blob":"sha256:aa","parent":-1}],"records":[{"digest":"sha256:bb","inputs":[[{"link":0}]],"layers":[{"layer":0}]}]}`,
		`{"records":[{"inputs":[[{"link":-1}]]}]}`, `{"layers":[{"parent":0}],"records":[{"chains":[{"layers":[0,0,9]}]}]}`, `null`, `{"records":[null]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decode(data)
		if err != nil {
			if k := diag.KindOf(err); k != diag.Invalid && k != diag.Exhausted {
				t.Fatalf("%s: %v", k, err)
			}
			return
		}
		known := map[graph.Digest]Layer{}
		for _, l := range c.Layers {
			known[l.Blob] = Layer{}
		}
		x, err := parse(c, known)
		if err != nil {
			return
		}
		all := &index{byDigest: map[graph.Digest][]int{}}
		all.join(x)
		all.join(x)
		for _, r := range all.records {
			for _, in := range r.inputs {
				for _, l := range in {
					if l.Link < 0 || l.Link >= len(all.records) {
						t.Fatalf("a link to record %d of %d", l.Link, len(all.records))
					}
				}
			}
		}
	})
}

// A directory's index.json of 5 GiB, most of which is a hole.
func TestIndexOfGibibytes(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(5<<30), f.Close()); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := (layout{dir: dir}).index(); diag.KindOf(err) != diag.Exhausted {
		t.Errorf("%v", err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<30 {
		t.Errorf("%d bytes were allocated", n)
	}
}
