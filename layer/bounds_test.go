package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/strata-build/strata/diag"
)

// A layer of few compressed bytes and a million tiny files: the tar stays below every limit of the stream, its blocks fill the
// disk.
func TestTinyFilesThatFillTheDisk(t *testing.T) {
	m := &maker{}
	for i := range 1000 {
		m.file(fmt.Sprint("f", i), "x")
	}
	unpack := func(before int64, packed func() int64) (*applier, error) {
		a, err := newApplier(t.Context(), bytes.NewReader(m.buf.Bytes()), t.TempDir(), ApplyOptions{Packed: packed})
		if err != nil {
			t.Fatal(err)
		}
		a.disk = before
		err = a.run()
		if cerr := a.t.close(); cerr != nil {
			t.Fatal(cerr)
		}
		return a, err
	}
	const most = 1 << 30
	small := func() int64 { return 4000 }
	a, err := unpack(0, small)
	if err != nil || a.disk != 1000*(blockSize+inodeSize) {
		t.Errorf("a small layer: %v, %d bytes", err, a.disk)
	}
	if a, err = unpack(most-500*(blockSize+inodeSize), small); diag.KindOf(err) != diag.Exhausted || a.out.Entries != 501 {
		t.Errorf("a bomb: %v after %d entries", err, a.out.Entries)
	}
	if _, err = unpack(most, func() int64 { return most / 100 }); err != nil {
		t.Errorf("a large layer: %v", err)
	}
	if _, err = unpack(most, nil); err != nil {
		t.Errorf("what is not compressed: %v", err)
	}
}

// Directories of a layer that lead through symlinks of the layers below: each move looks at every name that is known.
func TestMovesOfManyDirectories(t *testing.T) {
	needRoot(t)
	lower, dir := t.TempDir(), t.TempDir()
	if err := os.Symlink("real", filepath.Join(lower, "link")); err != nil {
		t.Fatal(err)
	}
	m := &maker{}
	const n = 200
	for i := range n {
		m.file(fmt.Sprintf("link/%d/f", i), "")
	}
	applied, err := Apply(t.Context(), bytes.NewReader(m.buf.Bytes()), dir, ApplyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	finish := func(work int) (*finisher, error) {
		to, err := openTarget(dir)
		if err != nil {
			t.Fatal(err)
		}
		f := newFinisher(t.Context(), to, applied, []string{lower})
		f.work = work
		err = f.run(false)
		return f, errors.Join(err, to.close())
	}
	if _, err := finish(maxWork - n*n/2); diag.KindOf(err) != diag.Exhausted {
		t.Errorf("%v", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if applied, err = Apply(t.Context(), bytes.NewReader(m.buf.Bytes()), dir, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	if f, err := finish(0); err != nil || f.work > 3*n*n {
		t.Errorf("%d names were looked at for %d directories: %v", f.work, n, err)
	}
}

// countdown ends its context after some looks at it: it measures work, not time.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// Opaque markers one below the other, and next to each other: what is done for one must not grow with the others.
func TestManyOpaqueWhiteouts(t *testing.T) {
	needRoot(t)
	const n = 2000
	wide := &maker{}
	for i := range n {
		wide.file(fmt.Sprintf("d%d/.wh..wh..opq", i), "")
	}
	twice := &maker{}
	for range n {
		twice.file("d/.wh..wh..opq", "")
	}
	deep := &maker{}
	p := ""
	for i := range 900 {
		p += fmt.Sprint(i%10) + "/"
		deep.file(p+".wh..wh..opq", "")
	}
	for name, m := range map[string]*maker{"wide": wide, "twice": twice, "deep": deep} {
		for _, form := range []Form{Overlay, Remove} {
			// One look for each read of the tar, and none for what lies in the directories.
			ctx := &countdown{Context: t.Context(), left: m.buf.Len()/512 + 100}
			dir := t.TempDir()
			a, err := newApplier(ctx, bytes.NewReader(m.buf.Bytes()), dir, ApplyOptions{Form: form})
			if err != nil {
				t.Fatal(err)
			}
			if err := a.run(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if steps, most := a.t.steps, int64(2*n+900*900); steps > most {
				t.Errorf("%s: %d steps through directories", name, steps)
			}
			if err := a.t.close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}
