package export

import (
	"bytes"
	"context"
	"io"
	"iter"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/outfile"
	"github.com/strata-build/strata/tree"
)

// files are the options of the two exporters that write plain files.
type files struct {
	src   string     // only this directory of the result; links in the result never lead out of it
	split *bool      // one directory per platform; nil = if there are several
	epoch *time.Time // no file is newer
	dest  string
	mark  string // begins the names of attestations' files

	noEpoch bool // not even the build's epoch counts
}

// epochOf is the time that no file of an image is newer than: the output's, or the build's.
func (f *files) epochOf(im *Image) *time.Time {
	if f.epoch != nil || f.noEpoch {
		return f.epoch
	}
	return im.Epoch
}

func (a *attrs) files(o Output) files {
	f := files{dest: o.Dest}
	a.flag("rewrite-timestamp", false) // no file is newer than the epoch in any case
	f.epoch, f.noEpoch = a.epoch()
	if v, ok := a.take("src"); ok {
		f.src = v
		if v == "" {
			a.fail(diag.Errorf(diag.Invalid, "output %s: src is empty", o.Type).WithHint("omit it to export the whole file system"))
		}
	}
	f.mark, _ = a.take("attestation-prefix")
	if _, ok := a.left["platform-split"]; ok {
		b := a.flag("platform-split", true)
		f.split = &b
	}
	return f
}

// prefix returns the directory that a platform's files go into: "." or "linux_arm_v7".
func (f *files) prefix(set *Set, im *Image) string {
	split := len(set.Images) > 1 || set.Multi
	if f.split != nil {
		split = *f.split
	}
	if !split {
		return "."
	}
	return fileNameOf(im)
}

// fileNameOf is the name of an image's platform as a part of a path.
func fileNameOf(im *Image) string {
	id := im.ID
	if id == "" {
		id = graph.FormatPlatform(im.Platform)
	}
	name := strings.NewReplacer("/", "_", `\`, "_", ":", "_").Replace(id)
	if name == "" || name == "." || name == ".." {
		return "_"
	}
	return name
}

// opened is a result whose files are being read.
type opened struct {
	top  *tree.Match
	view *tree.View
	fd   int // of the view's directory
}

func (o *opened) close() {
	unix.Close(o.fd)
	_ = o.view.Close() // it was only read
}

// open opens a result, and selects what is wanted of it.
func (f *files) open(ctx context.Context, im *Image) (*opened, error) {
	t, ok := im.Tree.(interface{ Files() (*tree.Files, error) })
	if !ok {
		return nil, diag.Errorf(diag.Internal, "the files of a %T cannot be listed", im.Tree)
	}
	all, err := t.Files()
	if err != nil {
		return nil, err
	}
	sel := graph.Select{Path: "/"}
	if f.src != "" {
		sel = graph.Select{Path: f.src, Follow: true}
	}
	m, err := all.Pick(ctx, sel, false)
	if err != nil && f.src != "" {
		return nil, diag.Errorf(diag.KindOf(err), "src=%s: %w", f.src, err)
	}
	if err != nil {
		return nil, err
	}
	if len(m) != 1 || !m[0].IsDir() {
		return nil, diag.Errorf(diag.Invalid, "src=%s: not a directory", f.src)
	}
	v, err := im.Tree.Open(ctx)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(v.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		_ = v.Close() // the first error matters
		return nil, &os.PathError{Op: "open", Path: v.Dir, Err: err}
	}
	return &opened{&m[0], v, fd}, nil
}

// Tar writes the file system of the result as a tar: the merged tree, without layers or whiteouts, in tar profile 1.
type Tar struct{ files }

// NewTar reads the attributes of type=tar.
func NewTar(o Output) (*Tar, error) {
	a := newAttrs(o)
	x := &Tar{a.files(o)}
	return x, a.done()
}

// Name implements Exporter.
func (x *Tar) Name() string { return "exporting to client tarball" }

// Export implements Exporter.
func (x *Tar) Export(ctx context.Context, e *Env, set *Set) (*Receipt, error) {
	parts, closeAll, err := x.parts(ctx, set)
	defer closeAll()
	if err != nil {
		return nil, err
	}
	// Two platforms that share a directory must still give a sorted archive, but that is the user's wish to merge them.
	slices.SortStableFunc(parts, func(a, b part) int { return strings.Compare(a.prefix, b.prefix) })
	out, err := e.output(ctx, x.dest)
	if err != nil {
		return nil, err
	}
	epoch := x.epoch
	if len(parts) > 0 {
		epoch = parts[0].epoch // a build has one for all
	}
	return &Receipt{Metadata: map[string]string{}}, e.stream(out, func(w io.Writer) error {
		_, err := layer.WriteEntries(ctx, w, entries(parts), layer.TarOptions{Epoch: epoch, UserXattrs: true})
		return err
	})
}

// entries lists the files of several results, each below its prefix.
func entries(parts []part) iter.Seq2[*layer.Entry, error] {
	return func(yield func(*layer.Entry, error) bool) {
		for _, p := range parts {
			l := &lister{o: p.opened, yield: yield, links: map[tree.FileID]string{}}
			if p.prefix != "." {
				e := entry(p.top.Entry)
				e.Path = p.prefix
				if !yield(e, nil) {
					return
				}
			}
			if !l.dir(&p.top.Pick, p.top.Rel, p.prefix) {
				return
			}
			for _, x := range p.extra {
				e := &layer.Entry{Type: layer.File, Path: path.Join(p.prefix, x.name), Mode: 0o600, Size: int64(len(x.raw)), ModTime: time.Now()}
				e.Open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(x.raw)), nil }
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

type lister struct {
	o     *opened
	yield func(*layer.Entry, error) bool
	links map[tree.FileID]string
}

func (l *lister) dir(p *tree.Pick, src, dst string) bool {
	for i := range p.Kids {
		k := &p.Kids[i]
		from := path.Join(src, k.Name)
		e := entry(k.Entry)
		if e == nil {
			continue // a socket
		}
		e.Path = path.Join(dst, k.Name)
		if e.Type == layer.File || e.Type == layer.Dir {
			e.Xattrs = tree.OutputAttrs(path.Join(l.o.view.Dir, from))
		}
		if e.Type == layer.File {
			l.file(k.Entry, e, from)
		}
		if !l.yield(e, nil) || k.IsDir() && !l.dir(k, from, e.Path) {
			return false
		}
	}
	return true
}

func (l *lister) file(k *tree.Entry, e *layer.Entry, from string) {
	if k.Nlink > 1 {
		id := k.ID()
		if first, ok := l.links[id]; ok {
			e.Type, e.Link, e.Size, e.Xattrs = layer.HardLink, first, 0, nil
			return
		}
		l.links[id] = e.Path
	}
	e.Open = func() (io.ReadCloser, error) {
		fd, err := outfile.Beneath(l.o.fd, from, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), from), nil
	}
}

// entry turns a file of a tree into an entry of a tar; nil for what a tar cannot hold.
func entry(k *tree.Entry) *layer.Entry {
	types := map[uint32]layer.EntryType{
		unix.S_IFREG: layer.File, unix.S_IFDIR: layer.Dir, unix.S_IFLNK: layer.Symlink,
		unix.S_IFCHR: layer.Char, unix.S_IFBLK: layer.Block, unix.S_IFIFO: layer.Fifo,
	}
	t, ok := types[k.Mode&unix.S_IFMT]
	if !ok {
		return nil
	}
	e := &layer.Entry{Type: t, Mode: k.Mode & 0o7777, UID: k.UID, GID: k.GID, ModTime: time.Unix(0, k.MTime), Link: k.Link}
	switch t {
	case layer.File:
		e.Size = k.Size
	case layer.Char, layer.Block:
		e.Major, e.Minor = unix.Major(k.Rdev), unix.Minor(k.Rdev)
	}
	return e
}
