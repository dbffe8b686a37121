package layer

import (
	"encoding/binary"
	"hash"
	"hash/fnv"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// Walker lists a layer directory.
type Walker struct {
	Skipped int64 // sockets that were left out, once Entries has ended
	Plain   bool  // the directory is no layer: nothing in it is a whiteout, and names that look like one are names like others
	dir     string
	root    int
	user    bool
	state   hash.Hash64 // of the name, inode, size and ctime of all that was listed
}

// NewWalker opens the layer directory dir; userXattrs lists user.* attributes too. Close it when the last file has been
// read.
func NewWalker(dir string, userXattrs bool) (*Walker, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, sysError("open", dir, err)
	}
	return &Walker{dir: dir, root: fd, user: userXattrs, state: fnv.New64a()}, nil
}

// Close closes the directory. Files that are open stay so.
func (w *Walker) Close() error { return unix.Close(w.root) }

// Entries yields the entries of the directory in the order of tar profile 1, the root itself not included. An error ends
// the sequence. The files must not change until the last Open has been read. It is for one use.
func (w *Walker) Entries() iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		run := &walkRun{w: w, yield: yield, links: map[inode]string{}}
		if err := run.dir(w.root, "."); err != nil && err != errStop {
			yield(nil, err)
		}
	}
}

type walkRun struct {
	w     *Walker
	yield func(*Entry, error) bool
	links map[inode]string // files with more than one name -> their first path
}

type inode struct{ dev, ino uint64 }

const errStop = walkError("the consumer has stopped")

type walkError string

func (e walkError) Error() string { return string(e) }

func (r *walkRun) emit(e *Entry) error {
	if !r.yield(e, nil) {
		return errStop
	}
	return nil
}

// item is a child of a directory; name is that of the tar, with the whiteout's prefix.
type item struct {
	name string
	st   unix.Stat_t
}

func (r *walkRun) dir(fd int, p string) error {
	names, err := readNames(fd)
	if err != nil {
		return sysError("list", p, err)
	}
	items := make([]item, len(names))
	for i, n := range names {
		it := &items[i]
		it.name = n
		if err := unix.Fstatat(fd, n, &it.st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return sysError("stat", join(p, n), err)
		}
		if r.w.Plain {
			continue
		}
		if isWhiteout(&it.st) {
			it.name = whiteoutPrefix + n
		} else if strings.HasPrefix(n, whiteoutPrefix) {
			return diag.Errorf(diag.Invalid, "%q cannot be stored in a layer: names that start with .wh. delete files", join(p, n)).
				WithHint("remove or rename the file in the step that makes it")
		}
	}
	slices.SortFunc(items, func(a, b item) int { return strings.Compare(a.name, b.name) })
	prefix := ""
	if p != "." {
		prefix = p + "/"
	}
	for i := range items {
		if err := r.item(fd, &items[i], prefix); err != nil {
			return err
		}
	}
	return nil
}

// see adds an entry to the state. A ctime cannot be set, so whoever changes a file or its attributes changes the state.
func (w *Walker) see(it *item) {
	var b [32]byte
	st := &it.st
	for i, v := range [...]uint64{st.Ino, uint64(st.Size), uint64(st.Ctim.Sec), uint64(st.Ctim.Nsec)} {
		binary.LittleEndian.PutUint64(b[8*i:], v)
	}
	_, _ = w.state.Write(b[:]) // a hash returns no error
	_, _ = io.WriteString(w.state, it.name)
}

func (r *walkRun) item(fd int, it *item, prefix string) error {
	st := &it.st
	r.w.see(it)
	e := &Entry{Path: prefix + it.name, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, ModTime: time.Unix(st.Mtim.Unix())}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return r.subdir(fd, it.name, e)
	case unix.S_IFREG:
		return r.file(fd, it, e)
	case unix.S_IFLNK:
		target, err := readlink(fd, it.name, e.Path)
		if err != nil {
			return err
		}
		e.Type, e.Link = Symlink, target
	case unix.S_IFCHR:
		if isWhiteout(st) && !r.w.Plain {
			return r.emit(markerEntry(e.Path))
		}
		e.Type, e.Major, e.Minor = Char, unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case unix.S_IFBLK:
		e.Type, e.Major, e.Minor = Block, unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case unix.S_IFIFO:
		e.Type = Fifo
	case unix.S_IFSOCK:
		r.w.Skipped++
		return nil
	}
	return r.emit(e)
}

// markerEntry is a whiteout or an opaque marker: an empty file whose name is all that counts. Its time is fixed, for the
// kernel gives whiteouts the time at which a step happened to run.
func markerEntry(p string) *Entry { return &Entry{Path: p, Type: File, ModTime: time.Unix(0, 0)} }

