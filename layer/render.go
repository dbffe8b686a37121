package layer

import (
	"archive/tar"
	"io"
	"maps"
	"strings"
	"time"

	"github.com/strata-build/strata/diag"
)

// renderer turns a batch into pieces.
type renderer struct {
	p    *packer
	b    *batch
	free chan []byte
	cur  []byte // cap pieceSize; nil: none yet
	head [tarBlock]byte
}

func (r *renderer) all() error {
	r.b.free = r.free
	for _, e := range r.b.entries {
		if err := r.entry(e); err != nil {
			return err
		}
	}
	if len(r.cur) > 0 {
		r.b.out <- r.cur // never blocks: there are no more pieces than places
	} else if r.cur != nil {
		r.free <- r.cur
	}
	close(r.b.out)
	return nil
}

// room returns the free part of the current piece.
func (r *renderer) room() ([]byte, error) {
	if r.cur != nil && len(r.cur) == cap(r.cur) {
		r.b.out <- r.cur
		r.cur = nil
	}
	if r.cur == nil {
		select {
		case r.cur = <-r.free:
		case <-r.p.ctx.Done():
			return nil, r.p.ctx.Err()
		}
		if r.cur == nil {
			r.cur = make([]byte, 0, pieceSize)
		}
	}
	return r.cur[len(r.cur):cap(r.cur)], nil
}

func (r *renderer) Write(b []byte) (int, error) {
	for done := 0; ; {
		if done == len(b) {
			return done, nil
		}
		room, err := r.room()
		if err != nil {
			return done, err
		}
		n := copy(room, b[done:])
		r.cur = r.cur[:len(r.cur)+n]
		done += n
	}
}

func (r *renderer) entry(e *Entry) error {
	h, err := header(e, r.p.opt)
	if err != nil {
		return err
	}
	if ustar(&r.head, h) {
		_, err = r.Write(r.head[:])
	} else if err = tar.NewWriter(r).WriteHeader(h); err != nil && r.p.ctx.Err() == nil {
		return diag.Errorf(diag.Invalid, "%q cannot be stored in a tar: %w", e.Path, err)
	}
	if err != nil || h.Size == 0 {
		return err
	}
	if e.Open == nil {
		return diag.Errorf(diag.Internal, "%q has %d bytes and no content", e.Path, e.Size)
	}
	f, err := e.Open()
	if err != nil {
		return err
	}
	err = r.content(f, e)
	if cerr := f.Close(); err == nil && cerr != nil {
		err = diag.Errorf(diag.KindOf(cerr), "read %q: %w", e.Path, cerr)
	}
	return err
}

// content reads the file right into the pieces.
func (r *renderer) content(f io.Reader, e *Entry) error {
	for left := e.Size; left > 0; {
		room, err := r.room()
		if err != nil {
			return err
		}
		n, err := f.Read(room[:min(int64(len(room)), left)])
		r.cur = r.cur[:len(r.cur)+n]
		left -= int64(n)
		if err == io.EOF && left > 0 {
			return diag.Errorf(diag.Conflict, "%q became shorter while it was read: %d of %d bytes are left", e.Path, left, e.Size)
		}
		if err != nil && err != io.EOF {
			return diag.Errorf(diag.KindOf(err), "read %q: %w", e.Path, err)
		}
	}
	var zeros [tarBlock]byte
	_, err := r.Write(zeros[:-e.Size&(tarBlock-1)])
	return err
}

