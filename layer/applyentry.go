package layer

import (
	"archive/tar"
	"bytes"
	"io"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// clear removes what stands in the way of a new entry, so that later entries win. It reports whether a directory that is
// made here now must be opaque: whatever was here hid the layers below.
func (a *applier) clear(parent *openDir, base string) (hides bool, err error) {
	p := join(parent.path, base)
	a.t.forget(p)
	if err := removeAll(parent.fd, base, p, a.gone); err != nil {
		return false, err
	}
	return a.opt.Form == Overlay, nil
}

// create runs make, and once more after clearing the way if something is there already.
func (a *applier) create(parent *openDir, base, what string, make func() error) error {
	err := make()
	if err == unix.EEXIST {
		if _, err := a.clear(parent, base); err != nil {
			return err
		}
		err = make()
	}
	if err != nil {
		return sysError(what, join(parent.path, base), err)
	}
	return nil
}

func (a *applier) file(parent *openDir, base string, h *tar.Header) error {
	p := join(parent.path, base)
	if a.out.Bytes += h.Size; a.opt.MaxBytes > 0 && (a.out.Bytes < 0 || a.out.Bytes > a.opt.MaxBytes) {
		return diag.Errorf(diag.Exhausted, "%q: the files of the layer are larger than %d bytes", h.Name, a.opt.MaxBytes)
	}
	var fd int
	err := a.create(parent, base, "create", func() (err error) {
		fd, err = unix.Openat(parent.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	err = a.content(fd, p, h)
	if err == nil {
		err = a.attributes(fd, p, h, parent.setgid)
	}
	if cerr := unix.Close(fd); err == nil && cerr != nil {
		err = sysError("close", p, cerr)
	}
	a.out.Files++
	return err
}

// content writes the file. Blocks of zeros in sparse files become holes.
func (a *applier) content(fd int, p string, h *tar.Header) error {
	sparse := h.Typeflag == tar.TypeGNUSparse || isPaxSparse(h)
	hole := false
	for left := h.Size; left > 0; {
		n, err := io.ReadFull(a.tr, a.buf[:min(left, copyBuffer)])
		if err != nil {
			return a.tarError(err)
		}
		left -= int64(n)
		if hole = sparse && allZero(a.buf[:n]); hole {
			if err := a.ctx.Err(); err != nil { // a hole reads nothing from the stream, which looks at the context
				return err
			}
			if _, err := unix.Seek(fd, int64(n), io.SeekCurrent); err != nil {
				return sysError("seek", p, err)
			}
			continue
		}
		if err := writeAll(fd, a.buf[:n], p); err != nil {
			return err
		}
	}
	if hole {
		if err := unix.Ftruncate(fd, h.Size); err != nil {
			return sysError("truncate", p, err)
		}
	}
	return nil
}

func writeAll(fd int, b []byte, p string) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return sysError("write", p, err)
		}
		b = b[n:]
	}
	return nil
}

func isPaxSparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func allZero(b []byte) bool {
	const step = 4096
	var zeros [step]byte
	for len(b) >= step {
		if !bytes.Equal(b[:step], zeros[:]) {
			return false
		}
		b = b[step:]
	}
	return bytes.Equal(b, zeros[:len(b)])
}

// attributes sets owner, mode, xattrs and times of an open file or directory, in an order in which none undoes another:
// chown clears setuid bits and capabilities. The time of a directory is left to the target.
func (a *applier) attributes(fd int, p string, h *tar.Header, inherits bool) error {
	uid, gid := a.owner(h)
	if !a.opt.Unprivileged && (inherits || uid != a.euid || gid != a.egid) {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return sysError("chown", p, err)
		}
	}
	mode := uint32(h.Mode & 0o7777)
	if a.opt.Unprivileged && h.Typeflag == tar.TypeDir {
		mode |= 0o700
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return sysError("chmod", p, err)
	}
	err := a.xattrs(p, h, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) })
	if err != nil || h.Typeflag == tar.TypeDir {
		return err
	}
	if err := setTimes(fd, timespec(h.ModTime)); err != nil {
		return sysError("set the time of", p, err)
	}
	return nil
}

func (a *applier) owner(h *tar.Header) (uid, gid int) {
	if a.opt.Owner != nil {
		return int(a.opt.Owner.UID), int(a.opt.Owner.GID)
	}
	return h.Uid, h.Gid
}

func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

const xattrRecord = "SCHILY.xattr."

