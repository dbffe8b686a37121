package tree

import (
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// writer copies files from one directory into another.
type writer struct {
	j     *copyDir
	src   hasher // opens the source's files
	dst   int
	prev  int // the same directory of the earlier layer, -1 if it is not open
	known []madeFile
	made  []madeFile
	sgid  bool // new files would get the directory's group
}

func (j *copyDir) files(part []*Pick) error {
	if len(part) == 0 {
		return nil
	}
	w := &writer{j: j, src: hasher{f: j.c.f, d: &dir{rel: j.src}}, prev: -1}
	defer w.src.close()
	var err error
	if w.dst, err = openIn(j.c.u.fd, j.at.rel, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
		return &os.PathError{Op: "open", Path: "/" + j.at.rel, Err: err}
	}
	defer unix.Close(w.dst)
	var st unix.Stat_t
	if err := unix.Fstat(w.dst, &st); err != nil {
		return err
	}
	w.sgid = st.Mode&unix.S_ISGID != 0
	if e := j.c.opt.Earlier; e != nil {
		if w.known = e.dir(j.at.rel); len(w.known) > 0 {
			if w.prev, err = e.open(j.at.rel); err == nil {
				defer unix.Close(w.prev)
			}
		}
	}
	for _, k := range part {
		if err := j.t.stopped(); err != nil {
			return err
		}
		if err := w.file(k); err != nil {
			return err
		}
	}
	w.remember()
	return nil
}

func (w *writer) remember() {
	if len(w.made) == 0 {
		return
	}
	u := w.j.c.u
	u.mu.Lock()
	u.made[w.j.at.rel] = append(u.made[w.j.at.rel], w.made...)
	u.mu.Unlock()
}

// file copies one file that is no directory.
func (w *writer) file(k *Pick) error {
	c, name := w.j.c, k.Name
	if w.j.at.as != "" {
		name = w.j.at.as
	}
	rel := joinRel(w.j.at.rel, name)
	x, err := c.look(&w.j.at, name)
	if err != nil {
		return err
	}
	if x.kind == unix.S_IFDIR && !c.opt.Replace {
		return diag.Errorf(diag.Invalid, "cannot copy a file over the directory %q", "/"+rel)
	}
	if x.upper {
		if _, err := c.u.vacate(c.u.draft.Dir + "/" + rel); err != nil {
			return &os.PathError{Op: "remove", Path: "/" + rel, Err: err}
		}
	}
	if x.below != "" {
		if there, err := w.there(k, &x); err != nil || there {
			return err
		}
	}
	c.u.files.Add(1)
	if k.IsRegular() {
		return w.regular(k, name)
	}
	if err := w.special(k, name); err != nil {
		return &os.PathError{Op: "copy", Path: "/" + rel, Err: err}
	}
	return nil
}

// there reports whether a layer below shows what the copy would be. The content is read only where all else is equal.
func (w *writer) there(k *Pick, x *existing) (bool, error) {
	c, typ := w.j.c, k.Mode&unix.S_IFMT
	if typ == unix.S_IFSOCK {
		return false, nil
	}
	mode, uid, gid := c.opt.Own(k.Mode, k.UID, k.GID)
	if typ == unix.S_IFLNK {
		mode = k.Mode
	}
	want := unix.Stat_t{Mode: typ | mode&0o7777, Uid: uid, Gid: gid, Size: x.st.Size, Mtim: timespec(c.time(k.Entry)), Rdev: k.Rdev}
	if typ == unix.S_IFREG {
		want.Size = k.Size
	}
	if !sameStat(&want, &x.st) {
		return false, nil
	}
	if c.f.overlay {
		if !sameAttrs(c.f.host(k.Entry, joinRel(w.j.src, k.Name)), x.below) {
			return false, nil
		}
	} else if k.attrs != nil || len(listAttrs(x.below)) > 0 {
		return false, nil
	}
	if several, err := w.severalNames(k, x); err != nil || several {
		return false, err
	}
	switch typ {
	case unix.S_IFLNK:
		to, err := os.Readlink(x.below)
		c.skip(err == nil && to == k.Link)
		return err == nil && to == k.Link, err
	case unix.S_IFREG:
		return w.sameContent(k, x)
	}
	c.skip(true)
	return true, nil
}

// severalNames reports whether the source's file or the one below has another name in its tree. Then a copy is not what is there.
func (w *writer) severalNames(k *Pick, x *existing) (bool, error) {
	c := w.j.c
	several := k.Nlink > 1
	if c.f.overlay {
		var err error
		if several, err = c.f.hasSeveralNames(k.Entry); err != nil {
			return false, err
		}
	}
	if several || x.st.Nlink < 2 {
		return several, nil
	}
	layer := strings.TrimSuffix(x.below, "/"+joinRel(w.j.at.rel, path.Base(x.below)))
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok := c.several[layer]
	if !ok {
		var err error
		if known, err = severalNames(layer); err != nil {
			return false, err
		}
		c.several[layer] = known
	}
	return known[inode{dev: x.st.Dev, ino: x.st.Ino}], nil
}

func (w *writer) sameContent(k *Pick, x *existing) (bool, error) {
	var st unix.Stat_t
	fd, err := w.src.open(k.Entry, &st)
	if err != nil {
		return false, err
	}
	in := os.NewFile(uintptr(fd), k.Name)
	defer in.Close()
	if !sameFile(k.Entry, &st) && !w.j.c.f.overlay {
		return false, changed("/" + joinRel(w.j.src, k.Name))
	}
	below, err := os.Open(x.below)
	if err != nil {
		return false, err
	}
	defer below.Close()
	same, err := sameBytes(w.j.t.ctx, in, below)
	w.j.c.skip(same)
	return same, err
}

// skip notes that a file was not copied.
func (c *copier) skip(same bool) {
	if same {
		c.u.skipped.Store(true)
	}
}

// special makes symlinks, devices and pipes. Unless asked otherwise, a socket becomes an empty file: nobody listens to a copy.
func (w *writer) special(k *Pick, name string) error {
	c := w.j.c
	mode, uid, gid := c.opt.Own(k.Mode, k.UID, k.GID)
	var err error
	switch typ := k.Mode & unix.S_IFMT; {
	case typ == unix.S_IFLNK:
		err = unix.Symlinkat(k.Link, w.dst, name)
	case typ == unix.S_IFSOCK && !c.opt.Sockets:
		err = unix.Mknodat(w.dst, name, unix.S_IFREG|0o600, 0)
	default:
		if isWhiteout(k.Mode, k.Rdev) {
			return diag.Errorf(diag.Invalid, "a character device 0:0 would delete the file of that name")
		}
		err = unix.Mknodat(w.dst, name, typ|0o600, int(k.Rdev))
	}
	if err == nil && (uid != c.u.euid || gid != c.u.egid || w.sgid) {
		err = unix.Fchownat(w.dst, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil && !k.IsLink() {
		err = unix.Fchmodat(w.dst, name, mode&0o7777, 0)
	}
	if err == nil && c.f.overlay {
		copyAttrs(c.f.host(k.Entry, joinRel(w.j.src, k.Name)), path.Join(c.u.draft.Dir, w.j.at.rel, name))
	}
	if err == nil {
		err = setTimes(w.dst, name, c.time(k.Entry))
	}
	return err
}

// regular copies a regular file, or links to it where that is the same.
func (w *writer) regular(k *Pick, name string) error {
	c := w.j.c
	if k.Nlink < 2 {
		return w.content(k, name, nil)
	}
	key := inode{k.layer, k.Dev, k.Ino}
	c.mu.Lock()
	g := c.groups[key]
	if g == nil {
		g = &linkGroup{}
		c.groups[key] = g
	}
	c.mu.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.names++
	if g.names == 1 {
		g.rel = joinRel(w.j.at.rel, name)
		return w.content(k, name, g)
	}
	if err := unix.Linkat(c.u.fd, g.rel, w.dst, name, 0); err != nil {
		return &os.PathError{Op: "link", Path: "/" + joinRel(w.j.at.rel, name), Err: err}
	}
	return nil
}

func (w *writer) content(k *Pick, name string, g *linkGroup) error {
	c := w.j.c
	mode, uid, gid := c.opt.Own(k.Mode, k.UID, k.GID)
	m := madeFile{name: name, mode: mode & 0o7777, uid: uid, gid: gid, mtime: c.time(k.Entry), size: k.Size, sum: k.Sum, group: g}
	inherits := k.Hashed && w.isPlain(k)
	linked, err := w.link(k, &m, inherits)
	if err != nil {
		return err
	}
	if inherits {
		w.made = append(w.made, m)
	}
	switch {
	case linked:
		return nil
	case k.Size > bigFile && g == nil:
		return w.later(k, m)
	}
	return w.copy(k, &m)
}

// later copies a big file in a task of its own.
func (w *writer) later(k *Pick, m madeFile) error {
	j := w.j
	j.left.Add(1)
	j.t.add(func() error {
		big := &writer{j: j, src: hasher{f: j.c.f, d: &dir{rel: j.src}}, prev: -1, sgid: w.sgid}
		defer big.src.close()
		var err error
		if big.dst, err = openIn(j.c.u.fd, j.at.rel, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
			return err
		}
		defer unix.Close(big.dst)
		if err := big.copy(k, &m); err != nil {
			return err
		}
		return j.done()
	})
	return nil
}

// isPlain reports whether a file has no attributes that keys count. A lineage knows nothing about attributes, so it holds and
// replaces plain files only.
func (w *writer) isPlain(k *Pick) bool {
	if w.j.c.f.overlay {
		return len(counted(w.j.c.f.host(k.Entry, joinRel(w.j.src, k.Name)))) == 0
	}
	return k.attrs == nil
}

// link gives the file its name without copying it, if another layer has one that is the same in all that counts, under the
// same path. That rule keeps sharing invisible in every stack of layers: of two layers that share a file, the upper one
// hides the other's name. For the same reason a file that has several names in its own layer is not shared: the other
// names could be seen beside the new one. inherits says that the file of the earlier layer may stand in.
func (w *writer) link(k *Pick, m *madeFile, inherits bool) (bool, error) {
	c := w.j.c
	if !c.share || c.noLink.Load() {
		return false, nil
	}
	rel := joinRel(w.j.at.rel, m.name)
	from := -1
	name := m.name
	if c.f.overlay && (c.opt.Moved || joinRel(w.j.src, k.Name) == rel) && k.Mode&0o7777 == m.mode && k.UID == m.uid && k.GID == m.gid && k.MTime == m.mtime {
		several, err := c.f.hasSeveralNames(k.Entry)
		if err == nil && !several {
			from, err = w.src.dirFD(k.layer)
			name = k.Name
		}
		if err != nil {
			return false, err
		}
	}
	if from < 0 && w.prev >= 0 && inherits && has(w.known, m) {
		from = w.prev
	}
	if from < 0 {
		return false, nil
	}
	err := unix.Linkat(from, name, w.dst, m.name, 0)
	switch err {
	case nil:
		return true, nil
	case unix.EXDEV, unix.EPERM, unix.EOPNOTSUPP:
		c.noLink.Store(true)
	case unix.EMLINK, unix.ENOENT:
	default:
		return false, &os.PathError{Op: "link", Path: "/" + rel, Err: err}
	}
	return false, nil
}

// copy writes a new file.
func (w *writer) copy(k *Pick, m *madeFile) error {
	c := w.j.c
	var st unix.Stat_t
	in, err := w.src.open(k.Entry, &st)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	from := "/" + joinRel(w.j.src, k.Name)
	if !sameFile(k.Entry, &st) && !c.f.overlay {
		return changed(from)
	}
	rel := joinRel(w.j.at.rel, m.name)
	fail := func(op string, err error) error { return &os.PathError{Op: op, Path: "/" + rel, Err: err} }
	out, err := unix.Openat(w.dst, m.name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, m.mode&0o777)
	if err != nil {
		return fail("create", err)
	}
	defer unix.Close(out)
	if err := w.data(in, out, k.Size); err != nil {
		return fail("write", err)
	}
	c.u.bytes.Add(k.Size)
	if !c.f.overlay {
		if err := unix.Fstat(in, &st); err != nil || !sameFile(k.Entry, &st) {
			return changed(from)
		}
	}
	if m.uid != c.u.euid || m.gid != c.u.egid || w.sgid {
		if err := unix.Fchown(out, int(m.uid), int(m.gid)); err != nil {
			return fail("chown", err)
		}
	}
	if m.mode&(c.u.umask|0o7000) != 0 {
		if err := unix.Fchmod(out, m.mode); err != nil {
			return fail("chmod", err)
		}
	}
	switch {
	case c.f.overlay:
		copyAttrs(c.f.host(k.Entry, joinRel(w.j.src, k.Name)), c.u.draft.Dir+"/"+rel)
	case k.attrs != nil || !k.Hashed:
		copyClientAttrs(in, out)
	}
	if err := setTimes(w.dst, m.name, m.mtime); err != nil {
		return fail("utimes", err)
	}
	return nil
}

// rangeStep is how much one call copies: little enough that a cancelled build stops at once.
const rangeStep = 8 << 20

// data copies size bytes.
func (w *writer) data(in, out int, size int64) error {
	if w.src.buf == nil {
		w.src.buf = buffers.Get().(*[bufSize]byte)
	}
	buf := w.src.buf[:]
	if size <= bufSize {
		n, err := readFull(in, buf[:size])
		if err != nil {
			return err
		}
		return writeAll(out, buf[:n])
	}
	for done := int64(0); done < size && !w.j.c.noRange.Load(); {
		if err := w.j.t.stopped(); err != nil {
			return err
		}
		n, err := unix.CopyFileRange(in, nil, out, nil, int(min(size-done, rangeStep)), 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil && done == 0: // not between these two file systems, or not in this kernel
			w.j.c.noRange.Store(true)
		case err != nil:
			return err
		case n == 0:
			return nil
		}
		done += int64(max(n, 0))
	}
	if !w.j.c.noRange.Load() {
		return nil
	}
	for {
		if err := w.j.t.stopped(); err != nil {
			return err
		}
		n, err := readFull(in, buf)
		if err != nil || n == 0 {
			return err
		}
		if err := writeAll(out, buf[:n]); err != nil {
			return err
		}
	}
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
