package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// OpenInRoot opens a path below root as if root were "/": symbolic links and ".." stay inside, also while the tree
// changes (openat2(2) with RESOLVE_IN_ROOT). Links of /proc are not followed. Flags are those of open(2); a FIFO does not block with
// O_NONBLOCK or O_PATH.
func OpenInRoot(root, name string, flags int) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	fd, err := openat2(dir, name, flags, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// fdPath names an open descriptor for system calls of this process that want a path.
func fdPath(fd uintptr) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// openat2 retries while the kernel says that a rename elsewhere kept it from a safe answer.
func openat2(dir int, name string, flags int, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve}
	for range 1000 {
		fd, err := unix.Openat2(dir, name, &how)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOSYS):
			return -1, diag.Errorf(diag.Unsupported, "this kernel has no openat2").WithHint("Linux 5.6 or later is needed")
		}
		return fd, err
	}
	return -1, unix.EAGAIN
}

// cleanPath is p as an absolute path without ".." and doubled slashes.
func cleanPath(p string) string { return path.Join("/", p) }

// below reports whether the clean path p is dir or in it.
func below(p, dir string) bool { return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/") }

// resolve follows the symbolic links of a path in root, also those that lead nowhere, and returns the clean path that
// is meant. It is a plan, not a promise: what is done there must not follow links any more.
func resolve(root, p string) (string, error) {
	full, err := securejoin.SecureJoin(root, p)
	if err != nil {
		return "", err
	}
	return cleanPath(strings.TrimPrefix(full, path.Clean(root))), nil
}

// made is a file or directory that makePath created.
type made struct {
	path string // clean, within the root
	dir  bool
	inode
}

// inode identifies a file of this machine while it exists.
type inode struct{ dev, ino uint64 }

// mountPoints are the made files and directories that running steps need. Several steps can run on one root file system at once,
// such as those of a client's containers: what one of them made stays until none needs it.
type mountPoints struct {
	mu    sync.Mutex
	users map[inode]int
}

// make makes the path of a mount point and notes who needs what. What it returns is for remove.
func (m *mountPoints) make(root *os.File, p string, n newNode) ([]made, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out, err := makePath(root, p, n, func(i inode) bool { return m.users[i] > 0 })
	if m.users == nil {
		m.users = map[inode]int{}
	}
	for _, n := range out {
		m.users[n.inode]++
	}
	return out, err
}

// remove removes what make returned and no other step needs.
func (m *mountPoints) remove(root *os.File, nodes []made) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var last []made
	for _, n := range nodes {
		if m.users[n.inode]--; m.users[n.inode] <= 0 {
			delete(m.users, n.inode)
			last = append(last, n)
		}
	}
	removeMade(root, last)
}

// newNode says what makePath creates: the last element as a directory or an empty file, its parents as directories.
type newNode struct {
	file     bool
	uid, gid int
}

// makePath creates what is missing of a resolved path, 0755 for directories and 0644 for a file, and returns it,
// outermost first, with what others made, if that is not nil. The times of the directory that gets the first new entry are kept.
func makePath(root *os.File, p string, n newNode, others func(inode) bool) ([]made, error) {
	var out []made
	dir, err := unix.Openat(int(root.Fd()), ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { unix.Close(dir) }()
	elems := strings.Split(strings.TrimPrefix(p, "/"), "/")
	if p == "/" {
		return nil, nil
	}
	for i, elem := range elems {
		last := i == len(elems)-1
		next, err := openat2(dir, elem, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_NO_SYMLINKS)
		if errors.Is(err, unix.ENOENT) {
			var m made
			if m, next, err = makeNode(dir, elem, last && n.file, n); err == nil {
				m.path = "/" + path.Join(elems[:i+1]...)
				out = append(out, m)
			}
		} else if err == nil && others != nil {
			var st unix.Stat_t
			if err = unix.Fstat(next, &st); err == nil && others(inodeOf(&st)) {
				out = append(out, made{path: "/" + path.Join(elems[:i+1]...), dir: st.Mode&unix.S_IFMT == unix.S_IFDIR, inode: inodeOf(&st)})
			}
		}
		if err != nil {
			return out, &os.PathError{Op: "create", Path: "/" + path.Join(elems[:i+1]...), Err: err}
		}
		unix.Close(dir)
		dir = next
	}
	return out, nil
}

// makeNode creates one entry and gives its directory the times back that it had.
func makeNode(dir int, name string, file bool, n newNode) (made, int, error) {
	var before, st unix.Stat_t
	if err := unix.Fstat(dir, &before); err != nil {
		return made{}, -1, err
	}
	var fd int
	var err error
	mode := uint32(0o755)
	if file {
		mode = 0o644
		fd, err = unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	} else if err = unix.Mkdirat(dir, name, mode); err == nil {
		fd, err = unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return made{}, -1, err
	}
	err = errors.Join(unix.Fchmod(fd, mode), unix.Fchown(fd, n.uid, n.gid), unix.Fstat(fd, &st), keepTimes(dir, &before))
	if err != nil {
		unix.Close(fd)
		return made{}, -1, err
	}
	return made{dir: !file, inode: inodeOf(&st)}, fd, nil
}

func inodeOf(st *unix.Stat_t) inode { return inode{uint64(st.Dev), st.Ino} }

// keepTimes sets the times of an open directory. O_PATH descriptors need the way through /proc.
func keepTimes(dir int, st *unix.Stat_t) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, fdPath(uintptr(dir)), []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// removeMade removes what makePath made, innermost first, if it is still what was made and still empty, whatever owner and mode the
// step has given it. It follows no link
// and leaves the root's file system for no mount, so that a build that swapped a directory for a link loses nothing else.
func removeMade(root *os.File, nodes []made) {
	for i := len(nodes) - 1; i >= 0; i-- {
		removeNode(root, nodes[i])
	}
}

func removeNode(root *os.File, m made) {
	parent := path.Dir(m.path)
	dir, err := openat2(int(root.Fd()), "."+parent, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
	if err != nil {
		return
	}
	defer unix.Close(dir)
	var st, before unix.Stat_t
	name, flags := path.Base(m.path), 0
	if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || unix.Fstat(dir, &before) != nil {
		return
	}
	if inodeOf(&st) != m.inode || (st.Mode&unix.S_IFMT == unix.S_IFDIR) != m.dir {
		return
	}
	if m.dir {
		flags = unix.AT_REMOVEDIR
	} else if st.Size != 0 {
		return
	}
	if unix.Unlinkat(dir, name, flags) == nil {
		keepTimes(dir, &before)
	}
}
