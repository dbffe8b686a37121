package outfile

import (
	"errors"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// Dir is a directory to write into. Its methods take paths below it, with slashes, and follow no symlinks; they may be called from
// many goroutines.
type Dir struct {
	Owner Owner
	fd    int
}

// OpenDir opens a directory, which is made if it does not exist.
func OpenDir(name string) (*Dir, error) { return openDir(name, true) }

// OpenExisting opens a directory that exists.
func OpenExisting(name string) (*Dir, error) { return openDir(name, false) }

func openDir(name string, create bool) (*Dir, error) {
	r, err := newResolver(name)
	if err != nil {
		return nil, explain(name, err)
	}
	defer r.close()
	if err := r.enter(name, create); err != nil {
		return nil, explain(name, err)
	}
	at, err := r.here()
	if err != nil {
		return nil, explain(name, err)
	}
	defer at.close()
	d := &Dir{Owner: at.owner}
	err = d.Owner.Do(func() (err error) {
		d.fd, err = unix.Openat(at.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, explain(name, err)
	}
	return d, nil
}

// Close ends the use of the directory.
func (d *Dir) Close() error { return unix.Close(d.fd) }

// Fd is the directory's descriptor, which stays the Dir's.
func (d *Dir) Fd() int { return d.fd }

// Beneath opens a path below a directory, following no symlink. Call it with the rights of the directory's owner.
func Beneath(fd int, rel string, flags int) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	n, err := unix.Openat2(fd, rel, &how)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: rel, Err: err}
	}
	return n, nil
}

// MkdirAll makes a directory and its parents.
func (d *Dir) MkdirAll(rel string) error {
	return d.Owner.Do(func() error { return d.mkdirAll(path.Clean(rel)) })
}

func (d *Dir) mkdirAll(rel string) error {
	for i := 0; i < len(rel); {
		n := strings.IndexByte(rel[i+1:], '/')
		if n < 0 {
			i = len(rel)
		} else {
			i += 1 + n
		}
		if rel[:i] == "." {
			continue
		}
		at, err := Beneath(d.fd, path.Dir(rel[:i]), unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		err = unix.Mkdirat(at, path.Base(rel[:i]), 0o755)
		unix.Close(at)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "mkdir", Path: rel[:i], Err: err}
		}
	}
	return nil
}

// Create begins to write a file, whose directory exists. Whatever has the name, but for a directory, is replaced on Close.
func (d *Dir) Create(rel string) (*File, error) {
	var at directory
	err := d.Owner.Do(func() (err error) {
		at.fd, err = Beneath(d.fd, path.Dir(rel), unix.O_PATH|unix.O_DIRECTORY)
		return err
	})
	if err != nil {
		return nil, err
	}
	at.owner = d.Owner
	f, err := at.replace(path.Base(rel), 0o644, nil)
	if err != nil {
		at.close()
		return nil, err
	}
	f.any = true
	return f, nil
}

// Write makes a file of data.
func (d *Dir) Write(rel string, data []byte) error {
	return d.WriteFrom(rel, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// WriteFrom makes a file of what write writes to it.
func (d *Dir) WriteFrom(rel string, write func(io.Writer) error) error {
	f, err := d.Create(rel)
	if err != nil {
		return err
	}
	defer f.Abort()
	if err := write(f); err != nil {
		return err
	}
	return f.Close()
}

// Open opens a regular file to be read, with the rights of this process. It never waits for anybody: what is not a regular file is an
// error.
func (d *Dir) Open(rel string) (*os.File, error) {
	fd, err := Beneath(d.fd, path.Clean(rel), unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), rel)
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = diag.Errorf(diag.Invalid, "%s is not a regular file", rel)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Size returns the size of a regular file. One that does not exist is fs.ErrNotExist.
func (d *Dir) Size(rel string) (int64, error) {
	f, err := d.Open(rel)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// Names lists a directory.
func (d *Dir) Names(rel string) ([]string, error) {
	fd, err := Beneath(d.fd, path.Clean(rel), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), rel)
	defer f.Close()
	return f.Readdirnames(-1)
}

// Remove removes a file or an empty directory.
func (d *Dir) Remove(rel string) error {
	return d.Owner.Do(func() error {
		at, err := Beneath(d.fd, path.Dir(rel), unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer unix.Close(at)
		err = unix.Unlinkat(at, path.Base(rel), 0)
		if errors.Is(err, unix.EISDIR) {
			err = unix.Unlinkat(at, path.Base(rel), unix.AT_REMOVEDIR)
		}
		if err != nil {
			return &os.PathError{Op: "remove", Path: rel, Err: err}
		}
		return nil
	})
}

// RemoveAll removes a name of the directory at, and what is below it. It follows no symlink and enters no mount. Call it with the
// rights of the directory's owner.
func RemoveAll(at int, name string) error {
	err := unix.Unlinkat(at, name, 0)
	if err == nil || !errors.Is(err, unix.EISDIR) {
		return err
	}
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := unix.Openat2(at, name, &how)
	if errors.Is(err, unix.EXDEV) {
		return &os.PathError{Op: "remove", Path: name, Err: errors.New("it is a mount point, whose content is kept")}
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	kids, err := children(fd)
	if err != nil {
		return &os.PathError{Op: "list", Path: name, Err: err}
	}
	for _, k := range kids {
		if err := RemoveAll(fd, k); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
}

// children lists a directory that was opened with O_PATH, in which names are about to be removed.
func children(fd int) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&0o700 != 0o700 {
		if err := chmodPath(fd, st.Mode&0o7777|0o700); err != nil {
			return nil, err
		}
	}
	r, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(r), ".")
	defer f.Close()
	return f.Readdirnames(-1)
}

// Chmod sets the mode of a file that is no symlink, such as a directory, a FIFO or a socket. It never follows a symlink that somebody
// puts there meanwhile.
func Chmod(at int, name string, mode uint32) error {
	fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return unix.ELOOP
	}
	return chmodPath(fd, mode)
}

// chmodPath is fchmod for a descriptor of O_PATH. fchmodat2 with AT_EMPTY_PATH does the same from Linux 6.6 on.
func chmodPath(fd int, mode uint32) error {
	return unix.Fchmodat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), mode, 0)
}
