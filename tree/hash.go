package tree

import (
	"context"
	"crypto/sha256"
	"hash"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

const (
	bufSize = 256 << 10
	bigFile = 4 << 20 // a file of more bytes is a task of its own
)

// buffers are shared by all walks; a pool holds no state that anything depends on.
var buffers = sync.Pool{New: func() any { return new([bufSize]byte) }}

// hasher hashes files of one directory.
type hasher struct {
	f   *Files
	d   *dir
	fds []layerFD
	buf *[bufSize]byte
	h   hash.Hash
}

type layerFD struct{ layer, fd int }

// dirFD opens the directory in one layer, once.
func (h *hasher) dirFD(layer int) (int, error) {
	for _, l := range h.fds {
		if l.layer == layer {
			return l.fd, nil
		}
	}
	fd, err := h.f.open(layer, h.d.rel, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		h.fds = append(h.fds, layerFD{layer, fd})
	}
	return fd, err
}

func (h *hasher) close() {
	for _, l := range h.fds {
		unix.Close(l.fd)
	}
	if h.buf != nil {
		buffers.Put(h.buf)
	}
}

// open opens the file for reading. What is not a regular file any more is refused, and never blocks.
func (h *hasher) open(e *Entry, st *unix.Stat_t) (int, error) {
	at, err := h.dirFD(e.layer)
	if err != nil {
		return -1, err
	}
	name := "/" + joinRel(h.d.rel, e.Name)
	fd, err := unix.Openat(at, e.Name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		if err == unix.EACCES {
			return -1, diag.Errorf(diag.Denied, "%q cannot be read: %w", name, err).
				WithHint("make it readable, or exclude it in the ignore file")
		}
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
	if err := unix.Fstat(fd, st); err != nil {
		unix.Close(fd)
		return -1, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return -1, changed(name)
	}
	return fd, nil
}

func changed(name string) error {
	return diag.Errorf(diag.Conflict, "%q changed while it was being read", name).
		WithHint("build again, or exclude what is being written in the ignore file")
}

// hash sets the entry's digest. A file that changed since it was looked at is taken as it is now.
func (h *hasher) hash(t *tasks, e *Entry) error {
	var st unix.Stat_t
	fd, err := h.open(e, &st)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !sameFile(e, &st) {
		h.f.fill(e, &st)
		e.racy = true
	}
	if h.buf == nil {
		h.buf = buffers.Get().(*[bufSize]byte)
		h.h = sha256.New()
	}
	n, err := readFull(fd, h.buf[:])
	if err != nil {
		return &os.PathError{Op: "read", Path: "/" + joinRel(h.d.rel, e.Name), Err: err}
	}
	if n < len(h.buf) {
		e.sum = sha256.Sum256(h.buf[:n])
	} else if n, err = h.long(t, fd, e); err != nil {
		return err
	}
	if int64(n) != e.Size {
		return changed("/" + joinRel(h.d.rel, e.Name))
	}
	if !h.f.overlay {
		e.attrs = attrsOf(fd)
	}
	e.hashed = true
	return nil
}

// long hashes a file whose first bytes fill the buffer.
func (h *hasher) long(t *tasks, fd int, e *Entry) (int, error) {
	h.h.Reset()
	total := 0
	for n := len(h.buf); n > 0; {
		h.h.Write(h.buf[:n])
		total += n
		if err := t.stopped(); err != nil {
			return 0, err
		}
		var err error
		if n, err = readFull(fd, h.buf[:]); err != nil {
			return 0, &os.PathError{Op: "read", Path: "/" + joinRel(h.d.rel, e.Name), Err: err}
		}
	}
	h.h.Sum(e.sum[:0])
	return total, nil
}

// readFull reads until the buffer is full or the file ends.
func readFull(fd int, buf []byte) (int, error) {
	n := 0
	for n < len(buf) {
		k, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		if k == 0 {
			break
		}
		n += k
	}
	return n, nil
}

// Open opens a matched regular file for reading.
func (f *Files) Open(m *Match) (*os.File, error) {
	h := hasher{f: f, d: &dir{rel: parentOf(m.Rel)}}
	defer h.close()
	var st unix.Stat_t
	fd, err := h.open(m.Entry, &st)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "/"+m.Rel), nil
}

// ReadFile returns the content of one regular file of a tree, at most limit bytes: more is diag.Exhausted. Symlinks are
// followed within the tree. What is no regular file is diag.Invalid, and never blocks.
func (f *Files) ReadFile(ctx context.Context, p string, limit int64) ([]byte, error) {
	file, err := f.OpenFile(p)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, diag.Errorf(diag.Exhausted, "%q is larger than %d bytes", p, limit)
	}
	return data, context.Cause(ctx)
}
