package tree

import (
	"context"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// Written counts what a draft holds.
type Written struct {
	Entries int64 // its root included
	Bytes   int64 // disk space of its regular files
}

// DropUnchanged removes from a draft, which was written through a mount on top of t, what does not differ from what lies below,
// and counts the rest. overlayfs copies a file up when it is opened for writing or gets the owner that it has, and a directory
// when something is made in it, even if that goes again.
//
// A file, symlink or node stays if its type, mode, owner, size, time, attributes, target or content differ. A directory goes if
// it is empty and only its time differs, by being later than began, when the writing began. A whiteout or an opaque mark that
// hides nothing goes too. A file that has several names stays, for the names are one file.
func (t *Stack) DropUnchanged(ctx context.Context, draft string, began time.Time) (Written, error) {
	d := &dropper{below: t.dirs(), began: began.UnixNano(), ctx: ctx, files: true}
	return d.drop(draft)
}

// dropDirs is DropUnchanged for directories only.
func (t *Stack) dropDirs(ctx context.Context, draft string, began time.Time) (Written, error) {
	d := &dropper{below: t.dirs(), began: began.UnixNano(), ctx: ctx}
	return d.drop(draft)
}

func (d *dropper) drop(draft string) (Written, error) {
	root, err := d.below.root()
	if err == nil {
		d.out.Entries++
		err = d.dir(draft, &root)
	}
	return d.out, err
}

type dropper struct {
	below layers
	began int64
	files bool // look at what is no directory, too
	ctx   context.Context
	out   Written
}

// dir looks at the content of a directory of the draft. below is what the layers below show at its place.
func (d *dropper) dir(host string, below *node) error {
	entries, err := os.ReadDir(host)
	if err != nil {
		return err
	}
	var before unix.Stat_t
	if err := unix.Lstat(host, &before); err != nil {
		return &os.PathError{Op: "lstat", Path: host, Err: err}
	}
	dropped := false
	if err := context.Cause(d.ctx); err != nil {
		return err
	}
	for _, e := range entries {
		gone, err := d.entry(path.Join(host, e.Name()), e.Name(), below)
		if err != nil {
			return err
		}
		dropped = dropped || gone
	}
	if !dropped {
		return nil
	}
	if err := setTimes(unix.AT_FDCWD, host, nanos(before.Mtim)); err != nil {
		return &os.PathError{Op: "utimes", Path: host, Err: err}
	}
	return nil
}

// entry removes one entry of a directory, if that says nothing, or counts it.
func (d *dropper) entry(host, name string, parent *node) (gone bool, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(host, &st); err != nil {
		return false, &os.PathError{Op: "lstat", Path: host, Err: err}
	}
	low, err := d.below.child(parent, name)
	if err != nil {
		return false, err
	}
	isDir := isType(st.Mode, unix.S_IFDIR)
	switch {
	case isDir:
		gone, err = d.subdir(host, &st, &low)
	case isWhiteout(st.Mode, uint64(st.Rdev)):
		gone = d.files && !low.ok
	case d.files:
		gone, err = d.same(host, &st, &low)
	}
	if err != nil {
		return false, err
	}
	if gone {
		flags := 0
		if isDir {
			flags = unix.AT_REMOVEDIR
		}
		err := unix.Unlinkat(unix.AT_FDCWD, host, flags)
		if err == unix.ENOTEMPTY {
			gone = false
		} else if err != nil {
			return false, &os.PathError{Op: "remove", Path: host, Err: err}
		}
	}
	if !gone {
		d.out.Entries++
		if isType(st.Mode, unix.S_IFREG) {
			d.out.Bytes += st.Blocks * 512
		}
	}
	return gone, nil
}

// subdir looks at a directory. It is gone if nothing is left in it and it is as it is below.
func (d *dropper) subdir(host string, st *unix.Stat_t, low *node) (gone bool, err error) {
	opaque, err := isOpaque(host)
	if err != nil {
		return false, err
	}
	if opaque {
		hides, err := d.below.hasEntries(low)
		if err != nil {
			return false, err
		}
		if !hides {
			if err := unix.Lremovexattr(host, opaqueAttr); err != nil {
				return false, &os.PathError{Op: "removexattr", Path: host, Err: err}
			}
			opaque = false
		}
	}
	inner := *low
	if opaque || !low.isDir() {
		inner = node{rel: low.rel}
	}
	if err := d.dir(host, &inner); err != nil || opaque || !low.isDir() {
		return false, err
	}
	sameTime := st.Mtim == low.st.Mtim || nanos(st.Mtim) >= d.began
	return sameTime && st.Mode == low.st.Mode && st.Uid == low.st.Uid && st.Gid == low.st.Gid && sameAttrs(host, d.below.host(low)), nil
}

// hasEntries reports whether a directory shows anything.
func (l layers) hasEntries(n *node) (bool, error) {
	for _, dir := range n.dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return false, err
		}
		for _, e := range entries {
			if kid, err := l.child(n, e.Name()); err != nil || kid.ok {
				return kid.ok, err
			}
		}
	}
	return false, nil
}

// same reports whether something that is no directory is as it is below. The content is read only where all else is equal.
func (d *dropper) same(host string, st *unix.Stat_t, low *node) (bool, error) {
	if !low.ok || st.Nlink > 1 || !sameStat(st, &low.st) {
		return false, nil
	}
	lowHost := d.below.host(low)
	if !sameAttrs(host, lowHost) {
		return false, nil
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return d.sameContent(host, lowHost)
	case unix.S_IFLNK:
		a, err := os.Readlink(host)
		if err != nil {
			return false, err
		}
		b, err := os.Readlink(lowHost)
		return a == b, err
	}
	return true, nil
}

// sameStat compares what stat tells of two files that are no directories.
func sameStat(a, b *unix.Stat_t) bool {
	return a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid && a.Size == b.Size && a.Mtim == b.Mtim && a.Rdev == b.Rdev
}

func (d *dropper) sameContent(a, b string) (bool, error) {
	f, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer f.Close()
	g, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer g.Close()
	return sameBytes(d.ctx, f, g)
}
