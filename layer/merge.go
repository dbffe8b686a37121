package layer

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

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
		return f.mergeChild(oldPath, newPath)
	case taken && isWhiteout(&is):
		if wasDir {
			if err := f.hideChild(dst, name); err != nil {
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
	if err := f.renamed(oldPath, newPath, isDir); err != nil {
		return err
	}
	if !isDir || !taken {
		return nil
	}
	return f.hideChild(dst, name)
}

// hideChild makes the directory name of d opaque.
func (f *finisher) hideChild(d *openDir, name string) error {
	sub, err := f.t.child(d, name)
	if err != nil {
		return sysError("open", join(d.path, name), err)
	}
	return setOpaque(sub)
}

// mergeChild merges two directories of this layer; an entry's attributes win over those of an implied directory.
func (f *finisher) mergeChild(from, to string) error {
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
