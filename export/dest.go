package export

import (
	"errors"
	"os"
	"path"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/outfile"
)

// dest is the client's directory, whose owner may change it at the same time. Everything in it is done by descriptor, follows no
// symlink, and has the rights of the owner, to whom the files then belong.
type dest struct {
	*outfile.Dir
	all  bool            // device nodes and the bits and attributes that give rights are written too
	kept map[string]bool // paths of the result, true for directories; nil if nothing is to be removed
	mu   sync.Mutex
}

func openDest(dir string, all bool) (*dest, error) {
	d, err := outfile.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	if all && !d.Owner.IsSelf() {
		d.Close()
		return nil, diag.Errorf(diag.Denied, "privileged=true needs a directory that belongs to the user who builds, and %s belongs to another", dir).
			WithHint("another user could change files there while they get their rights")
	}
	return &dest{Dir: d, all: all}, nil
}

// mode is what a file's mode becomes: nobody asked for programs that run with the rights of their owner.
func (d *dest) mode(mode uint32) uint32 {
	if d.all {
		return mode & 0o7777
	}
	return mode & 0o1777
}

func (d *dest) keep(rel string, isDir bool) {
	if d.kept != nil {
		d.mu.Lock()
		d.kept[rel] = isDir
		d.mu.Unlock()
	}
}

func (d *dest) mkdir(rel string) error {
	d.keep(rel, true)
	return d.Owner.Do(func() error {
		at, err := outfile.Beneath(d.Fd(), path.Dir(rel), unix.O_DIRECTORY|unix.O_PATH)
		if err != nil {
			return err
		}
		defer unix.Close(at)
		return mkdirAt(at, path.Base(rel))
	})
}

// mkdirAt makes a directory, in the place of a file that is there.
func mkdirAt(at int, name string) error {
	var st unix.Stat_t
	switch err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		if st.Mode&0o700 == 0o700 {
			return nil
		}
		return outfile.Chmod(at, name, st.Mode&0o7777|0o700) // its owner must get in; the mode of the result comes last
	case err == nil:
		if err := unix.Unlinkat(at, name, 0); err != nil {
			return err
		}
	}
	return unix.Mkdirat(at, name, 0o700)
}

// write makes a file, in the place of what is there.
func (d *dest) write(rel string, data []byte, epoch *time.Time) error {
	d.keep(rel, false)
	return d.Owner.Do(func() error {
		at, err := outfile.Beneath(d.Fd(), path.Dir(rel), unix.O_DIRECTORY|unix.O_PATH)
		if err != nil {
			return err
		}
		defer unix.Close(at)
		name := path.Base(rel)
		if err := outfile.RemoveAll(at, name); err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "unlink", Path: rel, Err: err}
		}
		fd, err := unix.Openat(at, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return &os.PathError{Op: "create", Path: rel, Err: err}
		}
		f := os.NewFile(uintptr(fd), rel)
		_, err = f.Write(data)
		if err == nil && epoch != nil {
			t := unix.NsecToTimespec(epoch.UnixNano())
			err = setTimes(fd, []unix.Timespec{t, t})
		}
		return errors.Join(err, f.Close())
	})
}

// setTimes sets the times of an open file, whatever has its name by now.
func setTimes(fd int, t []unix.Timespec) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), t, 0)
}

// clean removes what is not part of the result.
func (d *dest) clean() error {
	if d.kept == nil {
		return nil
	}
	return d.Owner.Do(func() error { return d.cleanDir(".") })
}

func (d *dest) cleanDir(rel string) error {
	fd, err := outfile.Beneath(d.Fd(), rel, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), rel)
	defer f.Close()
	list, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range list {
		p := path.Join(rel, name)
		isDir, kept := d.kept[p]
		if kept && isDir {
			if err := d.cleanDir(p); err != nil {
				return err
			}
		}
		if kept {
			continue
		}
		if err := outfile.RemoveAll(fd, name); err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "remove", Path: p, Err: err}
		}
	}
	return nil
}
