package outfile

import (
	"errors"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// maxLinks is how many symlinks a path may lead through, as in the kernel.
const maxLinks = 40

// resolver walks a path that a user named, one name at a time. It follows symlinks, as the user may keep them, but with the rights
// of root a symlink of another user leads to that user's directories only. Who owns a directory on the path can put a symlink there
// at any time, and would choose where root writes.
type resolver struct {
	fd    int // the directory that was reached
	links int
	user  uint32 // who owns a symlink that was followed, 0 = nobody but root or this process
}

// directory is one that a resolver reached.
type directory struct {
	fd    int
	owner Owner
}

func (d directory) close() { unix.Close(d.fd) }

func newResolver(name string) (*resolver, error) {
	start := "."
	if path.IsAbs(name) {
		start = "/"
	}
	fd, err := unix.Open(start, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: start, Err: err}
	}
	return &resolver{fd: fd}, nil
}

func (r *resolver) close() { unix.Close(r.fd) }

// enter goes to a directory; with create, those that do not exist are made, with the rights of the owner of what they are made in.
func (r *resolver) enter(name string, create bool) error {
	if path.IsAbs(name) {
		if err := r.step("/"); err != nil {
			return err
		}
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." {
			continue
		}
		err := r.step(part)
		if create && errors.Is(err, unix.ENOENT) {
			if err = r.mkdir(part); err == nil {
				err = r.step(part)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// step goes to a directory of the current one.
func (r *resolver) step(name string) error {
	fd, err := unix.Openat(r.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		unix.Close(r.fd)
		r.fd = fd
		return nil
	case unix.S_IFLNK:
		unix.Close(fd)
		target, err := r.follow(name, &st)
		if err != nil {
			return err
		}
		return r.enter(target, false)
	}
	unix.Close(fd)
	return &os.PathError{Op: "open", Path: name, Err: unix.ENOTDIR}
}

// follow reads a symlink of the current directory, and remembers whose it is.
func (r *resolver) follow(name string, st *unix.Stat_t) (string, error) {
	if r.links++; r.links > maxLinks {
		return "", &os.PathError{Op: "open", Path: name, Err: unix.ELOOP}
	}
	if os.Geteuid() == 0 && st.Uid != 0 {
		if r.user != 0 && r.user != st.Uid {
			return "", diag.Errorf(diag.Denied, "the path leads through symlinks of the users %d and %d", r.user, st.Uid)
		}
		r.user = st.Uid
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(r.fd, name, buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(buf[:n]), nil
}

// here returns the current directory, which the caller closes.
func (r *resolver) here() (d directory, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(r.fd, &st); err != nil {
		return d, err
	}
	if r.user != 0 && st.Uid != r.user {
		return d, diag.Errorf(diag.Denied, "a symlink of user %d leads to a directory of user %d", r.user, st.Uid).
			WithHint("name the directory itself")
	}
	fd, err := unix.FcntlInt(uintptr(r.fd), unix.F_DUPFD_CLOEXEC, 0)
	return directory{fd, ownerOf(&st)}, err
}

func (r *resolver) mkdir(name string) error {
	d, err := r.here()
	if err != nil {
		return err
	}
	defer d.close()
	err = d.owner.Do(func() error { return unix.Mkdirat(d.fd, name, 0o755) })
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return nil
}
