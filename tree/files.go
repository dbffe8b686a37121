package tree

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// Files is a picture of a tree: each directory is listed once and each file is looked at once, when something first
// reaches it. Its methods may be called from many goroutines.
type Files struct {
	roots   []*root // the directories that make up the tree, top first
	overlay bool    // they are layers; otherwise there is one, and its files belong to 0:0
	filter  *filter // what the client's directory shows; nil = all
	index   *Index  // digests known from earlier builds; may be nil
	mu      sync.Mutex
	top     Entry
}

// root is one directory on this machine.
type root struct {
	path string
	once sync.Once
	f    *os.File
	err  error

	counted  sync.Once
	several  map[inode]bool // regular files with several names below path
	countErr error
}

func (r *root) fd() (int, error) {
	r.once.Do(func() {
		fd, err := openRoot(r.path)
		if errors.Is(err, os.ErrNotExist) {
			err = diag.Errorf(diag.NotFound, "the directory %q does not exist", r.path)
		}
		if err != nil {
			r.err = err
			return
		}
		r.f = os.NewFile(uintptr(fd), r.path)
	})
	if r.err != nil {
		return -1, r.err
	}
	return int(r.f.Fd()), nil
}

func (r *root) close() {
	r.once.Do(func() { r.err = os.ErrClosed })
	if r.f != nil {
		r.f.Close()
	}
}

// Entry is a file of any type. Its fields do not change once a Pick shows it.
type Entry struct {
	Name         string // "" for the root
	Mode         uint32 // as st_mode
	UID, GID     uint32
	Nlink        uint32
	Size         int64
	MTime, CTime int64 // nanoseconds since 1970
	Dev, Ino     uint64
	Rdev         uint64
	Link         string // target of a symlink

	sum    [32]byte // sha256 of a regular file's content, if hashed; both guarded by Files.mu
	hashed bool
	racy   bool // it changed so shortly before it was looked at that its times cannot tell a further change
	known  bool // the fields above are filled; until then only Name and the type
	gone   bool // it vanished between listing and looking
	maybe  bool // a directory that the filter shows only if it shows something below it
	layer  int  // index of the root that has it
	dir    *dir // of a directory

	// attrs is the digest of the extended attributes that count, of a client's file that has some and whose content was hashed.
	attrs *[32]byte
}

// FileID tells the files of a tree apart: entries with equal IDs are names of one file.
type FileID inode

// ID returns the identity of the file. Layers share inodes; hard links exist within a layer only, as in the layer's tar.
func (e *Entry) ID() FileID { return FileID{e.layer, e.Dev, e.Ino} }

// IsDir reports whether it is a directory.
func (e *Entry) IsDir() bool { return isType(e.Mode, unix.S_IFDIR) }

// IsRegular reports whether it is a regular file.
func (e *Entry) IsRegular() bool { return isType(e.Mode, unix.S_IFREG) }

// IsLink reports whether it is a symlink.
func (e *Entry) IsLink() bool { return isType(e.Mode, unix.S_IFLNK) }

// dir is a directory of the merged tree.
type dir struct {
	rel    string // path from the root without a leading slash
	srcs   []int  // the roots that have it, top first
	kids   []Entry
	attrs  *[32]byte // as those of a file, once it is listed
	listed bool
	shown  shown // what the filter's patterns said about it
}

func newFiles(paths []string, overlay bool) *Files {
	f := &Files{overlay: overlay, top: Entry{Mode: unix.S_IFDIR, dir: &dir{}}}
	for i, p := range paths {
		f.roots = append(f.roots, &root{path: p})
		f.top.dir.srcs = append(f.top.dir.srcs, i)
	}
	if len(paths) == 0 { // scratch has a root directory, as a mount of it would
		f.top = Entry{Mode: unix.S_IFDIR | 0o755, known: true, dir: &dir{listed: true}}
	}
	return f
}

func (f *Files) close() {
	for _, r := range f.roots {
		r.close()
	}
}

func (f *Files) open(layer int, rel string, flags int) (int, error) {
	fd, err := f.roots[layer].fd()
	if err != nil {
		return -1, err
	}
	n, err := openIn(fd, rel, flags)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: "/" + rel, Err: err}
	}
	return n, nil
}

// host is the path of an entry of directory d on this machine. It is safe for layers only: their directories do not
// change.
func (f *Files) host(e *Entry, rel string) string { return f.roots[e.layer].path + "/" + rel }

// hasSeveralNames reports whether a layer has a file under more than one name. Its link count alone does not tell: other
// layers have names of it too.
func (f *Files) hasSeveralNames(e *Entry) (bool, error) {
	if e.Nlink < 2 {
		return false, nil
	}
	r := f.roots[e.layer]
	r.counted.Do(func() { r.several, r.countErr = severalNames(r.path) })
	return r.several[inode{dev: e.Dev, ino: e.Ino}], r.countErr
}

// severalNames finds the regular files that have more than one name below a layer's directory.
func severalNames(dir string) (map[inode]bool, error) {
	several := map[inode]bool{}
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: p, Err: err}
		}
		if st.Nlink > 1 {
			key := inode{dev: st.Dev, ino: st.Ino}
			_, again := several[key]
			several[key] = again
		}
		return nil
	})
	return several, err
}

// rootEntry returns the root directory's own entry.
func (f *Files) rootEntry() (*Entry, error) {
	if f.top.known {
		return &f.top, nil
	}
	fd, err := f.roots[0].fd()
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: f.roots[0].path, Err: err}
	}
	f.fill(&f.top, &st)
	for i := 0; f.overlay && i+1 < len(f.top.dir.srcs); i++ {
		opaque, err := isOpaque(f.roots[i].path)
		if err != nil {
			return nil, err
		}
		if opaque {
			f.top.dir.srcs = f.top.dir.srcs[:i+1]
		}
	}
	return &f.top, nil
}

