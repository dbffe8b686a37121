package layer

import (
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/strata-build/strata/diag"
)

// FS is what a stack of layers shows: a file system in memory, of which contents stay where they are. Nothing is unpacked.
//
//	fs := layer.NewFS()
//	err := fs.Add(entriesOfBottomLayer)
//	err = fs.Add(entriesOfNextLayer)
//	e, ok := fs.Lookup("etc/passwd")
//	stats, err := layer.WriteEntries(ctx, w, fs.Entries(), layer.TarOptions{AllXattrs: true}) // the stack as one layer
type FS struct {
	root   *node
	keep   bool           // whiteouts stay: the stack goes on top of others
	below  *FS            // these, if they are known
	linked map[*Entry]int // how many more names a file has
}

// node is a place in the tree. Names of one file share its entry, whose own path is then that of one of them.
type node struct {
	e      *Entry // nil: a directory that no layer has an entry of, or a whiteout
	kids   map[string]*node
	white  bool
	opaque bool
}

func (n *node) isDir() bool { return !n.white && (n.e == nil || n.e.Type == Dir) }

// NewFS makes an empty file system.
func NewFS() *FS { return &FS{root: &node{}, linked: map[*Entry]int{}} }

// NewUpper makes a file system for layers that go on top of others. What they delete is remembered: Entries gives one layer
// that does to the layers below what all of them do. Paths that lead through symlinks of the layers below need to know these;
// nil is for layers without such paths.
func NewUpper(below *FS) *FS {
	f := NewFS()
	f.keep, f.below = true, below
	return f
}

// Add puts a layer on top. Whiteouts are about the layers below only, wherever they stand in the layer; of two entries of
// one path the later wins; parents that are symlinks are followed. Impossible layers are diag.Invalid.
func (f *FS) Add(entries []*Entry) error {
	for _, e := range entries {
		m, hidden, err := parseMarker(e.Path)
		if err != nil {
			return err
		}
		if m == opaque || m == whiteout {
			err = f.mark(m, hidden)
		} else if e.Type == Dir { // markers in it are not about where a symlink of that name leads
			if p, cerr := f.Canonical(e.Path); cerr == nil {
				if old := f.node(p); old != nil && !old.isDir() {
					err = f.add(e)
				}
			}
		}
		if err != nil {
			return err
		}
	}
	for _, e := range entries {
		if m, _, _ := parseMarker(e.Path); m == noMarker { // the first loop has seen the error
			if err := f.add(e); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *FS) mark(m marker, p string) error {
	if m == opaque {
		d, err := f.dir(p, true) // a marker implies the directory that it is in, as every entry does
		if d == nil || err != nil {
			return err
		}
		d.kids, d.opaque = nil, true
		return nil
	}
	dir, base := split(p)
	d, err := f.dir(dir, true)
	if d == nil || err != nil {
		return err
	}
	delete(d.kids, base)
	if f.keep {
		d.put(base, &node{white: true})
	}
	return nil
}

func (n *node) put(name string, kid *node) {
	if n.kids == nil {
		n.kids = map[string]*node{}
	}
	n.kids[name] = kid
}

// dir returns the directory at p, through symlinks. A missing one is made if create is set, else nil.
func (f *FS) dir(p string, create bool) (*node, error) {
	real, err := f.Resolve(p)
	if err != nil {
		return nil, err
	}
	at := f.root
	if real == "." {
		return at, nil
	}
	for name := range strings.SplitSeq(real, "/") {
		next := at.kids[name]
		switch {
		case next != nil && next.isDir():
		case !create:
			return nil, nil
		case next == nil:
			next = &node{}
			at.put(name, next)
		case next.white:
			next = &node{opaque: true}
			at.put(name, next)
		default:
			return nil, diag.Errorf(diag.Invalid, "%q: is not a directory, but other entries are below it", real)
		}
		at = next
	}
	return at, nil
}

// Resolve follows the symlinks in p, the last name included, within the root. What does not exist is taken by its name.
func (f *FS) Resolve(p string) (string, error) {
	todo := strings.Split(p, "/")
	var path []string
	nodes := []*node{f.root}
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if len(path) > 0 {
				path, nodes = path[:len(path)-1], nodes[:len(nodes)-1]
			}
			continue
		}
		var next *node
		if at := nodes[len(nodes)-1]; at != nil {
			next = at.kids[name]
		}
		if next == nil && f.below != nil && !hides(nodes) {
			if n := f.below.node(strings.Join(append(path[:len(path):len(path)], name), "/")); n != nil && n.e != nil && n.e.Type == Symlink {
				next = n
			}
		}
		if next != nil && next.e != nil && next.e.Type == Symlink {
			if links++; links > maxLinks {
				return "", diag.Errorf(diag.Invalid, "%q: leads through more than %d symlinks", p, maxLinks)
			}
			if strings.HasPrefix(next.e.Link, "/") {
				path, nodes = nil, nodes[:1]
			}
			todo = append(strings.Split(next.e.Link, "/"), todo...)
			continue
		}
		path, nodes = append(path, name), append(nodes, next)
	}
	if len(path) == 0 {
		return ".", nil
	}
	return strings.Join(path, "/"), nil
}

