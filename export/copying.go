package export

import (
	"context"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/outfile"
	"github.com/strata-build/strata/tree"
)

// copying is the copy of one tree.
type copying struct {
	ctx   context.Context
	env   *Env
	src   int
	dst   *dest
	epoch *time.Time
	g     *errgroup.Group
	bytes atomic.Int64
	said  atomic.Int64

	mu    sync.Mutex
	dirs  []madeDir
	left  []string               // what was not written as it is in the result
	links map[tree.FileID]string // where the first name of a file with several went
	later []hardlink
}

type madeDir struct {
	src, rel string // where it is in the tree, and where it went
	e        *tree.Entry
}

type hardlink struct{ from, to string }

// batch is how many files of one directory are a task.
const batch = 256

// dir copies what a directory holds. Tasks are never waited for by tasks: what is below goes on in this one if all
// workers are busy.
func (c *copying) dir(p *tree.Pick, src, dst string) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	c.mu.Lock()
	c.dirs = append(c.dirs, madeDir{src, dst, p.Entry})
	c.mu.Unlock()
	var plain []*tree.Entry
	err := c.dst.Owner.Do(func() error {
		to, err := outfile.Beneath(c.dst.Fd(), dst, unix.O_DIRECTORY|unix.O_PATH)
		if err != nil {
			return err
		}
		defer unix.Close(to)
		for i := range p.Kids {
			k := &p.Kids[i]
			left := c.leftOut(k.Entry, path.Join(dst, k.Name))
			switch {
			case k.IsDir():
				if err := mkdirAt(to, k.Name); err != nil {
					return &os.PathError{Op: "mkdir", Path: path.Join(dst, k.Name), Err: err}
				}
			case left:
				continue
			default:
				plain = append(plain, k.Entry)
			}
			c.dst.keep(path.Join(dst, k.Name), k.IsDir())
		}
		return nil
	})
	if err != nil {
		return err
	}
	for part := range slices.Chunk(plain, batch) {
		if err := c.task(func() error { return c.batch(part, src, dst) }); err != nil {
			return err
		}
	}
	for i := range p.Kids {
		if k := &p.Kids[i]; k.IsDir() {
			if err := c.task(func() error { return c.dir(k, path.Join(src, k.Name), path.Join(dst, k.Name)) }); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *copying) task(f func() error) error {
	if c.g.TryGo(f) {
		return nil
	}
	return f()
}

func (c *copying) batch(part []*tree.Entry, src, dst string) error {
	from, err := outfile.Beneath(c.src, path.Join(".", src), unix.O_DIRECTORY|unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to := -1
	err = c.dst.Owner.Do(func() (err error) {
		to, err = outfile.Beneath(c.dst.Fd(), dst, unix.O_DIRECTORY|unix.O_PATH)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(to)
	for _, e := range part {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if c.linked(e, path.Join(dst, e.Name)) {
			continue
		}
		if err := c.file(from, to, e, path.Join(dst, e.Name)); err != nil {
			return &os.PathError{Op: "write", Path: path.Join(dst, e.Name), Err: err}
		}
	}
	return nil
}

// linked reports whether e is another name of a file that is copied elsewhere; it is linked at the end.
func (c *copying) linked(e *tree.Entry, dst string) bool {
	if e.Nlink < 2 || !e.IsRegular() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := e.ID()
	first, ok := c.links[key]
	if !ok {
		c.links[key] = dst
		return false
	}
	c.later = append(c.later, hardlink{first, dst})
	return true
}

// file copies one file. It is read with the rights of this process, and written with those of the directory's owner.
func (c *copying) file(from, to int, e *tree.Entry, rel string) error {
	var in *os.File
	if e.IsRegular() {
		fd, err := unix.Openat(from, e.Name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		in = os.NewFile(uintptr(fd), rel)
		defer in.Close()
	}
	return c.dst.Owner.Do(func() error {
		err := c.create(in, to, e)
		if errors.Is(err, unix.EEXIST) {
			if err = outfile.RemoveAll(to, e.Name); err == nil {
				err = c.create(in, to, e)
			}
		}
		return err
	})
}

func (c *copying) times(e *tree.Entry) []unix.Timespec {
	ns := e.MTime
	if c.epoch != nil {
		ns = min(ns, c.epoch.UnixNano())
	}
	t := unix.NsecToTimespec(ns)
	return []unix.Timespec{t, t}
}

// create makes a file of any type; EEXIST if the name is taken.
func (c *copying) create(in *os.File, to int, e *tree.Entry) error {
	var err error
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.regular(in, to, e)
	case unix.S_IFLNK:
		err = unix.Symlinkat(e.Link, to, e.Name)
	default:
		if err = unix.Mknodat(to, e.Name, e.Mode&unix.S_IFMT|0o600, int(e.Rdev)); err == nil {
			err = outfile.Chmod(to, e.Name, c.dst.mode(e.Mode))
		}
	}
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(to, e.Name, c.times(e), unix.AT_SYMLINK_NOFOLLOW)
}

func (c *copying) regular(in *os.File, to int, e *tree.Entry) (err error) {
	out, err := unix.Openat(to, e.Name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	w := os.NewFile(uintptr(out), e.Name)
	defer func() { err = errors.Join(err, w.Close()) }()
	if e.Size > 0 {
		n, err := io.Copy(w, in)
		c.bytes.Add(n)
		c.report(false)
		if err != nil {
			return err
		}
	}
	if err := c.attributes(in, w); err != nil {
		return err
	}
	return errors.Join(unix.Fchmod(out, c.dst.mode(e.Mode)), setTimes(out, c.times(e)))
}

// wait ends the copy of what is not a directory: links to files with several names come last.
func (c *copying) wait() error {
	if err := c.g.Wait(); err != nil {
		return err
	}
	for _, l := range c.later {
		if err := c.dst.Owner.Do(func() error { return c.link(l) }); err != nil {
			return &os.LinkError{Op: "link", Old: l.from, New: l.to, Err: err}
		}
	}
	return nil
}

// finishDirs gives directories their modes and times, deepest first, when nothing below them changes any more.
func (c *copying) finishDirs() error {
	slices.SortFunc(c.dirs, func(a, b madeDir) int { return len(b.rel) - len(a.rel) })
	for _, d := range c.dirs {
		if d.rel == "." {
			continue // the client's own directory keeps its mode
		}
		fd, err := outfile.Beneath(c.src, path.Join(".", d.src), unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		from := os.NewFile(uintptr(fd), d.rel)
		err = c.dst.Owner.Do(func() error { return c.finish(from, d) })
		from.Close()
		if err != nil {
			return &os.PathError{Op: "chmod", Path: d.rel, Err: err}
		}
	}
	return nil
}

// finish gives a directory its attributes, mode and time.
func (c *copying) finish(from *os.File, d madeDir) error {
	fd, err := outfile.Beneath(c.dst.Fd(), d.rel, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	to := os.NewFile(uintptr(fd), d.rel)
	return errors.Join(c.attributes(from, to), unix.Fchmod(fd, c.dst.mode(d.e.Mode)), setTimes(fd, c.times(d.e)), to.Close())
}

func (c *copying) link(l hardlink) error {
	from, err := outfile.Beneath(c.dst.Fd(), path.Dir(l.from), unix.O_DIRECTORY|unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, err := outfile.Beneath(c.dst.Fd(), path.Dir(l.to), unix.O_DIRECTORY|unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	name := path.Base(l.to)
	err = unix.Linkat(from, path.Base(l.from), to, name, 0)
	if errors.Is(err, unix.EEXIST) {
		if err = outfile.RemoveAll(to, name); err == nil {
			err = unix.Linkat(from, path.Base(l.from), to, name, 0)
		}
	}
	return err
}

// report says how much was copied, each time that another mebibyte was.
func (c *copying) report(done bool) {
	n := c.bytes.Load()
	last := c.said.Load()
	if !done && (n-last < 1<<20 || !c.said.CompareAndSwap(last, n)) {
		return
	}
	c.env.Events.Emit(event.Event{Kind: event.Progress, Vertex: c.env.Vertex, Item: "copying files", Action: "copying", Current: n, Complete: done})
}
