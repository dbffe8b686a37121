package layer

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// Form is what whiteouts become.
type Form int

const (
	Overlay Form = iota // a layer directory: character devices 0:0 and opaque xattrs
	Remove              // a plain directory: what a whiteout names is removed
	Literal             // a plain directory: ".wh." names are names like others (ADD of a local archive)
)

// ApplyOptions say how a tar is unpacked. The zero value is for image layers.
type ApplyOptions struct {
	Form  Form
	Owner *Owner // owner of everything, instead of the tar's
	// KeepRoot leaves the directory itself as it is: an entry for the root, with whatever type, is skipped.
	KeepRoot bool
	// Unprivileged is for users without root's capabilities: owners are not set, device nodes and attributes that need
	// privileges are skipped, directories keep u+rwx. Whiteouts work since Linux 5.8.
	Unprivileged bool
	// Strict refuses what only broken or hostile tools write: a path that comes twice, "..", a hard link to anything but an
	// earlier file of the layer, an entry below a symlink of the layer. Applied then lists the markers.
	Strict     bool
	NoDevices  bool  // refuses device nodes
	MaxEntries int64 // entries and implied directories; 0 = 1,000,000, negative = no limit
	MaxBytes   int64 // bytes of the tar, and of the files in it, holes of sparse files included; 0 = 64 GiB, negative = no limit
	// Packed returns how many compressed bytes were read so far. With it, what the layer takes on the disk is bounded by them, as
	// by Limits: a million files of one byte are a small tar, of which little is left when it is compressed, and 4 GiB of blocks.
	Packed func() int64
	// Confined has the kernel keep the work to the directory, where it can (restrict.Confines). The stream is read elsewhere, with all
	// rights, and may still be read for a moment after an error. It costs a stream that is hashed beside the work a fifth of its speed.
	Confined bool
}

// Owner is a numeric user and group.
type Owner struct{ UID, GID uint32 }

// Applied says what Apply did, and what Finish has still to do. Paths are relative, clean and free of symlinks.
type Applied struct {
	Entries     int64    // entries of the tar, without global headers
	Files       int64    // regular files written, hard links not counted
	Bytes       int64    // content of those files
	TarSize     int64    // bytes of the tar, up to the end of the stream
	ImpliedDirs []string // sorted; directories without an entry: they look like the layers' below. "." is the root
	LowerLinks  []Link   // sorted; hard links to files of the layers below: an empty file holds their place
	OpaqueRoot  bool     // everything below is hidden
	Whiteouts   []string // with ApplyOptions.Strict: the paths that are hidden, in the order of the tar
	Opaque      []string // with ApplyOptions.Strict: the directories that hide what is below
}

// Link is a hard link.
type Link struct{ Path, Target string }

// Apply unpacks the uncompressed tar r into dir, an existing directory, and reads r to its end, or with the form Literal, not Strict, to the
// tar's end. Nothing outside of dir
// is ever touched, whatever the tar holds: hostile entries are refused with diag.Invalid, oversize ones with
// diag.Exhausted. Later entries of the same path win; parents that are symlinks are followed within dir. If it fails,
// dir holds a part of the layer and must be thrown away. Source of the format: image-spec layer.md.
func Apply(ctx context.Context, r io.Reader, dir string, opt ApplyOptions) (*Applied, error) {
	if opt.Confined {
		in := handedOver(r)
		defer in.Close()
		r = in
	}
	a, err := newApplier(ctx, r, dir, opt)
	if err != nil {
		return nil, err
	}
	if opt.Confined {
		err = a.t.confined(nil, a.run)
	} else if err = a.run(); err != nil {
		_ = a.t.close()
	} else {
		err = a.t.close()
	}
	if err != nil {
		return nil, err
	}
	a.out.TarSize = a.in.n
	if opt.Form == Overlay {
		a.out.ImpliedDirs = slices.Sorted(maps.Keys(a.implied))
	}
	for p, target := range a.pending {
		a.out.LowerLinks = append(a.out.LowerLinks, Link{p, target})
	}
	slices.SortFunc(a.out.LowerLinks, func(x, y Link) int { return strings.Compare(x.Path, y.Path) })
	return a.out, nil
}

