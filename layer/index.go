package layer

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"strings"

	"github.com/strata-build/strata/diag"
)

// maxIndexed bounds what Index keeps of one tar.
const maxIndexed = 1_000_000

// Index lists the entries of an uncompressed layer tar in its order, and reads r to its end unless r can seek. Contents
// are not kept: Open reads them again from at, which must hold the same bytes and stay open as long as the entries are
// used. Names are clean, whiteouts in their tar form, attributes those that Apply would set; the root's own entry has the
// path ".". Entries that are hostile or that no layer may hold are refused as by Apply. Source: image-spec layer.md.
//
//	f, err := os.Open("layer.tar")
//	entries, err := layer.Index(ctx, f, f)
func Index(ctx context.Context, r io.Reader, at io.ReaderAt) ([]*Entry, error) {
	x := &indexing{ctx: ctx, at: at, pos: position{r: r}}
	if s, ok := r.(io.Seeker); ok {
		start, err := s.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, diag.Errorf(diag.Internal, "reading a layer: %w", err)
		}
		x.tr, x.seeker, x.start = tar.NewReader(r), s, start
	} else {
		x.tr = tar.NewReader(&x.pos)
	}
	return x.all()
}

type indexing struct {
	ctx    context.Context
	at     io.ReaderAt
	pos    position
	seeker io.Seeker
	start  int64
	tr     *tar.Reader
	next   int64 // where the next header starts
	out    []*Entry
	bytes  int64
}

// position counts what the tar reader has taken: it does not buffer.
type position struct {
	r io.Reader
	n int64
}

func (p *position) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.n += int64(n)
	return n, err
}

func (x *indexing) offset() (int64, error) {
	if x.seeker == nil {
		return x.pos.n, nil
	}
	n, err := x.seeker.Seek(0, io.SeekCurrent)
	return n - x.start, err
}

func (x *indexing) all() ([]*Entry, error) {
	for {
		if x.ctx.Err() != nil {
			return nil, context.Cause(x.ctx)
		}
		head := x.next
		h, err := x.tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil && !(h != nil && errors.Is(err, tar.ErrInsecurePath)) {
			if _, ok := errors.AsType[*diag.Error](err); ok {
				return nil, err
			}
			return nil, diag.Errorf(diag.Invalid, "not a valid tar, near byte %d: %w", head, err)
		}
		data, err := x.offset()
		if err != nil {
			return nil, diag.Errorf(diag.Internal, "reading a layer: %w", err)
		}
		if err := x.entry(h, head, data); err != nil {
			return nil, err
		}
	}
	if x.seeker != nil {
		return x.out, nil
	}
	// The digest covers what stands behind the end marker too.
	_, err := io.Copy(io.Discard, &x.pos)
	return x.out, err
}

func (x *indexing) entry(h *tar.Header, head, data int64) error {
	sparse := h.Typeflag == tar.TypeGNUSparse || isPaxSparse(h)
	if sparse { // its bytes in the tar are fewer than its size
		if _, err := io.Copy(io.Discard, x.tr); err != nil {
			return diag.Errorf(diag.Invalid, "%q: %w", h.Name, err)
		}
		end, err := x.offset()
		if err != nil {
			return diag.Errorf(diag.Internal, "reading a layer: %w", err)
		}
		x.next = (end + tarBlock - 1) &^ (tarBlock - 1)
	} else {
		x.next = data
		if h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeCont {
			x.next += (h.Size + tarBlock - 1) &^ (tarBlock - 1)
		}
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	e, err := indexed(h)
	if e == nil || err != nil {
		return err
	}
	if len(x.out) >= maxIndexed {
		return diag.Errorf(diag.Exhausted, "the layer has more than %d entries", maxIndexed)
	}
	if e.Type == File && e.Size > 0 {
		if x.bytes += e.Size; x.bytes < 0 || x.bytes > 64<<30 {
			return diag.Errorf(diag.Exhausted, "%q: the files of the layer are larger than 64 GiB", h.Name)
		}
		at, size := x.at, e.Size
		e.Open = func() (io.ReadCloser, error) { return part{io.NewSectionReader(at, data, size)}, nil }
		if sparse {
			e.Open = func() (io.ReadCloser, error) { return openSparse(at, head) }
		}
	}
	x.out = append(x.out, e)
	return nil
}

// openSparse reads a sparse file with its holes, from its header on.
func openSparse(at io.ReaderAt, head int64) (io.ReadCloser, error) {
	tr := tar.NewReader(io.NewSectionReader(at, head, 1<<62-head))
	if _, err := tr.Next(); err != nil && !errors.Is(err, tar.ErrInsecurePath) {
		return nil, diag.Errorf(diag.Invalid, "reading a sparse file: %w", err)
	}
	return io.NopCloser(tr), nil
}

// indexed turns a header into an entry; nil means that it is to be left out.
func indexed(h *tar.Header) (*Entry, error) {
	if err := checkHeader(h); err != nil {
		return nil, err
	}
	p, err := cleanName(h.Name)
	if err != nil {
		return nil, err
	}
	m, _, err := parseMarker(p)
	if err != nil || m == ignored || within(p, aufsLinks) {
		return nil, err
	}
	if m != noMarker {
		return markerEntry(p), nil
	}
	e := &Entry{
		Path: p, Type: EntryType(h.Typeflag), Mode: uint32(h.Mode & 0o7777), UID: uint32(h.Uid), GID: uint32(h.Gid), ModTime: h.ModTime,
		Major: uint32(h.Devmajor), Minor: uint32(h.Devminor),
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, xattrRecord); ok && keepXattr(name) {
			if e.Xattrs == nil {
				e.Xattrs = map[string]string{}
			}
			e.Xattrs[name] = v
		}
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		e.Type, e.Size = File, h.Size
	case tar.TypeLink:
		if e.Link, err = cleanName(h.Linkname); err != nil {
			return nil, err
		}
	case tar.TypeSymlink:
		e.Link, e.Mode = h.Linkname, 0o777
	case tar.TypeDir, tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
	default:
		return nil, diag.Errorf(diag.Invalid, "%q: entries of type %q are unknown", h.Name, h.Typeflag)
	}
	if p == "." && e.Type != Dir {
		return nil, diag.Errorf(diag.Invalid, "%q: the root must be a directory", h.Name)
	}
	return e, nil
}

// part is a file inside of a tar, which can be read at any place.
type part struct{ *io.SectionReader }

func (part) Close() error { return nil }