func (r *walkRun) subdir(fd int, name string, e *Entry) error {
	sub, err := unix.Openat(fd, name, openDirMode, 0)
	if err != nil {
		return sysError("open", e.Path, err)
	}
	defer unix.Close(sub)
	e.Type = Dir
	hides := false
	err = eachXattr(sub, e.Path, func(k, v string) error {
		switch k {
		case xattrOpaque, xattrUserOpaque:
			hides = hides || v == "y" && !r.w.Plain
		case "trusted.overlay.redirect", "user.overlay.redirect":
			return diag.Errorf(diag.Unsupported, "%q was renamed by overlayfs with redirect_dir, which a layer cannot hold", e.Path)
		}
		r.keep(e, k, v)
		return nil
	})
	if err != nil {
		return err
	}
	if err := r.emit(e); err != nil {
		return err
	}
	if hides {
		if err := r.emit(markerEntry(e.Path + "/" + opaqueMarker)); err != nil {
			return err
		}
	}
	return r.dir(sub, e.Path)
}

func (r *walkRun) keep(e *Entry, k, v string) {
	if k != "security.capability" && !(r.w.user && strings.HasPrefix(k, "user.") && !strings.HasPrefix(k, "user.overlay.")) {
		return
	}
	if e.Xattrs == nil {
		e.Xattrs = map[string]string{}
	}
	e.Xattrs[k] = v
}

func (r *walkRun) file(fd int, it *item, e *Entry) error {
	e.Type = File
	if err := r.fileXattrs(fd, it.name, e); err != nil {
		return err
	}
	if it.st.Nlink > 1 {
		id := inode{it.st.Dev, it.st.Ino}
		if first, ok := r.links[id]; ok {
			e.Type, e.Link, e.Xattrs = HardLink, first, nil
			return r.emit(e)
		}
		r.links[id] = e.Path
	}
	e.Size = it.st.Size
	p := e.Path
	e.Open = func() (io.ReadCloser, error) { return r.w.openFile(p) }
	return r.emit(e)
}

// fileXattrs reads the attributes by path: opening every file here would make the walk wait for the disk.
func (r *walkRun) fileXattrs(fd int, name string, e *Entry) error {
	host := r.w.dir + "/" + e.Path
	if len(host) > maxPath {
		host = procPath(fd, name)
	}
	n, err := unix.Llistxattr(host, nil)
	if n == 0 || err == unix.EOPNOTSUPP {
		return nil
	}
	if err != nil {
		return sysError("list the xattrs of", e.Path, err)
	}
	f, err := openBelow(fd, name)
	if err != nil {
		return sysError("open", e.Path, err)
	}
	defer unix.Close(f)
	return eachXattr(f, e.Path, func(k, v string) error {
		if k == "trusted.overlay.metacopy" || k == "user.overlay.metacopy" {
			return diag.Errorf(diag.Unsupported, "%q has no content of its own: overlayfs was mounted with metacopy", e.Path)
		}
		r.keep(e, k, v)
		return nil
	})
}

func openBelow(fd int, p string) (int, error) {
	return unix.Openat2(fd, p, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
}

// openFile opens a file for reading, without following symlinks on the way.
func (w *Walker) openFile(p string) (io.ReadCloser, error) {
	fd, err := openBelow(w.root, p)
	if err != nil {
		return nil, sysError("open", p, err)
	}
	return rawFile(fd), nil
}

// rawFile is an open regular file. os.File would add a poller registration and a finalizer to each.
type rawFile int

func (f rawFile) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(f), b)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0 && len(b) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (f rawFile) Close() error { return unix.Close(int(f)) }

// eachXattr calls fn for each attribute of an open file.
func eachXattr(fd int, p string, fn func(k, v string) error) error {
	n, err := unix.Flistxattr(fd, nil)
	if n == 0 || err == unix.EOPNOTSUPP {
		return nil
	}
	list := make([]byte, n)
	if err == nil {
		n, err = unix.Flistxattr(fd, list)
	}
	if err != nil {
		return sysError("list the xattrs of", p, err)
	}
	for k := range strings.SplitSeq(string(list[:n]), "\x00") {
		if k == "" {
			continue
		}
		size, err := unix.Fgetxattr(fd, k, nil)
		if err != nil {
			return sysError("read xattr "+k+" of", p, err)
		}
		value := make([]byte, size)
		if size > 0 {
			if size, err = unix.Fgetxattr(fd, k, value); err != nil {
				return sysError("read xattr "+k+" of", p, err)
			}
		}
		if err := fn(k, string(value[:size])); err != nil {
			return err
		}
	}
	return nil
}