type applier struct {
	ctx     context.Context
	opt     ApplyOptions
	t       *target
	in      *counted
	src     *bufio.Reader
	tr      *tar.Reader
	out     *Applied
	buf     []byte
	euid    int
	egid    int
	implied map[string]struct{}
	pending map[string]string // hard link -> file below
	kept    int               // bytes of names in these maps
	disk    int64             // bytes that the files take on the disk, about
	aufs    bool              // there is an AUFS link directory to remove
	strict  *strict           // nil = lenient
}

const (
	copyBuffer = 1 << 20
	// maxKept bounds the names that are kept in memory, in bytes.
	maxKept = 64 << 20
)

func newApplier(ctx context.Context, r io.Reader, dir string, opt ApplyOptions) (*applier, error) {
	if opt.MaxEntries == 0 {
		opt.MaxEntries = 1_000_000
	}
	if opt.MaxBytes == 0 {
		opt.MaxBytes = 64 << 30
	}
	t, err := openTarget(dir)
	if err != nil {
		return nil, err
	}
	a := &applier{
		ctx: ctx, opt: opt, t: t, out: &Applied{}, buf: make([]byte, copyBuffer), euid: unix.Geteuid(), egid: unix.Getegid(),
		implied: map[string]struct{}{}, pending: map[string]string{},
	}
	a.in = &counted{ctx: ctx, r: r, max: opt.MaxBytes}
	a.src = bufio.NewReaderSize(a.in, 128<<10) // headers come in pieces of 512 bytes
	a.tr = tar.NewReader(a.src)
	t.made = a.imply
	if opt.Form == Overlay {
		a.implied["."] = struct{}{}
	}
	if opt.Strict {
		a.strict = &strict{seen: map[string]pathKind{}, out: a.out}
	}
	return a, nil
}

// counted is the tar stream: it counts, stops at the limit and when the context ends.
type counted struct {
	ctx    context.Context
	r      io.Reader
	n, max int64
	err    error // the source's own
}

func (c *counted) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		c.err = context.Cause(c.ctx)
		return 0, c.err
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err == nil && c.max > 0 && c.n > c.max {
		err = diag.Errorf(diag.Exhausted, "the layer is larger than %d bytes", c.max)
	}
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

func (a *applier) run() error {
	for {
		h, err := a.tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil && !(h != nil && errors.Is(err, tar.ErrInsecurePath)) { // names are checked here
			return a.tarError(err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader { // git archive writes one
			continue
		}
		if err := a.count(); err != nil {
			return err
		}
		a.out.Entries++
		if err := a.occupy(content(h)); err != nil {
			return err
		}
		if err := a.entry(h); err != nil {
			return err
		}
	}
	// The digest of a layer covers what stands behind the end marker too. Nobody reads that of an archive, which may be zeros or
	// anything: GNU tar does not either.
	for a.opt.Form != Literal || a.opt.Strict {
		if _, err := a.src.Read(a.buf); err == io.EOF {
			break
		} else if err != nil {
			return a.tarError(err)
		}
	}
	if a.aufs {
		return removeAll(a.t.root.fd, aufsLinks, aufsLinks, a.gone)
	}
	return nil
}

// content is how many bytes an entry has that are written: holes take no place.
func content(h *tar.Header) int64 {
	switch {
	case h.Typeflag == tar.TypeDir:
		return blockSize
	case h.Typeflag == tar.TypeReg && !isPaxSparse(h):
		return h.Size
	}
	return 0
}

// tarError explains an error of the tar reader.
func (a *applier) tarError(err error) error {
	if a.in.err != nil {
		return a.in.err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || err == io.EOF {
		return diag.Errorf(diag.Invalid, "the layer is cut off after %d bytes: %w", a.in.n, io.ErrUnexpectedEOF)
	}
	return diag.Errorf(diag.Invalid, "not a valid tar, near byte %d: %w", a.in.n, err)
}

// count counts one more file system object.
func (a *applier) count() error {
	if a.opt.MaxEntries < 0 {
		return nil
	}
	if a.opt.MaxEntries--; a.opt.MaxEntries < 0 {
		return diag.Errorf(diag.Exhausted, "the layer has too many entries: %d were unpacked", a.out.Entries)
	}
	return nil
}

// imply records a directory that has no entry yet.
func (a *applier) imply(p string) error {
	if err := errors.Join(a.count(), a.occupy(blockSize)); err != nil {
		return err
	}
	a.implied[p] = struct{}{}
	return a.keep(len(p))
}

// What is written takes whole blocks, and an inode of its own.
const (
	blockSize = 4096
	inodeSize = 512
)

// occupy counts what an object with n bytes of content takes on the disk.
func (a *applier) occupy(n int64) error {
	a.disk += inodeSize + (n+blockSize-1)/blockSize*blockSize
	lim := Limits{}.withDefaults()
	if a.opt.Packed == nil || a.disk <= lim.RatioAbove || a.disk/lim.MaxRatio <= a.opt.Packed() {
		return nil
	}
	return diag.Errorf(diag.Exhausted, "the layer takes more than %d times its compressed size on the disk: %d bytes after %d entries", lim.MaxRatio, a.disk, a.out.Entries)
}

func (a *applier) keep(n int) error {
	if a.kept += n; a.kept > maxKept {
		return diag.Errorf(diag.Exhausted, "the layer has too many directories without an entry or links to lower layers")
	}
	return nil
}

// gone forgets what was known of a path that is no more.
func (a *applier) gone(p string) {
	delete(a.implied, p)
	delete(a.pending, p)
}

func (a *applier) entry(h *tar.Header) error {
	if err := checkHeader(h); err != nil {
		return err
	}
	p, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if a.strict != nil {
		if err := a.strict.check(p, h); err != nil {
			return err
		}
	}
	if a.opt.Form != Literal {
		m, hidden, err := parseMarker(p)
		switch {
		case err != nil:
			return err
		case m == ignored:
			return nil
		case m != noMarker:
			return a.mark(m, hidden)
		}
		a.aufs = a.aufs || strings.HasPrefix(p, aufsLinks)
	}
	if p == "." && a.opt.KeepRoot {
		return nil
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return a.directory(p, h)
	case tar.TypeLink:
		return a.hardlink(p, h)
	case tar.TypeChar, tar.TypeBlock:
		if a.opt.NoDevices {
			return diag.Errorf(diag.Invalid, "%q: device nodes are not allowed here", h.Name)
		}
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, tar.TypeSymlink, tar.TypeFifo:
	default:
		return diag.Errorf(diag.Invalid, "%q: entries of type %q are unknown", h.Name, h.Typeflag)
	}
	if p == "." {
		return diag.Errorf(diag.Invalid, "%q: the root must be a directory", h.Name)
	}
	dir, base := split(p)
	parent, err := a.t.parent(dir)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		return a.symlink(parent, base, h)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		return a.special(parent, base, h)
	}
	return a.file(parent, base, h)
}

// mark applies a whiteout or an opaque marker. Both are about the layers below only: what this layer itself has at the
// path stays, whichever comes first.
func (a *applier) mark(m marker, p string) error {
	if m == opaque {
		d, err := a.t.parent(p)
		if err != nil {
			return err
		}
		if a.opt.Form == Remove {
			return a.empty(d)
		}
		a.out.OpaqueRoot = a.out.OpaqueRoot || d == a.t.root
		return setOpaque(d)
	}
	dir, base := split(p)
	parent, err := a.t.parent(dir)
	if err != nil {
		return err
	}
	p = join(parent.path, base)
	if a.opt.Form == Remove {
		a.t.forget(p)
		return removeAll(parent.fd, base, p, a.gone)
	}
	err = unix.Mknodat(parent.fd, base, unix.S_IFCHR, 0)
	if err == unix.EEXIST {
		sub, err := a.t.child(parent, base)
		if err == unix.ENOTDIR || err == unix.ELOOP {
			return nil // a file of this layer, or the same whiteout
		}
		if err != nil {
			return sysError("open", p, err)
		}
		delete(a.implied, p)
		return setOpaque(sub)
	}
	if err != nil {
		return sysError("make the whiteout of", p, err)
	}
	// A fixed time, for those who compare layer directories.
	var ts [2]unix.Timespec
	if err := unix.UtimesNanoAt(parent.fd, base, ts[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return sysError("set the time of", p, err)
	}
	return nil
}

// empty removes what a plain directory holds.
func (a *applier) empty(d *openDir) error {
	// A second descriptor: listing moves the first one's position.
	fd, err := unix.Openat(d.fd, ".", openDirMode, 0)
	if err != nil {
		return sysError("open", d.path, err)
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		return sysError("list", d.path, err)
	}
	for _, n := range names {
		p := join(d.path, n)
		a.t.forget(p)
		if err := removeAll(d.fd, n, p, a.gone); err != nil {
			return err
		}
	}
	return nil
}
