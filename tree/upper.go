package tree

import (
	"context"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/store"
)

// Upper is a layer that is being written on top of a stack, in overlayfs' form and without a mount. Paths are those of the
// merged tree; what they lead through is resolved within it. Directories of the layers below that get new content are
// made in the layer with the owner, mode, attributes and time that they have below.
//
// One goroutine at a time may call its methods.
type Upper struct {
	base  *Stack
	draft *store.Draft
	all   layers // the draft's directory first
	fd    int    // the draft's directory
	umask uint32
	euid  uint32
	egid  uint32

	files, bytes atomic.Int64
	skipped      atomic.Bool // something was not written, for it is there

	mu     sync.Mutex
	times  map[string]int64      // of directories, set at the end: their content comes after them
	made   map[string][]madeFile // by directory: for the next layer of this kind
	opaque bool                  // something else wrote into the layer: made does not say what is there
}

// inode identifies a file of one layer. Layers share files by hard links; within a layer these are really one file.
type inode struct {
	layer    int
	dev, ino uint64
}

// Meta is what a new file gets. Mode holds the permissions (07777).
type Meta struct {
	Mode     uint32
	UID, GID uint32
	Time     *time.Time // nil = now
}

// Stat is what a path of the merged tree is.
type Stat struct {
	Rel    string // without symlinks and without a leading slash; where it would be, if it does not exist
	Exists bool
	Mode   uint32 // as st_mode
}

// IsDir reports whether it exists and is a directory.
func (s Stat) IsDir() bool { return s.Exists && isType(s.Mode, unix.S_IFDIR) }

// NewUpper starts a layer on top of base, in the empty draft. The caller closes it; the draft stays the caller's.
func NewUpper(base *Stack, draft *store.Draft) (*Upper, error) {
	fd, err := openRoot(draft.Dir)
	if err != nil {
		return nil, err
	}
	u := &Upper{
		base: base, draft: draft, fd: fd, umask: umask(), euid: uint32(os.Geteuid()), egid: uint32(os.Getegid()), all: append(layers{draft.Dir}, base.dirs()...),
		times: map[string]int64{}, made: map[string][]madeFile{},
	}
	below, err := u.all[1:].root()
	if err == nil && len(u.all) > 1 {
		err = u.copyUpMeta(below.dirs[0], "", &below.st)
	}
	if err != nil {
		u.Close()
		return nil, err
	}
	return u, nil
}

// umask reads the process' umask without changing it.
func umask() uint32 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o777 // then every mode is set explicitly
	}
	_, rest, ok := strings.Cut(string(data), "\nUmask:")
	if !ok {
		return 0o777
	}
	var m uint32
	for _, c := range strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0]) {
		m = m<<3 | uint32(c-'0')
	}
	return m
}

// Close ends the writing.
func (u *Upper) Close() {
	if u.fd >= 0 {
		unix.Close(u.fd)
		u.fd = -1
	}
}

// Finish sets the times of the directories and returns what the layer holds.
func (u *Upper) Finish(ctx context.Context) (store.LayerInfo, error) {
	for rel, ns := range u.times {
		if err := setTimes(u.fd, dot(rel), ns); err != nil && err != unix.ENOENT {
			return store.LayerInfo{}, &os.PathError{Op: "utimes", Path: "/" + rel, Err: err}
		}
	}
	info := store.LayerInfo{ID: u.draft.ID, Size: u.bytes.Load(), Files: u.files.Load(), Created: time.Now()}
	if u.skipped.Load() { // directories were made for it
		got, err := u.base.dropDirs(ctx, u.draft.Dir, info.Created)
		if err != nil {
			return info, err
		}
		info.Files = got.Entries
	}
	return info, nil
}

func dot(rel string) string {
	if rel == "" {
		return "."
	}
	return rel
}

// Stat looks a path up; the last component is followed if follow is set.
func (u *Upper) Stat(p string, follow bool) (Stat, error) {
	n, err := u.all.find(p, follow)
	return Stat{Rel: n.rel, Exists: n.ok, Mode: n.st.Mode}, err
}

// node returns what is at a path without symlinks.
func (u *Upper) node(rel string) (node, error) { return u.all.find(rel, false) }

// ensure makes sure that the existing directory rel is there in the layer, and returns it.
func (u *Upper) ensure(rel string) (node, error) {
	n, err := u.all.root()
	if err != nil || rel == "" {
		return n, err
	}
	for name := range strings.SplitSeq(rel, "/") {
		if n, err = u.all.child(&n, name); err != nil {
			return n, err
		}
		if !n.isDir() {
			return n, diag.Errorf(diag.Invalid, "%q is not a directory", "/"+n.rel)
		}
		if n.in[0] == 0 {
			continue
		}
		if err := u.copyUp(&n); err != nil {
			return n, err
		}
	}
	return n, nil
}

