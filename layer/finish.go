package layer

import (
	"context"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// Finish completes a layer directory that Apply made, once the layers below are known: lowerDirs, layer directories that
// are complete themselves, bottom first; none for the bottom layer. Implied directories get the owner, mode, attributes
// and time that the layers below give them; hard links to files below are made, with a copy of the file; what was
// unpacked into a directory that is a symlink below goes where the link leads, within the root; an opaque root becomes
// whiteouts, since overlayfs does not look at the mark there. If it fails, dir must be thrown away.
func Finish(ctx context.Context, dir string, applied *Applied, lowerDirs []string) error {
	t, err := openTarget(dir)
	if err != nil {
		return err
	}
	f := &finisher{ctx: ctx, t: t, lower: lowerDirs, implied: map[string]struct{}{}, links: slices.Clone(applied.LowerLinks)}
	for _, p := range applied.ImpliedDirs {
		f.implied[p] = struct{}{}
	}
	t.made = func(p string) error {
		f.implied[p] = struct{}{}
		return nil
	}
	err = f.run(applied.OpaqueRoot)
	if cerr := t.close(); err == nil {
		err = cerr
	}
	return err
}

type finisher struct {
	ctx     context.Context
	t       *target
	lower   lower
	implied map[string]struct{}
	links   []Link
	moves   int
}

// maxMoves bounds the directories of a layer that are symlinks below; images have a handful (/bin, /lib, /sbin).
const maxMoves = 1000

func (f *finisher) run(opaqueRoot bool) error {
	if err := f.redirect(); err != nil {
		return err
	}
	if err := f.makeLinks(); err != nil {
		return err
	}
	for _, p := range slices.Sorted(maps.Keys(f.implied)) {
		if err := f.ctx.Err(); err != nil {
			return context.Cause(f.ctx)
		}
		if err := f.inherit(p); err != nil {
			return err
		}
	}
	if opaqueRoot {
		return f.hideAll()
	}
	return nil
}

// visible returns what the layers below show at p through this layer's own opaque directories and files.
func (f *finisher) visible(p string) (host string, st unix.Stat_t, ok bool, err error) {
	if len(f.lower) == 0 {
		return "", st, false, nil
	}
	if p != "." {
		dir, _ := split(p)
		if hidden, err := f.t.hidden(dir); hidden || err != nil {
			return "", st, false, err
		}
	}
	host, st, ok = f.lower.lookup(p)
	return host, st, ok, nil
}

// redirect moves what was unpacked into implied directories that are symlinks below. Parents come before children.
func (f *finisher) redirect() error {
	if len(f.lower) == 0 {
		return nil
	}
	todo := slices.Sorted(maps.Keys(f.implied))
	for len(todo) > 0 {
		p := todo[0]
		todo = todo[1:]
		if _, ok := f.implied[p]; !ok || p == "." {
			continue // moved away with its parent
		}
		if err := f.ctx.Err(); err != nil {
			return context.Cause(f.ctx)
		}
		_, st, ok, err := f.visible(p)
		if err != nil {
			return err
		}
		if !ok || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			continue
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			return diag.Errorf(diag.Invalid, "%q: is not a directory in the layers below, but other entries are below it", p)
		}
		to, err := f.resolve(p)
		if err != nil {
			return err
		}
		if f.moves++; f.moves > maxMoves {
			return diag.Errorf(diag.Exhausted, "more than %d directories of the layer are symlinks in the layers below", maxMoves)
		}
		if err := f.move(p, to); err != nil {
			return err
		}
		todo = slices.Sorted(maps.Keys(f.implied))
	}
	return nil
}