// xattrs sets the attributes of a header. A file system that has no such attributes is no error, as for other runtimes.
func (a *applier) xattrs(p string, h *tar.Header, set func(name string, value []byte) error) error {
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, xattrRecord)
		if !ok || !keepXattr(name) {
			continue
		}
		err := set(name, []byte(v))
		switch {
		case err == nil, err == unix.EOPNOTSUPP:
		case err == unix.EPERM && (a.opt.Unprivileged || name == "security.ima"):
		case err == unix.EPERM && h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir: // user.* on links and devices
		default:
			return sysError("set xattr "+name+" of", p, err)
		}
	}
	return nil
}

func (a *applier) directory(p string, h *tar.Header) error {
	d, err := a.openDirectory(p)
	if err != nil {
		return err
	}
	delete(a.implied, d.path)
	if err := a.attributes(d.fd, d.path, h, true); err != nil {
		return err
	}
	d.mtime, d.touched, d.setgid = timespec(h.ModTime), true, h.Mode&0o2000 != 0
	return nil
}

// openDirectory makes or finds the directory of an entry. Unlike a parent, an entry's own last name is never followed.
func (a *applier) openDirectory(p string) (*openDir, error) {
	if p == "." {
		return a.t.root, nil
	}
	dir, base := split(p)
	parent, err := a.t.parent(dir)
	if err != nil {
		return nil, err
	}
	p = join(parent.path, base)
	hides := false
	err = unix.Mkdirat(parent.fd, base, 0o700)
	if err == unix.EEXIST {
		d, err := a.t.child(parent, base)
		if err == nil {
			return d, nil
		}
		if hides, err = a.clear(parent, base); err != nil {
			return nil, err
		}
		if err := unix.Mkdirat(parent.fd, base, 0o700); err != nil {
			return nil, sysError("make directory", p, err)
		}
	} else if err != nil {
		return nil, sysError("make directory", p, err)
	}
	d, err := a.t.child(parent, base)
	if err != nil {
		return nil, sysError("open", p, err)
	}
	if hides {
		return d, setOpaque(d)
	}
	return d, nil
}

func (a *applier) symlink(parent *openDir, base string, h *tar.Header) error {
	if h.Linkname == "" || len(h.Linkname) > maxPath || strings.IndexByte(h.Linkname, 0) >= 0 {
		return diag.Errorf(diag.Invalid, "%q: a symlink to %.60q", h.Name, h.Linkname)
	}
	err := a.create(parent, base, "make symlink", func() error { return unix.Symlinkat(h.Linkname, parent.fd, base) })
	if err != nil {
		return err
	}
	return a.attributesAt(parent, base, h)
}

func (a *applier) special(parent *openDir, base string, h *tar.Header) error {
	mode, dev := uint32(unix.S_IFIFO), 0
	if h.Typeflag != tar.TypeFifo {
		mode, dev = unix.S_IFCHR, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	}
	if h.Typeflag == tar.TypeBlock {
		mode = unix.S_IFBLK
	}
	skip := false
	err := a.create(parent, base, "make node", func() error {
		err := unix.Mknodat(parent.fd, base, mode|0o600, dev)
		if skip = err == unix.EPERM && a.opt.Unprivileged; skip {
			return nil
		}
		return err
	})
	if err != nil || skip {
		return err
	}
	if err := unix.Fchmodat(parent.fd, base, uint32(h.Mode&0o7777), 0); err != nil { // it is new, and no symlink
		return sysError("chmod", join(parent.path, base), err)
	}
	return a.attributesAt(parent, base, h)
}

// attributesAt is attributes for what cannot be opened.
func (a *applier) attributesAt(parent *openDir, base string, h *tar.Header) error {
	p := join(parent.path, base)
	uid, gid := a.owner(h)
	if !a.opt.Unprivileged && (parent.setgid || uid != a.euid || gid != a.egid) {
		if err := unix.Fchownat(parent.fd, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return sysError("chown", p, err)
		}
	}
	err := a.xattrs(p, h, func(name string, value []byte) error {
		return unix.Lsetxattr(procPath(parent.fd, base), name, value, 0)
	})
	if err != nil {
		return err
	}
	ts := []unix.Timespec{timespec(h.ModTime), timespec(h.ModTime)}
	if err := unix.UtimesNanoAt(parent.fd, base, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return sysError("set the time of", p, err)
	}
	return nil
}

// procPath names base in an open directory, for calls that take paths only.
func procPath(fd int, base string) string { return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + base }
