package tree

import (
	"context"
	"os"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// CopyOptions say how a copy differs from its source.
type CopyOptions struct {
	Own     func(mode, uid, gid uint32) (newMode, newUID, newGID uint32) // nil = as in the source; mode is st_mode
	Time    *time.Time                                                   // mtime of all that is written; nil = the source's
	Replace bool                                                         // replace what is there, even of another type
	Earlier *Lineage                                                     // where unchanged files are taken from; may be nil
	Sockets bool                                                         // sockets stay sockets; otherwise they become empty files
	Moved   bool                                                         // no tree has both the source and the copy: files of any path are linked
}

// Copy copies a picked file or directory to dest, a path of the merged tree without symlinks, whose parent exists. A
// directory is merged into one that is there, which keeps its owner and mode. Hard links within the pick stay hard links.
//
// A large copy shares files with other layers by hard links, which is safe because layers never change: with the source,
// where path, owner, mode and time stay the same, and with an earlier layer that has the same file at the same place.
func (u *Upper) Copy(ctx context.Context, f *Files, m *Match, dest string, opt CopyOptions) error {
	c := &copier{u: u, f: f, opt: opt, groups: map[inode]*linkGroup{}, several: map[string]map[inode]bool{}, share: opt.Moved || m.isLarge()}
	if opt.Own == nil {
		c.opt.Own = func(mode, uid, gid uint32) (uint32, uint32, uint32) { return mode, uid, gid }
	}
	n, err := u.node(dest)
	if err != nil {
		return err
	}
	if !m.IsDir() {
		if dest == "" {
			return diag.Errorf(diag.Invalid, "a file cannot be copied over the root directory")
		}
		parent, err := u.parent(dest)
		if err != nil {
			return err
		}
		named := m.Pick
		target := place{rel: parent.rel, lower: parent.dirs[1:], as: path.Base(dest)}
		from := parentOf(m.Rel)
		err = runTasks(ctx, func(t *tasks) error {
			j := &copyDir{c: c, t: t, src: from, at: target, keep: true}
			return j.files([]*Pick{&named})
		})
		return err
	}
	j := &copyDir{c: c, p: &m.Pick, src: m.Rel, at: place{rel: dest}}
	switch {
	case n.isDir():
		if n, err = u.ensure(dest); err != nil {
			return err
		}
		j.at.lower = n.dirs[1:]
		u.times[dest] = c.time(m.Entry)
		j.keep = true
	default:
		parent, err := u.parent(dest)
		if err != nil {
			return err
		}
		at := place{rel: parent.rel, lower: parent.dirs[1:]}
		if j.at, err = c.makeDir(&at, &m.Pick, m.Rel, path.Base(dest)); err != nil {
			return err
		}
	}
	return runTasks(ctx, func(t *tasks) error { j.t = t; return j.run() })
}

// place is a directory of the layer that files go into.
type place struct {
	rel   string
	lower []string // the same directory in the layers below, on this machine, top first
	fresh bool     // made by this copy: nothing is in it
	as    string   // the name that the one file gets, instead of its own
}

// copier is one copy.
type copier struct {
	u   *Upper
	f   *Files
	opt CopyOptions

	share bool // link files of other layers

	mu      sync.Mutex
	groups  map[inode]*linkGroup
	several map[string]map[inode]bool // by the directory of a layer below: its files that have several names
	noRange atomic.Bool               // copy_file_range does not work between the two
	noLink  atomic.Bool               // link does not
}

// A copy of at least so many files or bytes shares them with other layers. Smaller ones do not: a step sees the link count
// of a shared file, and some programs refuse files with more than one name (cron does), while copying takes milliseconds.
const (
	sharedFiles = 256
	sharedBytes = 16 << 20
)

// isLarge reports whether the pick has enough files or bytes to share them.
func (p *Pick) isLarge() bool {
	files, bytes := 0, int64(0)
	var add func(p *Pick) bool
	add = func(p *Pick) bool {
		if p.IsRegular() {
			files++
			bytes += p.Size
		}
		return files >= sharedFiles || bytes >= sharedBytes || slices.ContainsFunc(p.Kids, func(k Pick) bool { return add(&k) })
	}
	return add(p)
}

// linkGroup is a file of the source with several names.
type linkGroup struct {
	mu    sync.Mutex
	rel   string // its first name in the layer
	names int
}

func (c *copier) time(e *Entry) int64 {
	if c.opt.Time != nil {
		return c.opt.Time.UnixNano()
	}
	return e.MTime
}

// existing is what is at a name of a place.
type existing struct {
	upper bool   // the layer has an entry there, perhaps a whiteout
	kind  uint32 // type bits of what the merged tree shows; 0 = nothing
	lower []string
	below string      // a file of a layer below that is seen there, on this machine; "" = none
	st    unix.Stat_t // of below
}

func (c *copier) look(at *place, name string) (x existing, err error) {
	if at.fresh && len(at.lower) == 0 {
		return x, nil
	}
	var st unix.Stat_t
	host := c.u.draft.Dir + "/" + joinRel(at.rel, name)
	if err := unix.Lstat(host, &st); err == nil {
		x.upper = true
		if isWhiteout(st.Mode, uint64(st.Rdev)) {
			return x, nil
		}
		if x.kind = st.Mode & unix.S_IFMT; x.kind != unix.S_IFDIR {
			return x, nil
		}
		if opaque, err := isOpaque(host); err != nil || opaque {
			return x, err
		}
	} else if !missing(err) {
		return x, &os.PathError{Op: "lstat", Path: "/" + joinRel(at.rel, name), Err: err}
	}
	for _, dir := range at.lower {
		host := dir + "/" + name
		if err := unix.Lstat(host, &st); err != nil {
			continue
		}
		typ := st.Mode & unix.S_IFMT
		if isWhiteout(st.Mode, uint64(st.Rdev)) {
			break
		}
		if x.kind == 0 {
			x.kind = typ
		}
		if typ != unix.S_IFDIR {
			if x.kind == typ && !x.upper {
				x.below, x.st = host, st
			}
			break
		}
		x.lower = append(x.lower, host)
		if opaque, err := isOpaque(host); err != nil || opaque {
			return x, err
		}
	}
	return x, nil
}

// makeDir makes or merges the directory that a copied directory becomes.
func (c *copier) makeDir(at *place, p *Pick, src, name string) (place, error) {
	rel := joinRel(at.rel, name)
	host := c.u.draft.Dir + "/" + rel
	x, err := c.look(at, name)
	if err != nil {
		return place{}, err
	}
	isDir := x.kind == unix.S_IFDIR
	if x.kind != 0 && !isDir && !c.opt.Replace {
		return place{}, diag.Errorf(diag.Invalid, "cannot copy a directory over the file %q", "/"+rel)
	}
	pl := place{rel: rel, lower: x.lower, fresh: !x.upper || !isDir}
	if x.upper && !isDir {
		if _, err := c.u.vacate(host); err != nil {
			return pl, &os.PathError{Op: "remove", Path: "/" + rel, Err: err}
		}
	}
	if pl.fresh {
		if err := unix.Mkdir(host, 0o700); err != nil {
			return pl, &os.PathError{Op: "mkdir", Path: "/" + rel, Err: err}
		}
		c.u.files.Add(1)
		if x.upper && len(at.lower) > 0 {
			if err := unix.Lsetxattr(host, opaqueAttr, []byte("y"), 0); err != nil {
				return pl, &os.PathError{Op: "setxattr", Path: "/" + rel, Err: err}
			}
		}
	}
	if p.partial && isDir {
		return pl, c.keepDir(&pl, p, host)
	}
	mode, uid, gid := c.opt.Own(p.Mode, p.UID, p.GID)
	if err := c.u.own(host, mode&0o7777, uid, gid); err != nil {
		return pl, err
	}
	if c.f.overlay {
		copyAttrs(c.f.host(p.Entry, src), host)
	} else if c.f.clientAttrs(p) != nil {
		return pl, c.dirAttrs(src, host)
	}
	return pl, nil
}

// dirAttrs copies the attributes of a client's directory.
func (c *copier) dirAttrs(src, host string) error {
	in, err := c.f.open(0, src, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	out, err := unix.Open(host, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: host, Err: err}
	}
	defer unix.Close(out)
	copyClientAttrs(in, out)
	return nil
}

// keepDir is for a directory that exists and is there only for what is copied below it: it keeps what it has but the mode.
func (c *copier) keepDir(pl *place, p *Pick, host string) error {
	if len(pl.lower) > 0 && pl.fresh {
		var st unix.Stat_t
		if err := unix.Lstat(pl.lower[0], &st); err != nil {
			return err
		}
		c.u.mu.Lock()
		err := c.u.copyUpMeta(pl.lower[0], pl.rel, &st)
		c.u.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return unix.Chmod(host, p.Mode&0o7777)
}

// copyDir copies what is picked in one directory.
type copyDir struct {
	c    *copier
	t    *tasks
	p    *Pick
	src  string // path of the directory in the source
	at   place
	keep bool // the directory's time is not this copy's to set
	left atomic.Int32
}

func (j *copyDir) run() error {
	if err := j.t.stopped(); err != nil {
		return err
	}
	var files []*Pick
	for i := range j.p.Kids {
		k := &j.p.Kids[i]
		if !k.IsDir() {
			files = append(files, k)
			continue
		}
		src := joinRel(j.src, k.Name)
		at, err := j.c.makeDir(&j.at, k, src, k.Name)
		if err != nil {
			return err
		}
		sub := &copyDir{c: j.c, t: j.t, p: k, src: src, at: at, keep: k.partial && !at.fresh}
		j.t.add(sub.run)
	}
	j.left.Store(1)
	for part := range slices.Chunk(files, chunk) {
		if len(part) < chunk {
			if err := j.files(part); err != nil {
				return err
			}
			continue
		}
		j.left.Add(1)
		j.t.add(func() error {
			if err := j.files(part); err != nil {
				return err
			}
			return j.done()
		})
	}
	return j.done()
}

// done is called as each part of the directory ends; the last one sets its time.
func (j *copyDir) done() error {
	if j.left.Add(-1) > 0 || j.keep || j.p == nil {
		return nil
	}
	if err := setTimes(j.c.u.fd, dot(j.at.rel), j.c.time(j.p.Entry)); err != nil {
		return &os.PathError{Op: "utimes", Path: "/" + j.at.rel, Err: err}
	}
	return nil
}
