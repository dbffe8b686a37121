package layer

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// setTimes sets the time stamps of an open file; unix.Futimes has microseconds only.
func setTimes(fd int, mtime unix.Timespec) error {
	ts := [2]unix.Timespec{mtime, mtime}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts[0])), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

const (
	xattrOpaque     = "trusted.overlay.opaque"
	xattrUserOpaque = "user.overlay.opaque" // what overlayfs reads with the option userxattr
)

// setOpaque hides the lower layers' content of d. Without privileges the user form is all that can be written.
func setOpaque(d *openDir) error {
	err := unix.Fsetxattr(d.fd, xattrOpaque, []byte("y"), 0)
	if err == unix.EPERM {
		err = unix.Fsetxattr(d.fd, xattrUserOpaque, []byte("y"), 0)
	}
	if err != nil {
		return sysError("make opaque", d.path, err)
	}
	return nil
}

func isOpaque(fd int) bool {
	var b [2]byte
	for _, name := range []string{xattrOpaque, xattrUserOpaque} {
		if n, err := unix.Fgetxattr(fd, name, b[:]); err == nil && n == 1 && b[0] == 'y' {
			return true
		}
	}
	return false
}

// removeAll removes name below the directory fd, without following anything; gone is told of each path.
func removeAll(fd int, name, p string, gone func(string)) error {
	err := unix.Unlinkat(fd, name, 0)
	switch err {
	case nil:
		gone(p)
		return nil
	case unix.ENOENT:
		return nil
	case unix.EISDIR, unix.EPERM:
	default:
		return sysError("remove", p, err)
	}
	sub, err := unix.Openat(fd, name, openDirMode, 0)
	if err != nil {
		return sysError("remove", p, err)
	}
	defer unix.Close(sub)
	names, err := readNames(sub)
	if err != nil {
		return sysError("list", p, err)
	}
	for _, n := range names {
		if err := removeAll(sub, n, join(p, n), gone); err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(fd, name, unix.AT_REMOVEDIR); err != nil {
		return sysError("remove", p, err)
	}
	gone(p)
	return nil
}

// readNames lists an open directory, unsorted, without "." and "..". It may be called once per open.
func readNames(fd int) ([]string, error) {
	var names []string
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}