// resolve follows p in the stack: this layer over the ones below, where an implied directory is what the layers below
// say. The result has no symlinks in it; what does not exist is taken by its name.
func (f *finisher) resolve(p string) (string, error) {
	at := "."
	todo := strings.Split(p, "/")
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at, _ = split(at)
			continue
		}
		next := join(at, name)
		if len(next) > maxPath {
			return "", diag.Errorf(diag.Invalid, "%q: leads to a path of more than %d bytes", p, maxPath)
		}
		link, err := f.linkAt(next)
		if err != nil {
			return "", err
		}
		if link == "" {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", diag.Errorf(diag.Invalid, "%q: leads through more than %d symlinks", p, maxLinks)
		}
		if link[0] == '/' {
			at = "."
		}
		todo = append(strings.Split(link, "/"), todo...)
	}
	return at, nil
}

// linkAt returns the target of the symlink that the stack has at p, "" if it is none.
func (f *finisher) linkAt(p string) (string, error) {
	dir, base := split(p)
	_, implied := f.implied[p]
	d, err := f.t.dir(dir)
	if err == nil && !implied {
		var st unix.Stat_t
		err = unix.Fstatat(d.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil {
			if st.Mode&unix.S_IFMT == unix.S_IFLNK {
				return readlink(d.fd, base, p)
			}
			return "", nil
		}
	}
	if err != nil && err != unix.ENOENT && err != unix.ENOTDIR && err != unix.ELOOP {
		return "", sysError("stat", p, err)
	}
	host, st, ok, err := f.visible(p)
	if err != nil || !ok || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", err
	}
	return readlink(unix.AT_FDCWD, host, p)
}

// move merges the directory from into the directory to, and makes to if need be.
func (f *finisher) move(from, to string) error {
	dst, err := f.t.parent(to)
	if err != nil {
		return err
	}
	if dst.path != to {
		return diag.Errorf(diag.Invalid, "%q: a symlink below leads to %q, which is a symlink of this layer", from, to)
	}
	delete(f.implied, from)
	if err := f.merge(from, to); err != nil {
		return err
	}
	dir, base := split(from)
	d, err := f.t.parent(dir)
	if err != nil {
		return err
	}
	f.t.forget(from)
	if err := unix.Unlinkat(d.fd, base, unix.AT_REMOVEDIR); err != nil {
		return sysError("remove", from, err)
	}
	return nil
}

// merge moves the children of one directory of this layer into another one. Where both have something, directories are
// merged, whiteouts give way, and otherwise the moved one wins.
func (f *finisher) merge(from, to string) error {
	src, err := f.t.dir(from)
	if err != nil {
		return sysError("open", from, err)
	}
	fd, err := unix.Openat(src.fd, ".", openDirMode, 0)
	if err != nil {
		return sysError("open", from, err)
	}
	names, err := readNames(fd)
	wasOpaque := isOpaque(fd)
	unix.Close(fd)
	if err != nil {
		return sysError("list", from, err)
	}
	dst, err := f.t.parent(to)
	if err != nil {
		return err
	}
	if wasOpaque {
		if err := setOpaque(dst); err != nil {
			return err
		}
	}
	slices.Sort(names)
	for _, n := range names {
		if err := f.moveChild(from, to, n); err != nil {
			return err
		}
	}
	return nil
}

