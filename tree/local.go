package tree

import (
	"context"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
)

// Local is a directory of the client. It is read in place; what is read of it is looked at once, so that all steps of a
// build see the same files.
type Local struct {
	files *Files
	key   string
	err   error // of the patterns, told when the tree is first used
}

var _ Tree = (*Local)(nil)

// NewLocal returns the client's directory as op filters it. index, which may be nil, remembers the files' digests.
func NewLocal(index *Index, d session.Dir, op *graph.Local) *Local {
	f := newFiles([]string{d.Path}, false)
	f.index = index
	l := &Local{files: f, key: d.Key}
	if l.key == "" {
		l.key = d.Path
	}
	include := op.Include
	if len(op.Follow) > 0 {
		targets, err := f.followed(op.Follow)
		if err != nil {
			l.err = err
		}
		include = slices.Concat(include, targets)
		f.close()
		f = newFiles([]string{d.Path}, false) // what was listed was not filtered
		f.index, l.files = index, f
	}
	filter, err := newFilter(include, op.Exclude)
	if err != nil {
		l.err = err
	}
	f.filter = filter
	return l
}

// Key names the directory: it is the same for its later versions.
func (l *Local) Key() string { return l.key }

// Content is documented at Tree.
func (l *Local) Content(ctx context.Context, sel graph.Selector) (graph.Digest, error) {
	if l.err != nil {
		return "", l.err
	}
	return l.files.content(ctx, sel)
}

// Files returns the picture of the directory.
func (l *Local) Files() (*Files, error) { return l.files, l.err }

// Open returns the directory itself; View.Match says what of it is part of the tree.
func (l *Local) Open(context.Context) (*View, error) {
	if l.err != nil {
		return nil, l.err
	}
	dir, err := filepath.EvalSymlinks(l.files.roots[0].path)
	if err != nil {
		return nil, diag.Errorf(diag.NotFound, "the client's directory cannot be read: %w", err)
	}
	return &View{Dir: dir, match: l.files.filter.visible}, nil
}

// Layers is documented at Tree: a client's directory is not in the store.
func (l *Local) Layers() ([]store.LayerID, bool) { return nil, false }

// Release saves what was learned of the files.
func (l *Local) Release() {
	if l.files.index != nil {
		_ = l.files.index.Save() // a cache: without it the next build hashes again
	}
	l.files.close()
}

// followed returns the paths and the targets of the symlinks on the way to them, as patterns to include. A path whose
// last component is a pattern stands for all that it matches. If one of them is the root, everything is included.
func (f *Files) followed(paths []string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := map[string]bool{}
	for _, p := range paths {
		if err := f.followPath(strings.TrimPrefix(path.Clean("/"+p), "/"), seen); err != nil {
			return nil, err
		}
	}
	if seen[""] {
		return nil, nil
	}
	var out []string
	for p := range seen {
		out = append(out, p)
	}
	slices.Sort(out)
	return out, nil
}

func (f *Files) followPath(p string, seen map[string]bool) error {
	parts := strings.Split(p, "/")
	at := ""
	for i, name := range parts {
		rest := strings.Join(parts[i+1:], "/")
		links, err := f.linksAt(at, name)
		if err != nil {
			return err
		}
		at = joinRel(at, name)
		if len(links) == 0 {
			continue
		}
		if seen[at] {
			return nil
		}
		seen[at] = true
		for _, target := range links {
			if err := f.followPath(strings.TrimPrefix(path.Join("/", target, rest), "/"), seen); err != nil {
				return err
			}
		}
		return nil
	}
	seen[at] = true
	return nil
}

// linksAt returns the targets, from the root, of the symlinks that name (or the pattern name) stands for.
func (f *Files) linksAt(dir, name string) ([]string, error) {
	at, err := f.find(dir, false)
	if err != nil || at.e.dir == nil {
		if err != nil && diag.KindOf(err) != diag.NotFound {
			return nil, err
		}
		return nil, nil
	}
	var kids []found
	if graph.HasWildcard(name) {
		err = f.globIn(at, []string{name}, &kids)
	} else if kid, e := f.child(at.e, name); e != nil {
		err = e
	} else if kid != nil {
		kids = []found{{e: kid}}
	}
	var out []string
	for _, k := range kids {
		if !k.e.IsLink() {
			continue
		}
		if path.IsAbs(k.e.Link) {
			out = append(out, path.Clean(k.e.Link))
		} else {
			out = append(out, path.Join("/", at.rel, k.e.Link))
		}
	}
	return out, err
}
