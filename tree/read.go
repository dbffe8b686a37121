package tree

import (
	"context"
	"os"

	"github.com/strata-build/strata/diag"
)

// Stat describes the file at a path; the last component is not followed if it is a symlink. A path that does not exist is
// diag.NotFound.
func (f *Files) Stat(p string) (Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, err := f.find(p, false)
	if err != nil {
		return Entry{}, err
	}
	return *at.e, nil
}

// OpenFile opens a regular file. Symlinks are followed within the tree. What is no regular file is diag.Invalid, and never
// blocks.
func (f *Files) OpenFile(p string) (*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, err := f.find(p, true)
	if err != nil {
		return nil, err
	}
	if !at.e.IsRegular() {
		return nil, diag.Errorf(diag.Invalid, "%q is not a regular file", p)
	}
	return f.Open(&Match{Rel: at.rel, Pick: Pick{Entry: at.e}})
}

// ReadDir lists a directory, sorted by name. Symlinks to it are followed within the tree.
func (f *Files) ReadDir(ctx context.Context, p string) ([]Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, err := f.find(p, true)
	if err != nil {
		return nil, err
	}
	d := at.e.dir
	if d == nil {
		return nil, diag.Errorf(diag.Invalid, "%q is not a directory", p)
	}
	if err := f.list(d); err != nil {
		return nil, err
	}
	kids := make([]*Entry, len(d.kids))
	for i := range d.kids {
		kids[i] = &d.kids[i]
	}
	if err := f.look(d, kids); err != nil {
		return nil, err
	}
	var out []Entry
	for _, k := range kids {
		if !k.gone {
			out = append(out, *k)
		}
	}
	return out, context.Cause(ctx)
}
