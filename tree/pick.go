package tree

import (
	"context"
	"errors"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/graph"
)

// Pick is a selected file: for a directory, with what is selected below it.
type Pick struct {
	*Entry
	Kids   []Pick // sorted by name
	Sum    [32]byte
	Hashed bool // Sum is the sha256 of a regular file's content

	partial bool // selected only if something below it is
	lost    bool // a directory that vanished before it was listed
	parent  *dir // of a match
}

// Match is one path that a graph.Select names.
type Match struct {
	Path string // as named, absolute: a symlink that was followed keeps its own name
	Rel  string // the file's path within the tree, without symlinks and without a leading slash
	Pick
}

// chunk is how many files of one directory a task looks at: enough to be worth a task.
const chunk = 512

// Pick returns what sel selects. With sums, the content of regular files is hashed too. A path that does not exist is
// diag.NotFound; a wildcard may match nothing.
func (f *Files) Pick(ctx context.Context, sel graph.Select, sums bool) ([]Match, error) {
	flt, err := newFilter(sel.Include, sel.Exclude)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	matches, err := f.matches(sel)
	if err != nil {
		return nil, err
	}
	p := &picker{f: f, flt: flt, sums: sums, fresh: map[*dir]bool{}}
	kept := matches[:0]
	for i := range matches {
		m := &matches[i]
		if err := runTasks(ctx, func(t *tasks) error { return p.start(t, &m.Pick) }); err != nil {
			return nil, err
		}
		if prune(&m.Pick) || !m.maybe {
			kept = append(kept, *m)
		}
	}
	p.save()
	if len(kept) == 0 && len(matches) > 0 {
		return nil, leftOut(path.Join("/", sel.Path))
	}
	return kept, f.required(kept, sel)
}

func (f *Files) matches(sel graph.Select) ([]Match, error) {
	if !sel.Wildcard || !graph.HasWildcard(sel.Path) {
		at, err := f.find(sel.Path, sel.Follow)
		if err != nil {
			return nil, err
		}
		return []Match{{Path: path.Join("/", sel.Path), Rel: at.rel, Pick: Pick{Entry: at.e, parent: at.parent}}}, nil
	}
	at, err := f.glob(sel.Path, sel.Follow)
	if err != nil {
		return nil, err
	}
	out := make([]Match, 0, len(at))
	for _, a := range at {
		name := "/" + a.rel
		if sel.Follow && a.e.IsLink() {
			if a, err = f.find(a.rel, true); err != nil {
				return nil, err
			}
		}
		out = append(out, Match{Path: name, Rel: a.rel, Pick: Pick{Entry: a.e, parent: a.parent}})
	}
	return out, nil
}

// prune drops the directories that are there only for what is below them, where there is nothing. It reports whether
// p itself stays.
func prune(p *Pick) bool {
	if p.dir == nil {
		return !p.gone
	}
	kept := p.Kids[:0]
	for i := range p.Kids {
		if k := &p.Kids[i]; prune(k) {
			kept = append(kept, *k)
		}
	}
	clear(p.Kids[len(kept):])
	p.Kids = kept
	return len(p.Kids) > 0 || !p.partial && !p.maybe && !p.gone && !p.lost
}

// required checks that each required pattern matches something. They are paths (or patterns) from the root of the tree,
// or relative to the selected path. The error names the path from the root.
func (f *Files) required(in []Match, sel graph.Select) error {
	for _, r := range sel.Required {
		want := strings.TrimPrefix(path.Clean("/"+r), "/")
		ok := slices.ContainsFunc(in, func(m Match) bool {
			base := strings.TrimPrefix(m.Path, "/")
			under, abs := strings.CutPrefix("/"+want, strings.TrimSuffix("/"+base, "/")+"/")
			return m.has(want) || abs && m.has(under) || want == base
		})
		if !ok {
			return f.missing(sel, want)
		}
	}
	return nil
}

// missing is the error about a required pattern that matches nothing.
func (f *Files) missing(sel graph.Select, want string) error {
	name := path.Join("/", sel.Path)
	if under := strings.TrimSuffix(name, "/") + "/"; strings.HasPrefix("/"+want, under) {
		name = "/" + want
	} else {
		name = path.Join(name, want)
	}
	if graph.HasWildcard(name) {
		return noFile(name, "")
	}
	at, err := f.find(name, false)
	switch {
	case err != nil:
		return err
	case at.rel != strings.TrimPrefix(name, "/"): // patterns do not follow symlinks
		return noFile(name, "")
	}
	return leftOut(name)
}

// leftOut is the error about a path that exists, but was filtered.
func leftOut(name string) error {
	return noFile(name, "").WithHint("it exists, but the ignore file or the filters of the directory leave it out")
}