// header returns the tar header of an entry. Asking for PAX means USTAR wherever that can hold it.
func header(e *Entry, opt TarOptions) (*tar.Header, error) {
	mtime := e.ModTime.Unix() // rounds down, before 1970 too
	if opt.Epoch != nil {
		mtime = min(mtime, opt.Epoch.Unix())
	}
	h := &tar.Header{
		Typeflag: byte(e.Type), Name: e.Path, Mode: int64(e.Mode & 0o7777), Uid: int(e.UID), Gid: int(e.GID),
		ModTime: time.Unix(mtime, 0), Format: tar.FormatPAX,
	}
	switch e.Type {
	case File:
		h.Size = e.Size
	case Dir:
		h.Name += "/"
	case Symlink:
		h.Linkname, h.Mode = e.Link, 0o777
	case HardLink:
		h.Linkname = e.Link
	case Char, Block:
		h.Devmajor, h.Devminor = int64(e.Major), int64(e.Minor)
	case Fifo:
	default:
		return nil, diag.Errorf(diag.Internal, "%q has the unknown type %q", e.Path, byte(e.Type))
	}
	for k, v := range e.Xattrs {
		if !opt.keeps(k) {
			continue
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrRecord+k] = v
	}
	return h, nil
}

// keeps reports whether an attribute is written.
func (opt TarOptions) keeps(xattr string) bool {
	return opt.AllXattrs || xattr == "security.capability" || opt.UserXattrs && strings.HasPrefix(xattr, "user.")
}

// Written returns the entry as it would be read again from a tar that was written with the options: with a bounded time, and
// without attributes that are left out. The entry itself stays as it is.
func Written(e *Entry, opt TarOptions) *Entry {
	late := opt.Epoch != nil && e.ModTime.After(*opt.Epoch)
	drops := false
	for k := range e.Xattrs {
		drops = drops || !opt.keeps(k)
	}
	if !late && !drops {
		return e
	}
	c := *e
	if late {
		c.ModTime = *opt.Epoch
	}
	if drops {
		c.Xattrs = maps.Clone(e.Xattrs)
		maps.DeleteFunc(c.Xattrs, func(k, _ string) bool { return !opt.keeps(k) })
	}
	return &c
}

// ustar renders a header in the USTAR format (POSIX.1-1988), or reports that it needs PAX. It gives the same bytes as
// archive/tar, in a tenth of the time: nearly all headers pass here.
func ustar(b *[tarBlock]byte, h *tar.Header) bool {
	const maxID, maxNumber = 1<<21 - 1, 1<<33 - 1
	mtime := h.ModTime.Unix()
	if h.PAXRecords != nil || h.Uid > maxID || h.Gid > maxID || h.Size > maxNumber || mtime < 0 || mtime > maxNumber ||
		h.Devmajor > maxID || h.Devminor > maxID || len(h.Linkname) > 100 || !ascii(h.Linkname) || !ascii(h.Name) {
		return false
	}
	prefix, name := "", h.Name
	if len(name) > 100 {
		var ok bool
		if prefix, name, ok = splitName(name); !ok {
			return false
		}
	}
	clear(b[:])
	copy(b[0:], name)
	octal(b[100:108], h.Mode)
	octal(b[108:116], int64(h.Uid))
	octal(b[116:124], int64(h.Gid))
	octal(b[124:136], h.Size)
	octal(b[136:148], mtime)
	b[156] = h.Typeflag
	copy(b[157:], h.Linkname)
	copy(b[257:], "ustar\x0000")
	octal(b[329:337], h.Devmajor)
	octal(b[337:345], h.Devminor)
	copy(b[345:], prefix)
	copy(b[148:], "        ")
	sum := int64(0)
	for _, c := range b {
		sum += int64(c)
	}
	octal(b[148:155], sum)
	return true
}

// octal fills field with digits and a NUL.
func octal(field []byte, v int64) {
	last := len(field) - 1
	field[last] = 0
	for i := last - 1; i >= 0; i-- {
		field[i] = '0' + byte(v&7)
		v >>= 3
	}
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 || s[i] == 0 {
			return false
		}
	}
	return true
}

// splitName cuts a long name at a slash into a prefix of at most 155 bytes and a name of at most 100.
func splitName(s string) (prefix, name string, ok bool) {
	end := min(len(s), 156)
	if s[end-1] == '/' && end == len(s) {
		end-- // the slash of a directory is part of the name
	}
	i := strings.LastIndexByte(s[:end], '/')
	if i <= 0 || len(s)-i-1 > 100 || len(s)-i-1 == 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}
