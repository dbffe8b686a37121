package export

import (
	"errors"
	"os"
	"path"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// dest is the client's directory. Nothing is ever written through a symlink in it.
type dest struct {
	fd   int
	uid  int // -1: files belong to this process
	gid  int
	kept map[string]bool // paths of the result; nil if nothing is to be removed
	mu   sync.Mutex
}

func openDest(dir string) (*dest, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	d := &dest{fd: fd, uid: -1, gid: -1}
	var st unix.Stat_t
	if os.Geteuid() == 0 && unix.Fstat(fd, &st) == nil {
		d.uid, d.gid = int(st.Uid), int(st.Gid)
	}
	return d, nil
}

// beneath opens a path below a directory, following no symlink.
func beneath(fd int, rel string, flags int) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	n, err := unix.Openat2(fd, rel, &how)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: rel, Err: err}
	}
	return n, nil
}

func (d *dest) keep(rel string) {
	if d.kept != nil {
		d.mu.Lock()
		d.kept[rel] = true
		d.mu.Unlock()
	}
}

func (d *dest) mkdir(rel string) error {
	d.keep(rel)
	at, err := beneath(d.fd, path.Dir(rel), unix.O_DIRECTORY|unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	return d.mkdirAt(at, path.Base(rel))
}

// mkdirAt makes a directory, in the place of a file that is there.
func (d *dest) mkdirAt(at int, name string) error {
	var st unix.Stat_t
	switch err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return nil
	case err == nil:
		if err := unix.Unlinkat(at, name, 0); err != nil {
			return err
		}
	}
	if err := unix.Mkdirat(at, name, 0o700); err != nil {
		return err
	}
	return d.own(at, name)
}

func (d *dest) own(at int, name string) error {
	if d.uid < 0 {
		return nil
	}
	return unix.Fchownat(at, name, d.uid, d.gid, unix.AT_SYMLINK_NOFOLLOW)
}

// write makes a file, in the place of what is there.
func (d *dest) write(rel string, data []byte, epoch *time.Time) error {
	d.keep(rel)
	at, err := beneath(d.fd, path.Dir(rel), unix.O_DIRECTORY|unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	name := path.Base(rel)
	if err := unlink(at, name); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unlink", Path: rel, Err: err}
	}
	fd, err := unix.Openat(at, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: rel, Err: err}
	}
	f := os.NewFile(uintptr(fd), rel)
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if epoch != nil {
		t := unix.NsecToTimespec(epoch.UnixNano())
		if err := unix.UtimesNanoAt(at, name, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	return d.own(at, name)
}

// clean removes what is not part of the result.
func (d *dest) clean() error {
	if d.kept == nil {
		return nil
	}
	root, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(d.fd))
	if err != nil {
		return err
	}
	defer root.Close()
	return d.cleanDir(root, ".")
}

func (d *dest) cleanDir(root *os.Root, rel string) error {
	f, err := root.Open(rel)
	if err != nil {
		return err
	}
	list, err := f.ReadDir(-1)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	for _, e := range list {
		p := path.Join(rel, e.Name())
		switch {
		case !d.kept[p]:
			err = root.RemoveAll(p)
		case e.IsDir():
			err = d.cleanDir(root, p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// unlink makes room for a file.
func unlink(at int, name string) error {
	err := unix.Unlinkat(at, name, 0)
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	dir, err := beneath(at, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	root, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(dir))
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(name)
}