func (f *finisher) moveChild(from, to, name string) error {
	// Deeper merges may have closed them.
	src, err := f.t.dir(from)
	if err != nil {
		return sysError("open", from, err)
	}
	dst, err := f.t.parent(to)
	if err != nil {
		return err
	}
	oldPath, newPath := join(from, name), join(to, name)
	if within(from, newPath) {
		return diag.Errorf(diag.Invalid, "%q: is reached through a symlink in the layers below that it would replace", oldPath)
	}
	var was, is unix.Stat_t
	if err := unix.Fstatat(src.fd, name, &is, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return sysError("stat", oldPath, err)
	}
	err = unix.Fstatat(dst.fd, name, &was, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil && err != unix.ENOENT {
		return sysError("stat", newPath, err)
	}
	taken := err == nil
	isDir, wasDir := is.Mode&unix.S_IFMT == unix.S_IFDIR, taken && was.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case isDir && wasDir:
		return f.mergeChild(src, oldPath, newPath)
	case taken && isWhiteout(&is):
		if wasDir {
			sub, err := f.t.child(dst, name)
			if err != nil {
				return sysError("open", newPath, err)
			}
			if err := setOpaque(sub); err != nil {
				return err
			}
		}
		return removeAll(src.fd, name, oldPath, func(string) {})
	case taken && was.Ino == is.Ino && was.Dev == is.Dev: // two names of one file: rename would do nothing
		return removeAll(src.fd, name, oldPath, func(string) {})
	case taken:
		f.t.forget(newPath)
		if err := removeAll(dst.fd, name, newPath, f.gone); err != nil {
			return err
		}
	}
	if isDir {
		f.t.forget(oldPath)
	}
	if err := unix.Renameat(src.fd, name, dst.fd, name); err != nil {
		return sysError("move", oldPath, err)
	}
	f.renamed(oldPath, newPath)
	if !isDir || !taken {
		return nil
	}
	sub, err := f.t.child(dst, name)
	if err != nil {
		return sysError("open", newPath, err)
	}
	return setOpaque(sub)
}

// mergeChild merges two directories of this layer; an entry's attributes win over those of an implied directory.
func (f *finisher) mergeChild(src *openDir, from, to string) error {
	_, fromImplied := f.implied[from]
	_, toImplied := f.implied[to]
	if toImplied && !fromImplied {
		sub, err := f.t.dir(from)
		if err != nil {
			return sysError("open", from, err)
		}
		dst, err := f.t.dir(to)
		if err != nil {
			return sysError("open", to, err)
		}
		if err := copyAttributes(sub.fd, dst.fd, to); err != nil {
			return err
		}
		dst.mtime, dst.touched, dst.setgid = sub.mtime, true, sub.setgid
		delete(f.implied, to)
	}
	delete(f.implied, from)
	if err := f.merge(from, to); err != nil {
		return err
	}
	dir, base := split(from)
	src, err := f.t.dir(dir)
	if err != nil {
		return sysError("open", dir, err)
	}
	f.t.forget(from)
	if err := unix.Unlinkat(src.fd, base, unix.AT_REMOVEDIR); err != nil {
		return sysError("remove", from, err)
	}
	return nil
}

func (f *finisher) gone(p string) {
	delete(f.implied, p)
	f.links = slices.DeleteFunc(f.links, func(l Link) bool { return l.Path == p })
}

// renamed carries what is known of a path, and below it, over to its new name.
func (f *finisher) renamed(from, to string) {
	for p := range maps.Clone(f.implied) {
		if within(p, from) {
			delete(f.implied, p)
			f.implied[to+p[len(from):]] = struct{}{}
		}
	}
	for i, l := range f.links {
		if within(l.Path, from) {
			f.links[i].Path = to + l.Path[len(from):]
		}
	}
}

// hideAll makes whiteouts of all that the layers below have in the root and this one has not.
func (f *finisher) hideAll() error {
	root := f.t.root
	names, err := f.lower.names()
	if err != nil {
		return err
	}
	for _, n := range names {
		err := unix.Mknodat(root.fd, n, unix.S_IFCHR, 0)
		if err == nil {
			root.touched = true
			continue
		}
		if err != unix.EEXIST {
			return sysError("make the whiteout of", n, err)
		}
		d, err := f.t.child(root, n)
		if err == unix.ENOTDIR || err == unix.ELOOP {
			continue
		}
		if err != nil {
			return sysError("open", n, err)
		}
		if err := setOpaque(d); err != nil {
			return err
		}
	}
	for _, name := range []string{xattrOpaque, xattrUserOpaque} {
		if err := unix.Fremovexattr(root.fd, name); err != nil && err != unix.ENODATA && err != unix.EOPNOTSUPP && err != unix.EPERM {
			return sysError("remove xattr "+name+" of", ".", err)
		}
	}
	return nil
}
