package outfile

import (
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// File is a file that is being written. Close completes it, Abort leaves what was there before; the first of them counts.
type File struct {
	*os.File
	dir    directory
	name   string // in dir; "" if the file is written through
	part   string // the name that the file has in dir meanwhile; "" if it has none
	any    bool   // replace what is not a regular file too
	closed bool
}

// errThrough is the reason to write to what has the name instead of replacing it.
var errThrough = errors.New("not to be replaced")

// Create begins to write the file name. A regular file keeps its permissions, and its content until Close. What is not a regular
// file is opened as it is, as is one that cannot be replaced: a mount point, or one in a directory that is not writable.
func Create(name string) (*File, error) {
	f, err := create(name)
	if err != nil {
		return nil, explain(name, err)
	}
	return f, nil
}

// explain gives an error its kind and the name that the user wrote.
func explain(name string, err error) error {
	if d, ok := errors.AsType[*diag.Error](err); ok {
		e := diag.Errorf(d.Kind, "cannot write %s: %w", name, err)
		if d.Hint != "" {
			e = e.WithHint("%s", d.Hint)
		}
		return e
	}
	kind := diag.Invalid
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = diag.NotFound
	case errors.Is(err, fs.ErrPermission):
		kind = diag.Denied
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	}
	return diag.Errorf(kind, "cannot write %s: %w", name, err)
}

func create(name string) (*File, error) {
	r, err := newResolver(name)
	if err != nil {
		return nil, err
	}
	defer r.close()
	for {
		dir, base := path.Split(name)
		if base == "" || base == "." || base == ".." {
			return nil, &os.PathError{Op: "create", Path: name, Err: unix.EISDIR}
		}
		if err := r.enter(dir, false); err != nil {
			return nil, err
		}
		d, err := r.here()
		if err != nil {
			return nil, err
		}
		f, target, err := r.createIn(d, base)
		if f == nil || f.name == "" {
			d.close()
		}
		if err != nil || f != nil {
			return f, err
		}
		name = target
	}
}

// createIn opens a file of a directory, or returns where the symlink of that name leads.
func (r *resolver) createIn(d directory, base string) (f *File, target string, err error) {
	var st unix.Stat_t
	switch err = unix.Fstatat(d.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case errors.Is(err, unix.ENOENT):
		f, err = d.replace(base, 0o666, nil)
		return f, "", err
	case err != nil:
		return nil, "", &os.PathError{Op: "stat", Path: base, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return nil, "", &os.PathError{Op: "create", Path: base, Err: unix.EISDIR}
	case unix.S_IFLNK:
		if isProc(d.fd) {
			f, err = d.descriptor(base)
			return f, "", err
		}
		target, err = r.follow(base, &st)
		return nil, target, err
	case unix.S_IFREG:
		if f, err = d.replace(base, st.Mode&0o777, &st); err == nil || !errors.Is(err, errThrough) {
			return f, "", err
		}
		f, err = d.through(base, unix.O_TRUNC|unix.O_NOFOLLOW)
		return f, "", err
	}
	f, err = d.through(base, unix.O_NOFOLLOW)
	return f, "", err
}

// through opens what has the name.
func (d directory) through(base string, flags int) (*File, error) {
	f := &File{}
	err := d.owner.Do(func() error {
		fd, err := unix.Openat(d.fd, base, flags|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err == nil {
			f.File = os.NewFile(uintptr(fd), base)
		}
		return err
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: base, Err: err}
	}
	return f, nil
}

// descriptor opens an entry of /proc/PID/fd. One of this process is used as it is: opened anew, a file would be written from its
// start, although the shell appends to it.
func (d directory) descriptor(base string) (*File, error) {
	at, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(d.fd))
	if n, nerr := strconv.Atoi(base); err == nil && nerr == nil && at == "/proc/"+strconv.Itoa(os.Getpid())+"/fd" {
		fd, err := unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "dup", Path: base, Err: err}
		}
		return &File{File: os.NewFile(uintptr(fd), base)}, nil
	}
	return d.through(base, 0)
}

func isProc(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

// replace makes the file that will get the name; old is what has it now, nil for nothing.
func (d directory) replace(base string, perm uint32, old *unix.Stat_t) (*File, error) {
	if old != nil && isMountPoint(d.fd, base) {
		return nil, errThrough
	}
	f := &File{dir: d, name: base}
	err := d.owner.Do(func() error {
		fd, err := unix.Openat(d.fd, ".", unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, perm)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) {
			f.part = partName()
			fd, err = unix.Openat(d.fd, f.part, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, perm)
		}
		if err != nil {
			return err
		}
		f.File = os.NewFile(uintptr(fd), base)
		if old != nil {
			err = unix.Fchmod(fd, perm) // whatever the umask is
		}
		return err
	})
	switch {
	case err == nil:
		return f, nil
	case old != nil && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS)):
		return nil, errThrough
	}
	return nil, &os.PathError{Op: "create", Path: base, Err: err}
}

func partName() string { return ".strata-" + rand.Text()[:12] }

// isMountPoint reports whether a file is a mount, which cannot be renamed over.
func isMountPoint(fd int, base string) bool {
	var st unix.Statx_t
	err := unix.Statx(fd, base, unix.AT_SYMLINK_NOFOLLOW, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// Close completes the file: from now on it has its name.
func (f *File) Close() error {
	if f.closed {
		return nil
	}
	f.closed = true
	if f.name == "" {
		return f.File.Close()
	}
	defer f.dir.close()
	return f.dir.owner.Do(func() error {
		err := f.publish()
		err = errors.Join(err, f.File.Close())
		if err != nil && f.part != "" {
			_ = unix.Unlinkat(f.dir.fd, f.part, 0) // the first error matters
		}
		return err
	})
}

// CloseAs is Close with another name in the same directory, for files whose name depends on their content.
func (f *File) CloseAs(name string) error {
	f.name = name
	return f.Close()
}

// publish gives the file its name, if that is still free or a regular file's.
func (f *File) publish() error {
	var st unix.Stat_t
	err := unix.Fstatat(f.dir.fd, f.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && !f.any && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return &os.PathError{Op: "rename", Path: f.name, Err: errors.New("something else than a file appeared there")}
	}
	if f.part == "" {
		part := partName()
		err := unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(f.Fd())), f.dir.fd, part, unix.AT_SYMLINK_FOLLOW)
		if err != nil {
			return &os.PathError{Op: "link", Path: f.name, Err: err}
		}
		f.part = part
	}
	if err := unix.Renameat(f.dir.fd, f.part, f.dir.fd, f.name); err != nil {
		return &os.PathError{Op: "rename", Path: f.name, Err: err}
	}
	f.part = ""
	return nil
}

// Abort ends the writing of a file that is not complete: its name keeps what it had. It does nothing after Close.
func (f *File) Abort() error {
	if f.closed {
		return nil
	}
	f.closed = true
	err := f.File.Close()
	if f.name == "" {
		return err
	}
	defer f.dir.close()
	if f.part == "" {
		return err
	}
	return errors.Join(err, f.dir.owner.Do(func() error { return unix.Unlinkat(f.dir.fd, f.part, 0) }))
}

// Write makes a file of what write writes to it. The file appears whole or not at all.
func Write(name string, write func(io.Writer) error) error {
	f, err := Create(name)
	if err != nil {
		return err
	}
	if err := write(f); err != nil {
		_ = f.Abort() // the first error matters
		return err
	}
	if err := f.Close(); err != nil {
		return explain(name, err)
	}
	return nil
}

// WriteData is Write for data that is at hand.
func WriteData(name string, data []byte) error {
	return Write(name, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}