// has reports whether the pick has a path that the pattern matches.
func (p *Pick) has(pattern string) bool {
	name, rest, more := strings.Cut(pattern, "/")
	for i := range p.Kids {
		k := &p.Kids[i]
		if ok, _ := path.Match(name, k.Name); (ok || name == "**") && (!more || k.has(rest)) {
			return true
		}
	}
	return false
}

// picker walks one selection.
type picker struct {
	f    *Files
	flt  *filter
	sums bool

	mu    sync.Mutex
	fresh map[*dir]bool // directories with files that were hashed now
}

func (p *picker) start(t *tasks, m *Pick) error {
	if m.dir == nil {
		return p.files(t, m.parent, []*Pick{m})
	}
	return p.walk(t, m, "", shown{})
}

// walk selects the children of a directory. rel is its path from the selection's start, up what the selection's
// patterns said about it.
func (p *picker) walk(t *tasks, at *Pick, rel string, up shown) error {
	if err := t.stopped(); err != nil {
		return err
	}
	d := at.dir
	if err := p.f.list(d); err != nil {
		if errors.Is(err, os.ErrNotExist) && !p.f.overlay {
			at.lost = true
			return nil
		}
		return err
	}
	at.Kids = make([]Pick, 0, len(d.kids))
	var below []shown // one for each of Kids
	var m *matcher
	if p.flt != nil {
		m = p.flt.matcher()
		defer m.done()
	}
	for i := range d.kids {
		e := &d.kids[i]
		k, s := Pick{Entry: e}, shown{}
		if m != nil {
			path := joinRel(rel, e.Name)
			keep, said, err := m.match(path, up)
			if err != nil {
				return err
			}
			if !keep && (e.dir == nil || !m.below(path, said)) {
				continue
			}
			k.partial, s = !keep, said
			below = append(below, s)
		}
		at.Kids = append(at.Kids, k)
	}
	for i := range at.Kids {
		if k := &at.Kids[i]; k.dir != nil {
			var s shown
			if m != nil {
				s = below[i]
			}
			t.add(func() error { return p.walk(t, k, joinRel(rel, k.Name), s) })
		}
	}
	return p.chunks(t, d, at.Kids)
}

// chunks looks at the files of a directory, in several tasks if there are many.
func (p *picker) chunks(t *tasks, d *dir, kids []Pick) error {
	for len(kids) > 0 {
		n := min(chunk, len(kids))
		part := make([]*Pick, n)
		for i := range part {
			part[i] = &kids[i]
		}
		if kids = kids[n:]; len(kids) == 0 {
			return p.files(t, d, part)
		}
		t.add(func() error { return p.files(t, d, part) })
	}
	return nil
}

// files looks at entries of one directory and hashes those whose digest is not known.
func (p *picker) files(t *tasks, d *dir, part []*Pick) error {
	if err := t.stopped(); err != nil {
		return err
	}
	entries := make([]*Entry, len(part))
	for i, k := range part {
		entries[i] = k.Entry
	}
	now := time.Now().UnixNano()
	if err := p.f.look(d, entries); err != nil {
		return err
	}
	if !p.sums {
		for _, k := range part { // what is known anyway
			k.Sum, k.Hashed = k.sum, k.hashed
		}
		return nil
	}
	var known []record
	if p.f.index != nil {
		known = p.f.index.dir(d.rel)
	}
	h := hasher{f: p.f, d: d}
	defer h.close()
	hashedNow := false
	for _, k := range part {
		if k.gone || !k.IsRegular() {
			continue
		}
		if !k.hashed && !k.recall(known) {
			hashedNow = true
			k.racy = now-k.CTime < int64(racyWindow)
			if k.Size > bigFile {
				t.add(func() error { return p.big(t, d, k) })
				continue
			}
			if err := t.stopped(); err != nil {
				return err
			}
			if err := h.hash(t, k.Entry); err != nil {
				return err
			}
		}
		k.Sum, k.Hashed = k.sum, k.hashed
	}
	if hashedNow && p.f.index != nil {
		p.mu.Lock()
		p.fresh[d] = true
		p.mu.Unlock()
	}
	return nil
}

func (p *picker) big(t *tasks, d *dir, k *Pick) error {
	h := hasher{f: p.f, d: d}
	defer h.close()
	err := h.hash(t, k.Entry)
	k.Sum, k.Hashed = k.sum, k.hashed
	return err
}

// save hands the new digests to the index.
func (p *picker) save() {
	for d := range p.fresh {
		p.f.index.update(d)
	}
}

// sameFile reports whether a file is still as the picture shows it.
func sameFile(e *Entry, st *unix.Stat_t) bool {
	return e.Ino == st.Ino && e.Size == st.Size && e.MTime == nanos(st.Mtim) && e.CTime == nanos(st.Ctim)
}