// hides reports whether a directory of a path, each nil if it is not there, hides what is below the stack.
func hides(nodes []*node) bool {
	return slices.ContainsFunc(nodes, func(n *node) bool { return n != nil && (n.opaque || !n.isDir()) })
}

// Canonical is Resolve for all of p but its last name: where the entry of that name really is.
func (f *FS) Canonical(p string) (string, error) {
	dir, base := split(p)
	dir, err := f.Resolve(dir)
	return join(dir, base), err
}

func (f *FS) add(e *Entry) error {
	if e.Path == "." {
		f.root.e = e
		return nil
	}
	dir, base := split(e.Path)
	d, err := f.dir(dir, true)
	if err != nil {
		return err
	}
	old := d.kids[base]
	if e.Type == Dir {
		switch {
		case old == nil:
			d.put(base, &node{e: e})
		case old.isDir():
			old.e = e
		default:
			d.put(base, &node{e: e, opaque: true})
		}
		return nil
	}
	if e.Type == HardLink {
		to, err := f.Canonical(e.Link)
		if err != nil {
			return err
		}
		target := f.node(to)
		switch {
		case target == nil && f.keep:
			if target = f.lower(to); target == nil {
				d.put(base, &node{e: e}) // a file of the layers below, whatever that is
				return nil
			}
		case target == nil || target.e == nil || target.e.Type == Dir:
			return diag.Errorf(diag.Invalid, "%q: a hard link to %q, which is no file", e.Path, e.Link)
		case target == old:
			return nil
		}
		f.linked[target.e]++
		e = target.e
	}
	d.put(base, &node{e: e})
	return nil
}

// lower returns the file that the layers below show at a path without symlinks.
func (f *FS) lower(p string) *node {
	if f.below == nil {
		return nil
	}
	at := f.root
	for name := range strings.SplitSeq(p, "/") {
		if at == nil {
			break
		}
		if at.opaque || !at.isDir() {
			return nil
		}
		at = at.kids[name]
	}
	return f.below.node(p)
}

// node returns what is at a path without symlinks, nil if there is nothing.
func (f *FS) node(p string) *node {
	if p == "." {
		return f.root
	}
	at := f.root
	for name := range strings.SplitSeq(p, "/") {
		if at = at.kids[name]; at == nil || at.white {
			return nil
		}
	}
	return at
}

// Entries yields the whole file system in the order of tar profile 1, the root itself not included; the first name of a
// file is the file, others are hard links to it. A partial file system gives whiteouts too, and no entries of directories
// that are only implied: they look like those below.
func (f *FS) Entries() iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		first := map[*Entry]string{}
		if f.keep && f.root.opaque && !yield(markerEntry(opaqueMarker), nil) {
			return
		}
		f.walk(f.root, ".", first, func(e *Entry) bool { return yield(e, nil) })
	}
}

func (f *FS) walk(d *node, p string, first map[*Entry]string, yield func(*Entry) bool) bool {
	type item struct{ name, as string }
	items := make([]item, 0, len(d.kids))
	for name, kid := range d.kids {
		as := name
		if kid.white {
			as = whiteoutPrefix + name
		}
		items = append(items, item{name, as})
	}
	slices.SortFunc(items, func(a, b item) int { return strings.Compare(a.as, b.as) })
	for _, it := range items {
		kid, at := d.kids[it.name], join(p, it.as)
		if kid.white {
			if !yield(markerEntry(at)) {
				return false
			}
			continue
		}
		if e := f.named(kid, at, first); e != nil && !yield(e) {
			return false
		}
		if !kid.isDir() {
			continue
		}
		if f.keep && kid.opaque && !yield(markerEntry(at+"/"+opaqueMarker)) {
			return false
		}
		if !f.walk(kid, at, first, yield) {
			return false
		}
	}
	return true
}

// named returns the entry of a node as its path's: a copy where it has another one's.
func (f *FS) named(n *node, p string, first map[*Entry]string) *Entry {
	e := n.e
	if e == nil {
		if f.keep && !n.opaque {
			return nil
		}
		return implied(p)
	}
	if f.linked[e] > 0 && e.Type == File {
		if to, ok := first[e]; ok {
			link := *e
			link.Path, link.Type, link.Link, link.Size, link.Open, link.Xattrs = p, HardLink, to, 0, nil, nil
			return &link
		}
		first[e] = p
	}
	if e.Path == p {
		return e
	}
	c := *e
	c.Path, c.Xattrs = p, maps.Clone(e.Xattrs)
	return &c
}
