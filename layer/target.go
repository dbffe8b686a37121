package layer

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// target is the directory that is written to. It keeps descriptors of the directories in use, so that an entry costs no
// path walk, and never lets the kernel follow a symlink: those of the tree are resolved here, inside of the root.
//
// A directory's time stamp is restored when its descriptor is closed: that gives every directory the time of its entry
// at the end, whatever the order of the entries, without a list of all directories.
type target struct {
	root  *openDir
	open  map[string]*openDir
	alias map[string]string // a path through symlinks -> the directory that it is
	clock uint64
	steps int64 // path components walked one by one, to bound hostile symlink mazes
	limit int64
	// made is told of each directory that a path implies; it may refuse.
	made func(path string) error
}

// openDir is a directory in use. mtime is what it shall have in the end.
type openDir struct {
	fd      int
	path    string
	mtime   unix.Timespec
	setgid  bool
	touched bool
	used    uint64
}

const (
	maxOpenDirs = 64
	openDirMode = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
)

func openTarget(dir string) (*target, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, sysError("open", dir, err)
	}
	t := &target{open: map[string]*openDir{}, alias: map[string]string{}, limit: 50_000_000, made: func(string) error { return nil }}
	if t.root, err = t.keep(fd, "."); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return t, nil
}

// close restores the time stamps and closes the descriptors.
func (t *target) close() error {
	var first error
	for _, d := range t.open {
		if err := t.drop(d); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// keep takes an open directory into the cache.
func (t *target) keep(fd int, p string) (*openDir, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, sysError("stat", p, err)
	}
	d := &openDir{fd: fd, path: p, mtime: st.Mtim, setgid: st.Mode&unix.S_ISGID != 0}
	return d, t.insert(d)
}

func (t *target) insert(d *openDir) error {
	if len(t.open) >= maxOpenDirs {
		oldest := d
		d.used = t.clock + 1
		for _, o := range t.open {
			if o.used < oldest.used && o != t.root {
				oldest = o
			}
		}
		if err := t.drop(oldest); err != nil {
			return err
		}
	}
	t.use(d)
	t.open[d.path] = d
	return nil
}

func (t *target) use(d *openDir) {
	t.clock++
	d.used = t.clock
}

func (t *target) drop(d *openDir) error {
	delete(t.open, d.path)
	var err error
	if d.touched {
		err = setTimes(d.fd, d.mtime)
	}
	unix.Close(d.fd)
	if err != nil {
		return sysError("set the time of", d.path, err)
	}
	return nil
}

// forget drops what is cached at p and below, after p was removed or renamed.
func (t *target) forget(p string) {
	for _, d := range t.open {
		if d != t.root && within(d.path, p) {
			d.touched = false
			_ = t.drop(d) // cannot fail: nothing is restored
		}
	}
	clear(t.alias)
}

// dir returns an existing directory by its resolved path; errno as error if there is none.
func (t *target) dir(p string) (*openDir, error) {
	if d, ok := t.open[p]; ok {
		t.use(d)
		return d, nil
	}
	fd, err := unix.Openat2(t.root.fd, p, &unix.OpenHow{Flags: openDirMode, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return nil, err
	}
	return t.keepOrClose(fd, p)
}

func (t *target) keepOrClose(fd int, p string) (*openDir, error) {
	d, err := t.keep(fd, p)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return d, nil
}

// child returns the directory name of d; errno as error if it is none.
func (t *target) child(d *openDir, name string) (*openDir, error) {
	p := join(d.path, name)
	if c, ok := t.open[p]; ok {
		t.use(c)
		return c, nil
	}
	fd, err := unix.Openat(d.fd, name, openDirMode, 0)
	if err != nil {
		return nil, err
	}
	return t.keepOrClose(fd, p)
}

// parent returns the directory that the clean path p names, through symlinks inside of the root, and makes what is
// missing.
func (t *target) parent(p string) (*openDir, error) {
	if r, ok := t.alias[p]; ok {
		p = r
	}
	d, err := t.dir(p)
	if err == nil {
		d.touched = true
		return d, nil
	}
	if errno, ok := err.(unix.Errno); !ok || !slices.Contains([]unix.Errno{unix.ENOENT, unix.ELOOP, unix.ENOTDIR, unix.ENOSYS, unix.EXDEV, unix.EAGAIN}, errno) {
		return nil, sysError("open", p, err)
	}
	w := walk{t: t, create: true}
	if err := w.to(p); err != nil {
		return nil, err
	}
	if w.links > 0 {
		if len(t.alias) >= maxOpenDirs {
			clear(t.alias)
		}
		t.alias[p] = w.at.path
	}
	w.at.touched = true
	return w.at, nil
}

// walk follows a path component by component.
type walk struct {
	t       *target
	create  bool     // make missing directories
	at      *openDir // where it is; nil once a component is missing
	path    string   // the resolved path of at, or of what is missing
	links   int
	missing bool
}

// to walks to p. Without create, a path that does not exist leaves missing set and path as far as it is known.
func (w *walk) to(p string) error {
	w.at, w.path = w.t.root, "."
	todo := strings.Split(p, "/")
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if w.t.steps++; w.t.steps > w.t.limit {
			return diag.Errorf(diag.Exhausted, "%q: more than %d steps through directories and symlinks", p, w.t.limit)
		}
		switch name {
		case "", ".":
			continue
		case "..":
			if err := w.up(); err != nil {
				return err
			}
			continue
		}
		link, err := w.into(name)
		if err != nil {
			return err
		}
		if link == "" {
			continue
		}
		if w.links++; w.links > maxLinks {
			return diag.Errorf(diag.Invalid, "%q: leads through more than %d symlinks", p, maxLinks)
		}
		if link[0] == '/' {
			w.at, w.path, w.missing = w.t.root, ".", false
		}
		todo = append(strings.Split(link, "/"), todo...)
	}
	return nil
}

func (w *walk) up() error {
	w.path, _ = split(w.path)
	if w.missing {
		return nil
	}
	at, err := w.t.dir(w.path)
	if err != nil {
		return sysError("open", w.path, err)
	}
	w.at = at
	return nil
}

// into goes to name, or returns the target of the symlink that it is.
func (w *walk) into(name string) (link string, err error) {
	next := join(w.path, name)
	if len(next) > maxPath {
		return "", diag.Errorf(diag.Invalid, "a path of more than %d bytes (%.60q…)", maxPath, next)
	}
	if w.missing {
		w.path = next
		return "", nil
	}
	at, err := w.t.child(w.at, name)
	switch err {
	case nil:
		w.at, w.path = at, next
		return "", nil
	case unix.ENOENT:
		if !w.create {
			w.at, w.path, w.missing = nil, next, true
			return "", nil
		}
		if err := w.t.made(next); err != nil {
			return "", err
		}
		return "", w.mkdir(name, next)
	case unix.ELOOP, unix.ENOTDIR:
		return w.notDir(name, next)
	}
	return "", sysError("open", next, err)
}

func (w *walk) notDir(name, next string) (link string, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(w.at.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return "", sysError("stat", next, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return readlink(w.at.fd, name, next)
	}
	if !isWhiteout(&st) {
		return "", diag.Errorf(diag.Invalid, "%q: is not a directory, but other entries are below it", next)
	}
	if !w.create {
		w.at, w.path, w.missing = nil, next, true
		return "", nil
	}
	// Deleted, then made again: nothing of the layers below shows through.
	if err := unix.Unlinkat(w.at.fd, name, 0); err != nil {
		return "", sysError("remove", next, err)
	}
	if err := w.mkdir(name, next); err != nil {
		return "", err
	}
	return "", setOpaque(w.at)
}

// mkdir makes an implied directory: 0755, root's, of 1970.
func (w *walk) mkdir(name, next string) error {
	w.at.touched = true
	if err := unix.Mkdirat(w.at.fd, name, 0o755); err != nil {
		return sysError("make directory", next, err)
	}
	inherits := w.at.setgid
	at, err := w.t.child(w.at, name)
	if err != nil {
		return sysError("open", next, err)
	}
	if inherits {
		if err := unix.Fchown(at.fd, unix.Geteuid(), unix.Getegid()); err != nil {
			return sysError("chown", next, err)
		}
	}
	if err := unix.Fchmod(at.fd, 0o755); err != nil { // whatever the umask is
		return sysError("chmod", next, err)
	}
	at.mtime, at.touched, at.setgid = unix.Timespec{}, true, false
	w.at, w.path = at, next
	return nil
}

func readlink(fd int, name, p string) (string, error) {
	buf := make([]byte, maxPath+1)
	n, err := unix.Readlinkat(fd, name, buf)
	if err != nil {
		return "", sysError("read the link", p, err)
	}
	if n == 0 {
		return ".", nil
	}
	return string(buf[:n]), nil
}

func isWhiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }
