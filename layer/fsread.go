package layer

import (
	"bytes"
	"io"
	"slices"
	"time"

	"github.com/strata-build/strata/diag"
)

// Lookup returns the entry at a path, of which parents that are symlinks are followed and the last name is not. A
// directory that is only implied has root's 0755. The entry of a file with several names may have another one's path.
func (f *FS) Lookup(p string) (*Entry, bool) {
	p, err := f.Canonical(p)
	if err != nil {
		return nil, false
	}
	n := f.node(p)
	if n == nil {
		return nil, false
	}
	if n.e == nil {
		return implied(p), true
	}
	return n.e, true
}

// implied is a directory without an entry: what a runtime makes of it.
func implied(p string) *Entry {
	return &Entry{Path: p, Type: Dir, Mode: 0o755, ModTime: time.Unix(0, 0)}
}

// ReadDir returns the sorted names in a directory, through symlinks; nil if there is none.
func (f *FS) ReadDir(p string) []string {
	d, err := f.dir(p, false)
	if d == nil || err != nil {
		return nil
	}
	var names []string
	for name, kid := range d.kids {
		if !kid.white {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// ReadFile returns the content of a file of at most limit bytes, through symlinks. A missing file is diag.NotFound.
func (f *FS) ReadFile(p string, limit int64) ([]byte, error) {
	real, err := f.Resolve(p)
	if err != nil {
		return nil, err
	}
	n := f.node(real)
	if n == nil || n.e == nil || n.e.Type != File {
		return nil, diag.Errorf(diag.NotFound, "there is no file %s", p)
	}
	if n.e.Size > limit {
		return nil, diag.Errorf(diag.Exhausted, "%s has %d bytes, the limit is %d", p, n.e.Size, limit)
	}
	if n.e.Size == 0 {
		return nil, nil
	}
	r, err := n.e.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, n.e.Size))
}

// SameContent compares what two files hold.
func SameContent(a, b *Entry) (same bool, err error) {
	if a.Size != b.Size || a.Size == 0 {
		return a.Size == b.Size, nil
	}
	ra, err := a.Open()
	if err != nil {
		return false, err
	}
	defer ra.Close()
	rb, err := b.Open()
	if err != nil {
		return false, err
	}
	defer rb.Close()
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for left := a.Size; left > 0; {
		n := min(left, int64(len(x)))
		if _, err := io.ReadFull(ra, x[:n]); err != nil {
			return false, diag.Errorf(diag.KindOf(err), "read %q: %w", a.Path, err)
		}
		if _, err := io.ReadFull(rb, y[:n]); err != nil {
			return false, diag.Errorf(diag.KindOf(err), "read %q: %w", b.Path, err)
		}
		if !bytes.Equal(x[:n], y[:n]) {
			return false, nil
		}
		left -= n
	}
	return true, nil
}
