package layer

import (
	"archive/tar"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// hardlink links to a file of this layer, or leaves a note for Finish.
func (a *applier) hardlink(p string, h *tar.Header) error {
	to, err := cleanName(h.Linkname)
	if err != nil {
		return err
	}
	if p == "." || to == "." {
		return diag.Errorf(diag.Invalid, "%q: a hard link to %q", h.Name, h.Linkname)
	}
	from, target, err := a.linkTarget(to)
	if err != nil {
		return err
	}
	dir, base := split(p)
	parent, err := a.t.parent(dir)
	if err != nil {
		return err
	}
	p = join(parent.path, base)
	if p == target {
		if from == nil {
			return diag.Errorf(diag.Invalid, "%q: a hard link to itself", h.Name)
		}
		return nil
	}
	if within(target, p) {
		return diag.Errorf(diag.Invalid, "%q: a hard link to %q, which it would replace", h.Name, h.Linkname)
	}
	if lower, ok := a.pending[target]; ok {
		from, target = nil, lower
	}
	if from != nil {
		fromDir, name := split(target)
		if from, err = a.t.dir(fromDir); err != nil { // making the parent may have closed it
			return sysError("open", fromDir, err)
		}
		return a.create(parent, base, "link", func() error { return unix.Linkat(from.fd, name, parent.fd, base, 0) })
	}
	if a.opt.Form != Overlay {
		return diag.Errorf(diag.Invalid, "%q: a hard link to %q, which is not there", h.Name, h.Linkname)
	}
	err = a.create(parent, base, "create", func() error { return unix.Mknodat(parent.fd, base, unix.S_IFREG, 0) })
	if err != nil {
		return err
	}
	a.pending[p] = target
	return a.keep(len(p) + len(target))
}

// linkTarget finds the target of a hard link: its directory in this layer, or nil if it can only be below, and its path
// without symlinks. The target's own last name is not followed: a link to a symlink is a second symlink.
func (a *applier) linkTarget(to string) (*openDir, string, error) {
	dir, base := split(to)
	w := walk{t: a.t}
	if d, err := a.t.dir(dir); err == nil {
		w.at, w.path = d, d.path
	} else if err := w.to(dir); err != nil {
		return nil, "", err
	}
	target := join(w.path, base)
	if !w.missing {
		var st unix.Stat_t
		err := unix.Fstatat(w.at.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case err == unix.ENOENT:
		case err != nil:
			return nil, "", sysError("stat", target, err)
		case isWhiteout(&st):
			return nil, "", diag.Errorf(diag.Invalid, "a hard link to %q, which this layer deletes", target)
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			return nil, "", diag.Errorf(diag.Invalid, "a hard link to the directory %q", target)
		default:
			return w.at, target, nil
		}
	}
	if hidden, err := a.t.hidden(w.path); err != nil {
		return nil, "", err
	} else if hidden {
		return nil, "", diag.Errorf(diag.Invalid, "a hard link to %q, which is not there", target)
	}
	return nil, target, nil
}

// hidden reports whether this layer hides what the layers below have in the directory p, which need not exist here.
func (t *target) hidden(p string) (bool, error) {
	w := walk{t: t}
	w.at, w.path = t.root, "."
	if isOpaque(w.at.fd) {
		return true, nil
	}
	if p == "." {
		return false, nil
	}
	for name := range strings.SplitSeq(p, "/") {
		at, err := t.child(w.at, name)
		switch err {
		case nil:
		case unix.ENOENT:
			return false, nil
		case unix.ENOTDIR, unix.ELOOP:
			return true, nil // a file or a whiteout of this layer stands there
		default:
			return false, sysError("open", join(w.path, name), err)
		}
		w.at, w.path = at, at.path
		if isOpaque(at.fd) {
			return true, nil
		}
	}
	return false, nil
}
