package layer

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"io"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer/inflate"
)

// MaxWindow is the largest window or dictionary that a compressed stream may ask for, in bytes.
const MaxWindow = 128 << 20

// Limits bound what a compressed stream may grow to. A zero field is the default, a negative one means no limit.
type Limits struct {
	MaxBytes   int64 // decompressed bytes; default 64 GiB
	MaxRatio   int64 // decompressed bytes per compressed byte; default 200
	RatioAbove int64 // the ratio counts only above this many decompressed bytes; default 1 GiB
}

func (l Limits) withDefaults() Limits {
	set := func(v *int64, def int64) {
		if *v == 0 {
			*v = def
		}
	}
	set(&l.MaxBytes, 64<<30)
	set(&l.MaxRatio, 200)
	set(&l.RatioAbove, 1<<30)
	return l
}

// Decompress recognises gzip, zstd, bzip2 and xz by their first bytes and returns the plain stream; anything else,
// an empty stream included, is passed on as Uncompressed. A goroutine decompresses ahead of the reader. Damaged and
// truncated streams are diag.Invalid, streams above the default Limits diag.Exhausted; errors of r come back as they are.
// Close frees the goroutine and does not close r.
func Decompress(r io.Reader) (io.ReadCloser, Type, error) { return DecompressLimited(r, Limits{}) }

// DecompressLimited is Decompress with other limits.
func DecompressLimited(r io.Reader, lim Limits) (io.ReadCloser, Type, error) {
	in := &source{r: r}
	buf := bufio.NewReaderSize(in, 32<<10) // larger reads of a decoder pass it by
	head, err := buf.Peek(64)
	if err != nil && err != io.EOF {
		return nil, 0, err
	}
	t := sniff(head)
	plain, closer, err := decoder(buf, t, head)
	if err != nil {
		return nil, t, in.explain(t, err)
	}
	out := newAhead(&limited{src: asFiller(plain), in: in, t: t, lim: lim.withDefaults()}, nil)
	out.ended = closer
	return out, t, nil
}

func sniff(head []byte) Type {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b, 8}):
		return Gzip
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return Zstd
	case len(head) >= 4 && head[0]&0xf0 == 0x50 && head[1] == 0x2a && head[2] == 0x4d && head[3] == 0x18:
		return Zstd // a skippable frame first (RFC 8878, 3.1.2), as pzstd and zstd:chunked write
	case bytes.HasPrefix(head, []byte("BZh")) && len(head) > 9 && (bytes.Equal(head[4:10], []byte("1AY&SY")) || bytes.Equal(head[4:10], []byte{0x17, 0x72, 0x45, 0x38, 0x50, 0x90})):
		return Bzip2
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return Xz
	}
	return Uncompressed
}

func decoder(r *bufio.Reader, t Type, head []byte) (io.Reader, func(), error) {
	switch t {
	case Gzip:
		z, err := inflate.NewReader(r)
		return z, nil, err
	case Zstd:
		// One decoder thread beside the reader's: more would keep more blocks in memory for little gain.
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(MaxWindow), zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	case Bzip2:
		return bzip2.NewReader(r), nil, nil
	case Xz:
		if err := checkXz(head); err != nil {
			return nil, nil, err
		}
		z, err := xz.NewReader(r)
		return z, nil, err
	}
	return r, nil, nil
}

// checkXz refuses a dictionary larger than MaxWindow in the first block. Source: the .xz file format, 3.1 and 5.3.1.
func checkXz(head []byte) error {
	const streamHeader = 12
	if len(head) < streamHeader+8 || head[streamHeader] == 0 {
		return nil // too short, or no block: the decoder will say what is wrong
	}
	b := head[streamHeader+1:]
	flags := b[0]
	b = b[1:]
	for range int(flags>>6&1) + int(flags>>7) { // compressed size, uncompressed size
		_, n := binary.Uvarint(b)
		if n <= 0 {
			return nil
		}
		b = b[n:]
	}
	if len(b) < 3 || b[0] != 0x21 || b[1] != 1 {
		return nil
	}
	bits := b[2] & 0x3f
	if bits > 40 {
		return nil
	}
	if size := uint64(2|bits&1) << (bits/2 + 11); size > MaxWindow {
		return diag.Errorf(diag.Exhausted, "the xz stream asks for a dictionary of %d MiB; at most %d MiB are allowed", size>>20, MaxWindow>>20)
	}
	return nil
}

// source counts the compressed bytes and remembers its own error, to tell it from the decoder's.
type source struct {
	r   io.Reader
	n   atomic.Int64 // some decoders read in a goroutine of their own
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n.Add(int64(n))
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

func (s *source) explain(t Type, err error) error {
	if s.err != nil {
		return s.err
	}
	if _, ok := errors.AsType[*diag.Error](err); ok {
		return err
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return diag.Errorf(diag.Exhausted, "the zstd stream asks for a window above %d MiB: %w", MaxWindow>>20, err)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return diag.Errorf(diag.Invalid, "the %s stream is cut off after %d bytes: %w", t, s.n.Load(), err)
	}
	return diag.Errorf(diag.Invalid, "the %s stream is damaged: %w", t, err)
}

// limited applies the limits to the decoder's output.
type limited struct {
	src filler
	in  *source
	t   Type
	lim Limits
	n   int64
}

// Fill implements filler.
func (l *limited) Fill(mem []byte) ([]byte, error) {
	data, err := l.src.Fill(mem)
	if err := l.check(len(data)); err != nil {
		return nil, err
	}
	if err != nil && err != io.EOF {
		err = l.in.explain(l.t, err)
	}
	return data, err
}

func (l *limited) check(n int) error {
	l.n += int64(n)
	if l.lim.MaxBytes > 0 && l.n > l.lim.MaxBytes {
		return diag.Errorf(diag.Exhausted, "the %s stream holds more than %d bytes", l.t, l.lim.MaxBytes)
	}
	if l.t != Uncompressed && l.lim.MaxRatio > 0 && l.lim.RatioAbove >= 0 && l.n > l.lim.RatioAbove && l.n/l.lim.MaxRatio > l.in.n.Load() {
		return diag.Errorf(diag.Exhausted, "the %s stream grows more than %d-fold: %d bytes out of %d", l.t, l.lim.MaxRatio, l.n, l.in.n.Load())
	}
	return nil
}
