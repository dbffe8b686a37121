package tree

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Changes is what differs between two trees: what has to be written over the lower one to make it look like the upper
// one. It must be closed.
type Changes struct {
	Gone []string // paths without a leading slash that only the lower tree has, each without what is below it
	N    int      // entries of a layer that holds the changes, the root not counted

	top   Pick // the upper's root with what is new or changed, and the directories on the way there and to what is gone
	lower *Files
	upper *Files
}

// Diff compares two trees. Like BuildKit (and continuity's fs.Changes, whose rules these are) it takes files for equal only
// if their modification times are, too, and never looks at the times of directories or at the root directory itself.
// Unlike BuildKit it compares the content of files with equal times always, and all extended attributes.
//
// Directories that both trees take from the same layers are not looked into.
func Diff(ctx context.Context, lower, upper *Stack) (*Changes, error) {
	c := &Changes{lower: newFiles(lower.dirs(), true), upper: newFiles(upper.dirs(), true)}
	lo, err := c.lower.rootEntry()
	if err != nil {
		c.Close()
		return nil, err
	}
	up, err := c.upper.rootEntry()
	if err != nil {
		c.Close()
		return nil, err
	}
	c.top = Pick{Entry: up}
	if err := c.dir(ctx, lo.dir, &c.top); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the use of the changes.
func (c *Changes) Close() {
	c.lower.close()
	c.upper.close()
}

// dir compares a directory of the upper tree with that of the lower one, nil if there is none.
func (c *Changes) dir(ctx context.Context, lo *dir, p *Pick) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	up := p.dir
	if lo != nil && c.sameSources(lo, up) {
		return nil
	}
	if err := c.upper.list(up); err != nil {
		return err
	}
	var below []Entry
	if lo != nil {
		if err := c.lower.list(lo); err != nil {
			return err
		}
		below = lo.kids
	}
	if err := c.look(lo, up); err != nil {
		return err
	}
	for i := range up.kids {
		u := &up.kids[i]
		for len(below) > 0 && below[0].Name < u.Name {
			c.gone(joinRel(up.rel, below[0].Name))
			below = below[1:]
		}
		var l *Entry
		if len(below) > 0 && below[0].Name == u.Name {
			l, below = &below[0], below[1:]
		}
		if err := c.entry(ctx, l, u, p); err != nil {
			return err
		}
	}
	for i := range below {
		c.gone(joinRel(up.rel, below[i].Name))
	}
	return nil
}

func (c *Changes) gone(rel string) {
	c.Gone = append(c.Gone, rel)
	c.N++
}

// look fills the entries of the upper directory, and those of the lower one that have the same names.
func (c *Changes) look(lo, up *dir) error {
	all := make([]*Entry, len(up.kids))
	for i := range up.kids {
		all[i] = &up.kids[i]
	}
	if err := c.upper.look(up, all); err != nil || lo == nil {
		return err
	}
	var both []*Entry
	for i := range lo.kids {
		name := lo.kids[i].Name
		if _, ok := slices.BinarySearchFunc(up.kids, name, func(e Entry, n string) int { return strings.Compare(e.Name, n) }); ok {
			both = append(both, &lo.kids[i])
		}
	}
	return c.lower.look(lo, both)
}

// entry compares one name that the upper tree has; l is nil if the lower one does not.
func (c *Changes) entry(ctx context.Context, l, u *Entry, p *Pick) error {
	same := l != nil
	if same {
		var err error
		if same, err = c.same(ctx, l, u, p.dir.rel); err != nil {
			return err
		}
	}
	kid := Pick{Entry: u}
	if u.IsDir() {
		var lo *dir
		if l != nil {
			lo = l.dir
		}
		gone := len(c.Gone)
		if err := c.dir(ctx, lo, &kid); err != nil {
			return err
		}
		same = same && len(kid.Kids) == 0 && len(c.Gone) == gone
	}
	if !same {
		p.Kids = append(p.Kids, kid)
		c.N++
	}
	return nil
}

// sameSources reports whether two directories are made of the same directories of layers.
func (c *Changes) sameSources(a, b *dir) bool {
	return a.rel == b.rel && slices.EqualFunc(a.srcs, b.srcs, func(x, y int) bool { return c.lower.roots[x].path == c.upper.roots[y].path })
}

// same compares two entries of the same path; of directories, only they themselves.
func (c *Changes) same(ctx context.Context, l, u *Entry, parent string) (bool, error) {
	if l.Dev == u.Dev && l.Ino == u.Ino {
		return true, nil // layers share files by hard links
	}
	if l.Mode != u.Mode || l.UID != u.UID || l.GID != u.GID || l.Rdev != u.Rdev {
		return false, nil
	}
	if !u.IsDir() && (l.Size != u.Size || l.MTime != u.MTime || l.Link != u.Link) {
		return false, nil
	}
	rel := joinRel(parent, u.Name)
	if !sameAttrs(c.lower.host(l, rel), c.upper.host(u, rel)) {
		return false, nil
	}
	if !u.IsRegular() || u.Size == 0 {
		return true, nil
	}
	return c.sameContent(ctx, l, u, rel)
}

func sameAttrs(a, b string) bool {
	x, y := listAttrs(a), listAttrs(b)
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y) && !slices.ContainsFunc(x, func(name string) bool { return !bytes.Equal(attr(a, name), attr(b, name)) })
}

func (c *Changes) sameContent(ctx context.Context, l, u *Entry, rel string) (bool, error) {
	a, err := c.lower.Open(&Match{Rel: rel, Pick: Pick{Entry: l}})
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := c.upper.Open(&Match{Rel: rel, Pick: Pick{Entry: u}})
	if err != nil {
		return false, err
	}
	defer b.Close()
	return sameBytes(ctx, a, b)
}

// sameBytes compares two streams up to the end of both.
func sameBytes(ctx context.Context, a, b io.Reader) (bool, error) {
	x, y := buffers.Get().(*[bufSize]byte), buffers.Get().(*[bufSize]byte)
	defer buffers.Put(x)
	defer buffers.Put(y)
	for {
		if err := context.Cause(ctx); err != nil {
			return false, err
		}
		n, err := io.ReadFull(a, x[:])
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return false, err
		}
		m, err := io.ReadFull(b, y[:])
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return false, err
		}
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		if n < bufSize {
			return true, nil
		}
	}
}

// Write writes the changes into an empty layer that lies on nothing: what is gone as whiteouts, directories never opaque,
// so that the layer means the same on top of any other. Regular files are linked from the layers that have them.
func (c *Changes) Write(ctx context.Context, u *Upper) error {
	if len(c.upper.roots) > 0 {
		var st unix.Stat_t
		from := c.upper.roots[0].path
		if err := unix.Stat(from, &st); err != nil {
			return &os.PathError{Op: "stat", Path: from, Err: err}
		}
		if err := u.copyUpMeta(from, "", &st); err != nil {
			return err
		}
	}
	if err := u.Copy(ctx, c.upper, &Match{Path: "/", Pick: c.top}, "", CopyOptions{Sockets: true}); err != nil {
		return err
	}
	for _, rel := range c.Gone {
		if err := u.whiteout(rel); err != nil {
			return &os.PathError{Op: "remove", Path: "/" + rel, Err: err}
		}
	}
	return nil
}

// whiteout hides what layers below have at a path, whose directory is in the layer. The directory keeps its time.
func (u *Upper) whiteout(rel string) error {
	dir := parentOf(rel)
	if _, ok := u.times[dir]; !ok {
		var st unix.Stat_t
		if err := unix.Fstatat(u.fd, dot(dir), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		u.times[dir] = nanos(st.Mtim)
	}
	u.files.Add(1)
	return unix.Mknodat(u.fd, rel, unix.S_IFCHR, 0)
}

// skeletonDir is the name of a directory beside that of a layer.
const skeletonDir = "skel"

// Support makes the whiteouts of a layer, at the paths gone, work where nothing lies below. overlayfs hides whiteouts only in
// directories that several layers have: in others readdir(3) shows names that do not exist, and rmdir(2) fails. So each
// directory with whiteouts gets an empty twin, in a layer beside the real one that is mounted right below it.
func Support(layerDir string, gone []string) error {
	at := path.Join(path.Dir(layerDir), skeletonDir)
	if _, err := os.Lstat(at); err == nil {
		return nil
	}
	made := ""
	for _, g := range gone {
		dir := parentOf(g)
		if dir == "" {
			continue // the root is always shared
		}
		if made == "" {
			var err error
			if made, err = os.MkdirTemp(path.Dir(at), skeletonDir+"-"); err != nil {
				return err
			}
			defer os.RemoveAll(made)
			if err := os.Chmod(made, 0o755); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(path.Join(made, dir), 0o755); err != nil {
			return err
		}
	}
	if made == "" {
		return nil
	}
	err := os.Rename(made, at)
	if errors.Is(err, os.ErrExist) { // someone else was faster
		return nil
	}
	return err
}

// supported adds the twins of directories with whiteouts to the directories of layers, top first.
func supported(dirs []string) []string {
	out := make([]string, 0, len(dirs))
	for _, d := range dirs {
		out = append(out, d)
		skel := path.Join(path.Dir(d), skeletonDir)
		var st unix.Stat_t
		if unix.Lstat(skel, &st) == nil {
			out = append(out, skel)
		}
	}
	return out
}

// Shape describes the files of one layer, whatever lies below it.
type Shape struct {
	N      int  // entries, whiteouts among them; the root is not counted
	Opaque bool // a directory hides those below it
}

// LayerShape looks through the directory of a layer.
func LayerShape(ctx context.Context, layerDir string) (Shape, error) {
	var s Shape
	var walk func(dir string) error
	walk = func(dir string) error {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		opaque, err := isOpaque(dir)
		if err != nil {
			return err
		}
		s.Opaque = s.Opaque || opaque
		names, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		s.N += len(names)
		for _, n := range names {
			if !n.IsDir() {
				continue
			}
			if err := walk(path.Join(dir, n.Name())); err != nil {
				return err
			}
		}
		return nil
	}
	return s, walk(layerDir)
}
