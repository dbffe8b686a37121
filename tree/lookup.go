package tree

import (
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// layers are the directories of a merged tree on this machine, top first. Nothing is remembered: the top one may be
// written meanwhile. The directories themselves are the store's, so a path within one that was found to lead only through
// directories does so until the layer's own writer changes it.
type layers []string

// node is what a path of the merged tree is.
type node struct {
	rel  string // within the tree, without symlinks and without a leading slash
	ok   bool   // it exists; the rest is zero otherwise, but for rel, which says where it would be
	top  int    // index of the layer that shows it
	st   unix.Stat_t
	dirs []string // for a directory: those that make it up on this machine, top first
	in   []int    // for a directory: the index of the layer of each of dirs
}

func (n *node) isDir() bool  { return n.ok && isType(n.st.Mode, unix.S_IFDIR) }
func (n *node) isLink() bool { return n.ok && isType(n.st.Mode, unix.S_IFLNK) }

// root returns the tree's root directory.
func (l layers) root() (node, error) {
	n := node{ok: true}
	for i, dir := range l {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return n, &os.PathError{Op: "stat", Path: dir, Err: err}
		}
		if i == 0 {
			n.st = st
		}
		n.dirs, n.in = append(n.dirs, dir), append(n.in, i)
		if opaque, err := isOpaque(dir); err != nil || opaque {
			return n, err
		}
	}
	if len(l) == 0 {
		n.st.Mode = unix.S_IFDIR | 0o755
	}
	return n, nil
}

// child returns the entry of directory d with that name.
func (l layers) child(d *node, name string) (node, error) {
	n := node{rel: joinRel(d.rel, name)}
	for i, dir := range d.dirs {
		host := dir + "/" + name
		var st unix.Stat_t
		err := unix.Lstat(host, &st)
		if missing(err) {
			continue
		}
		if err != nil {
			return n, &os.PathError{Op: "lstat", Path: "/" + n.rel, Err: err}
		}
		if isWhiteout(st.Mode, uint64(st.Rdev)) {
			break
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if !n.ok {
			n.ok, n.st, n.top = true, st, d.in[i]
		} else if !isDir {
			break
		}
		if !isDir {
			break
		}
		n.dirs, n.in = append(n.dirs, host), append(n.in, d.in[i])
		if opaque, err := isOpaque(host); err != nil || opaque {
			return n, err
		}
	}
	return n, nil
}

// find resolves a path within the tree: symlinks and ".." never leave it. The last component is followed if follow is
// set. A path that does not exist is no error: the rest of it is taken as names, and rel says where it would be.
func (l layers) find(p string, follow bool) (node, error) {
	top, err := l.root()
	if err != nil {
		return node{}, err
	}
	trail := []node{top}
	rest := strings.Split(p, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		at := &trail[len(trail)-1]
		switch name {
		case "", ".":
			continue
		case "..":
			trail = trail[:max(len(trail)-1, 1)]
			continue
		}
		if strings.ContainsRune(name, 0) || len(name) > 255 {
			return node{}, diag.Errorf(diag.Invalid, "%q is not a file name", name)
		}
		kid, err := l.child(at, name)
		if err != nil {
			return node{}, err
		}
		if kid.isLink() && (follow || hasNames(rest)) {
			if links++; links > maxLinks {
				return node{}, diag.Errorf(diag.Invalid, "%q: too many symlinks", p)
			}
			target, err := os.Readlink(l.host(&kid))
			if err != nil {
				return node{}, err
			}
			rest = append(strings.Split(target, "/"), rest...)
			if strings.HasPrefix(target, "/") {
				trail = trail[:1]
			}
			continue
		}
		trail = append(trail, kid)
	}
	return trail[len(trail)-1], nil
}

// host is the path on this machine of an existing node that was looked up by its real path.
func (l layers) host(n *node) string { return path.Join(l[n.top], n.rel) }

// Lookup finds a path of the tree without a mount. Symlinks are resolved within the tree; the last component is followed
// if follow is set. It returns where the file is on this machine (for a directory: in the topmost layer that has it),
// and false if there is none.
func (t *Stack) Lookup(p string, follow bool) (hostPath string, fi os.FileInfo, ok bool) {
	l := layers(t.dirs())
	n, err := l.find(p, follow)
	if err != nil || !n.ok || len(l) == 0 {
		return "", nil, false
	}
	hostPath = l.host(&n)
	fi, err = os.Lstat(hostPath)
	return hostPath, fi, err == nil
}