// copyUp makes a directory of the layers below in the layer.
func (u *Upper) copyUp(n *node) error {
	if err := unix.Mkdirat(u.fd, n.rel, 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: "/" + n.rel, Err: err}
	}
	u.files.Add(1)
	if err := u.copyUpMeta(n.dirs[0], n.rel, &n.st); err != nil {
		return err
	}
	n.dirs, n.in, n.top = append([]string{path.Join(u.draft.Dir, n.rel)}, n.dirs...), append([]int{0}, n.in...), 0
	return nil
}

func (u *Upper) copyUpMeta(from, rel string, st *unix.Stat_t) error {
	to := path.Join(u.draft.Dir, rel)
	if err := u.own(to, st.Mode&0o7777, st.Uid, st.Gid); err != nil {
		return err
	}
	copyAttrs(from, to)
	u.times[rel] = nanos(st.Mtim)
	return nil
}

// own sets owner and mode of a directory or file of the layer that is no symlink.
func (u *Upper) own(host string, mode, uid, gid uint32) error {
	err := unix.Lchown(host, int(uid), int(gid))
	if err == unix.EPERM && u.euid != 0 && uid == u.euid {
		err = nil
	}
	if err == nil {
		err = unix.Chmod(host, mode)
	}
	if err != nil {
		return &os.PathError{Op: "chown", Path: strings.TrimPrefix(host, u.draft.Dir), Err: err}
	}
	return nil
}

// MkdirAll makes the directory that p resolves to, and its parents, where they do not exist. All that it makes get m.
func (u *Upper) MkdirAll(p string, m Meta) error {
	n, err := u.all.find(p, true)
	if err != nil {
		return err
	}
	at, err := u.all.root()
	if err != nil || n.rel == "" {
		return err
	}
	for name := range strings.SplitSeq(n.rel, "/") {
		kid, err := u.all.child(&at, name)
		if err != nil {
			return err
		}
		if kid.ok && !kid.isDir() {
			return diag.Errorf(diag.Invalid, "%q is not a directory", "/"+kid.rel)
		}
		if !kid.ok {
			if kid, err = u.makeDir(&at, name, m); err != nil {
				return err
			}
		}
		at = kid
	}
	return nil
}

// Mkdir makes one directory. One that exists is left as it is, whatever it is.
func (u *Upper) Mkdir(p string, m Meta) error {
	n, err := u.all.find(p, true)
	if err != nil || n.ok {
		return err
	}
	parent, err := u.parent(n.rel)
	if err != nil {
		return err
	}
	_, err = u.makeDir(&parent, path.Base(n.rel), m)
	return err
}

// parentOf is the directory of a path of a tree, without a leading slash.
func parentOf(p string) string { return strings.TrimPrefix(path.Dir(path.Join("/", p)), "/") }

// parent makes sure that the directory that holds rel is in the layer.
func (u *Upper) parent(rel string) (node, error) {
	dir := parentOf(rel)
	n, err := u.node(dir)
	if err != nil {
		return n, err
	}
	if !n.ok {
		return n, noFile("/"+rel, "its directory does not exist")
	}
	return u.ensure(dir)
}

// makeDir makes a directory that the merged tree does not have.
func (u *Upper) makeDir(at *node, name string, m Meta) (node, error) {
	if len(at.in) == 0 || at.in[0] != 0 {
		up, err := u.ensure(at.rel)
		if err != nil {
			return up, err
		}
		*at = up
	}
	rel := joinRel(at.rel, name)
	host := u.draft.Dir + "/" + rel
	hidden, err := u.vacate(host)
	if err == nil {
		err = unix.Mkdir(host, 0o700)
	}
	if err == nil && hidden && len(at.dirs) > 1 {
		err = unix.Lsetxattr(host, opaqueAttr, []byte("y"), 0)
	}
	if err != nil {
		return node{}, &os.PathError{Op: "mkdir", Path: "/" + rel, Err: err}
	}
	u.files.Add(1)
	if err := u.own(host, m.Mode, m.UID, m.GID); err != nil {
		return node{}, err
	}
	if m.Time != nil {
		u.times[rel] = m.Time.UnixNano()
	}
	n := node{rel: rel, ok: true, dirs: []string{host}, in: []int{0}}
	return n, unix.Lstat(host, &n.st)
}

// vacate removes what the layer itself has at a place. It reports whether there was something, which hid what is below.
func (u *Upper) vacate(host string) (bool, error) {
	var st unix.Stat_t
	err := unix.Lstat(host, &st)
	if missing(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !isWhiteout(st.Mode, uint64(st.Rdev)) {
		u.forget(strings.TrimPrefix(host, u.draft.Dir+"/"))
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return true, os.RemoveAll(host)
	}
	return true, unix.Unlink(host)
}

// forget drops what is known of the content of a file or a directory that is about to go.
func (u *Upper) forget(rel string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	dir, name := path.Split(rel)
	dir = strings.TrimSuffix(dir, "/")
	u.made[dir] = slices.DeleteFunc(u.made[dir], func(m madeFile) bool { return m.name == name })
	for d := range u.made {
		if d == rel || strings.HasPrefix(d, rel+"/") {
			delete(u.made, d)
		}
	}
}