func (f *Files) fill(e *Entry, st *unix.Stat_t) {
	e.Mode, e.UID, e.GID, e.Nlink = st.Mode, st.Uid, st.Gid, uint32(st.Nlink)
	e.Size, e.Dev, e.Ino, e.Rdev = st.Size, uint64(st.Dev), st.Ino, uint64(st.Rdev)
	e.MTime, e.CTime = nanos(st.Mtim), nanos(st.Ctim)
	e.known = true
	if !f.overlay {
		e.UID, e.GID = 0, 0
	}
}

// list reads the names of a directory, merged and filtered. Call it with f.mu held, for one directory from one
// goroutine at a time.
func (f *Files) list(d *dir) error {
	if d.listed {
		return nil
	}
	var err error
	if len(d.srcs) == 1 {
		err = f.listOne(d, d.srcs[0])
	} else {
		err = f.listMerged(d)
	}
	if err != nil {
		return err
	}
	slices.SortFunc(d.kids, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	if f.filter != nil {
		if err := f.filter.apply(d); err != nil {
			return err
		}
	}
	d.listed = true
	return nil
}

func (f *Files) names(layer int, rel string) ([]dirent, int, error) {
	fd, err := f.open(layer, rel, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, -1, err
	}
	names, err := readNames(fd, nil)
	if err != nil {
		unix.Close(fd)
		return nil, -1, &os.PathError{Op: "readdir", Path: "/" + rel, Err: err}
	}
	return names, fd, nil
}

func (f *Files) listOne(d *dir, layer int) error {
	names, fd, err := f.names(layer, d.rel)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !f.overlay {
		d.attrs = attrsOf(fd)
	}
	d.kids = make([]Entry, 0, len(names))
	for _, n := range names {
		typ, hidden, ok := f.typeOf(fd, n)
		if !ok || hidden {
			continue
		}
		d.kids = append(d.kids, newEntry(d, n.name, typ, layer))
	}
	return nil
}

func newEntry(d *dir, name string, typ uint32, layer int) Entry {
	e := Entry{Name: name, Mode: typ, layer: layer}
	if typ == unix.S_IFDIR {
		e.dir = &dir{rel: joinRel(d.rel, name), srcs: []int{layer}}
	}
	return e
}

// typeOf completes what readdir said of a name: its type, and whether it is a whiteout. ok is false if it is gone.
func (f *Files) typeOf(fd int, n dirent) (typ uint32, hidden, ok bool) {
	if n.typ != 0 && (n.typ != unix.S_IFCHR || !f.overlay) {
		return n.typ, false, true
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, n.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, false, false
	}
	return st.Mode & unix.S_IFMT, f.overlay && isWhiteout(st.Mode, uint64(st.Rdev)), true
}

// listMerged reads a directory that several layers have, top first.
func (f *Files) listMerged(d *dir) error {
	type seen struct {
		kid    int  // in d.kids, -1 for a whiteout
		closed bool // nothing below matters
	}
	have := map[string]seen{}
	for _, layer := range d.srcs {
		names, fd, err := f.names(layer, d.rel)
		if err != nil {
			return err
		}
		for _, n := range names {
			s, known := have[n.name]
			if known && s.closed {
				continue
			}
			typ, hidden, ok := f.typeOf(fd, n)
			switch {
			case !ok:
			case known && (hidden || typ != unix.S_IFDIR):
				have[n.name] = seen{kid: s.kid, closed: true}
			case known:
				kid := d.kids[s.kid].dir
				kid.srcs = append(kid.srcs, layer)
			case hidden:
				have[n.name] = seen{kid: -1, closed: true}
			default:
				d.kids = append(d.kids, newEntry(d, n.name, typ, layer))
				have[n.name] = seen{kid: len(d.kids) - 1, closed: typ != unix.S_IFDIR}
			}
		}
		unix.Close(fd)
	}
	return f.cutOpaque(d.kids)
}

// cutOpaque drops the layers that an opaque directory hides.
func (f *Files) cutOpaque(kids []Entry) error {
	for i := range kids {
		k := kids[i].dir
		if k == nil {
			continue
		}
		for j := 0; j+1 < len(k.srcs); j++ {
			opaque, err := isOpaque(f.roots[k.srcs[j]].path + "/" + k.rel)
			if err != nil {
				return err
			}
			if opaque {
				k.srcs = k.srcs[:j+1]
			}
		}
	}
	return nil
}

// look fills entries of directory d.
func (f *Files) look(d *dir, kids []*Entry) error {
	fds := make(map[int]int, 1)
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, e := range kids {
		if e.known || e.gone {
			continue
		}
		fd, ok := fds[e.layer]
		if !ok {
			var err error
			if fd, err = f.open(e.layer, d.rel, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
				return err
			}
			fds[e.layer] = fd
		}
		if err := f.lookAt(fd, d, e); err != nil {
			return err
		}
	}
	return nil
}

func (f *Files) lookAt(fd int, d *dir, e *Entry) error {
	var st unix.Stat_t
	err := unix.Fstatat(fd, e.Name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT || err == nil && st.Mode&unix.S_IFMT != e.Mode&unix.S_IFMT {
		e.gone = true // it vanished or became something else since the listing: it is not part of the picture
		return nil
	}
	if err == nil && isType(st.Mode, unix.S_IFLNK) {
		e.Link, err = readLink(fd, e.Name, st.Size)
	}
	if err != nil {
		return &os.PathError{Op: "stat", Path: "/" + joinRel(d.rel, e.Name), Err: err}
	}
	f.fill(e, &st)
	return nil
}
