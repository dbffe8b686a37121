package layer

import (
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// inherit gives an implied directory what the layers below say.
func (f *finisher) inherit(p string) error {
	host, st, ok, err := f.visible(p)
	if err != nil {
		return err
	}
	if p == "." && !ok {
		st, host = unix.Stat_t{Mode: unix.S_IFDIR | 0o755}, ""
		st.Uid, st.Gid = uint32(unix.Geteuid()), uint32(unix.Getegid())
		ok = true
	}
	if !ok || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	d, err := f.t.dir(p)
	if err != nil {
		return sysError("open", p, err)
	}
	if host == "" {
		err = setOwnerMode(d.fd, &st, p)
	} else {
		var src int
		if src, err = unix.Open(host, openDirMode, 0); err != nil {
			return sysError("open", host, err)
		}
		err = copyAttributes(src, d.fd, p)
		unix.Close(src)
	}
	d.mtime, d.touched, d.setgid = st.Mtim, true, st.Mode&unix.S_ISGID != 0
	return err
}

func setOwnerMode(fd int, st *unix.Stat_t, p string) error {
	err := unix.Fchown(fd, int(st.Uid), int(st.Gid))
	if err != nil && !(err == unix.EPERM && unix.Geteuid() != 0) { // without root's rights all files are the user's
		return sysError("chown", p, err)
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return sysError("chmod", p, err)
	}
	return nil
}

// copyAttributes copies owner, mode and extended attributes from one open file to another one.
func copyAttributes(from, to int, p string) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return sysError("stat", p, err)
	}
	if err := setOwnerMode(to, &st, p); err != nil {
		return err
	}
	return eachXattr(from, p, func(k, v string) error {
		if !keepXattr(k) {
			return nil
		}
		if err := unix.Fsetxattr(to, k, []byte(v), 0); err != nil && err != unix.EOPNOTSUPP {
			return sysError("set xattr "+k+" of", p, err)
		}
		return nil
	})
}

// makeLinks makes the hard links to files of the layers below. As in a mounted overlay, the target is copied up and
// linked to, unless this layer has put something else at its path.
func (f *finisher) makeLinks() error {
	made := map[string]string{} // target -> its copy in this layer
	for _, at := range slices.Sorted(maps.Keys(f.links)) {
		l := Link{at, f.links[at]}
		if f.ctx.Err() != nil {
			return f.ctx.Err()
		}
		dir, base := split(l.Target)
		dir, err := f.resolve(dir)
		if err != nil {
			return err
		}
		target := join(dir, base)
		first, ok := made[target]
		if !ok {
			if first, err = f.copyUp(target, l.Path); err != nil {
				return err
			}
			made[target] = first
		}
		if first == l.Path {
			continue
		}
		if err := f.link(first, l.Path); err != nil {
			return err
		}
	}
	return nil
}

// link replaces the place holder at p by a link to first.
func (f *finisher) link(first, p string) error {
	dir, base := split(first)
	if _, err := f.t.parent(dir); err != nil {
		return err
	}
	toDir, to := split(p)
	dst, err := f.t.parent(toDir)
	if err != nil {
		return err
	}
	src, err := f.t.dir(dir)
	if err != nil {
		return sysError("open", dir, err)
	}
	if err := unix.Unlinkat(dst.fd, to, 0); err != nil {
		return sysError("remove", p, err)
	}
	if err := unix.Linkat(src.fd, base, dst.fd, to, 0); err != nil {
		return sysError("link", p, err)
	}
	return nil
}

// copyUp copies the file that the layers below have at target into this layer: to the same path, or to link if that path
// is taken. It returns where the copy is.
func (f *finisher) copyUp(target, link string) (string, error) {
	host, st, ok, err := f.visible(target)
	if err != nil {
		return "", err
	}
	if !ok || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return "", diag.Errorf(diag.Invalid, "%q: a hard link to %q, which is neither in this layer nor below", link, target)
	}
	dir, base := split(target)
	d, err := f.t.parent(dir)
	if err != nil {
		return "", err
	}
	var there unix.Stat_t
	err = unix.Fstatat(d.fd, base, &there, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil && err != unix.ENOENT {
		return "", sysError("stat", target, err)
	}
	if err == nil { // later entries put it there; the link is to the file below
		target = link
		dir, base = split(link)
		if d, err = f.t.parent(dir); err != nil {
			return "", err
		}
		if err := unix.Unlinkat(d.fd, base, 0); err != nil {
			return "", sysError("remove", link, err)
		}
	}
	return target, copyNode(host, &st, d, base)
}

// copyNode copies one file, of any type but a directory, with all its attributes.
func copyNode(host string, st *unix.Stat_t, d *openDir, base string) error {
	p := join(d.path, base)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return copyFile(host, st, d, base)
	case unix.S_IFLNK:
		link, err := readlink(unix.AT_FDCWD, host, p)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(link, d.fd, base); err != nil {
			return sysError("make symlink", p, err)
		}
	default:
		if err := unix.Mknodat(d.fd, base, st.Mode, int(st.Rdev)); err != nil {
			return sysError("make node", p, err)
		}
		if err := unix.Fchmodat(d.fd, base, st.Mode&0o7777, 0); err != nil {
			return sysError("chmod", p, err)
		}
	}
	err := unix.Fchownat(d.fd, base, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	if err != nil && !(err == unix.EPERM && unix.Geteuid() != 0) {
		return sysError("chown", p, err)
	}
	if err := unix.UtimesNanoAt(d.fd, base, []unix.Timespec{st.Mtim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return sysError("set the time of", p, err)
	}
	return nil
}

func copyFile(host string, st *unix.Stat_t, d *openDir, base string) error {
	p := join(d.path, base)
	src, err := unix.Open(host, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return sysError("open", host, err)
	}
	defer unix.Close(src)
	dst, err := unix.Openat(d.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return sysError("create", p, err)
	}
	defer unix.Close(dst)
	if err := copyContent(src, dst, st.Size, p); err != nil {
		return err
	}
	if err := copyAttributes(src, dst, p); err != nil {
		return err
	}
	if err := setTimes(dst, st.Mtim); err != nil {
		return sysError("set the time of", p, err)
	}
	return nil
}

// copyContent lets the kernel copy, which shares extents where the file system can; not all can.
func copyContent(src, dst int, size int64, p string) error {
	for left := size; left > 0; {
		n, err := unix.CopyFileRange(src, nil, dst, nil, int(min(left, 1<<30)), 0)
		switch err {
		case nil:
		case unix.EINTR:
			continue
		case unix.EXDEV, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP:
			return copyByHand(src, dst, left, p)
		default:
			return sysError("copy", p, err)
		}
		if n == 0 {
			return diag.Errorf(diag.Internal, "%q became shorter while it was copied", p)
		}
		left -= int64(n)
	}
	return nil
}

func copyByHand(src, dst int, size int64, p string) error {
	buf := make([]byte, min(size, copyBuffer))
	for left := size; left > 0; {
		n, err := rawFile(src).Read(buf)
		if err != nil {
			return diag.Errorf(diag.Internal, "copy %q: %w", p, err)
		}
		if err := writeAll(dst, buf[:n], p); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}
