package inflate

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// ErrHeader and ErrChecksum are the errors of what is around a DEFLATE stream: a header that is none, also after a member
// that is complete; a trailer that does not fit the data.
var (
	ErrHeader   = errors.New("invalid gzip header")
	ErrChecksum = errors.New("invalid gzip checksum")
)

const (
	window = 32 << 10
	// Overhead is how much larger the buffers for Fill are than the data that they bring, at most: the history before it, and
	// room for the fast loop behind.
	Overhead = window + fastOut
	readSize = 128 << 10 // what Read decodes at a time
)

// Reader decompresses a gzip stream of one or more members. It is for one goroutine.
type Reader struct {
	d       decoder
	history []byte // the end of the output so far, of this member
	summed  int    // how much of d.out is in crc and size
	crc     uint32
	size    uint32
	err     error  // how it ended
	mem     []byte // for Read
	data    []byte // what Read has not passed on yet
}

// NewReader reads the first header: io.EOF if r is empty, ErrHeader if it is no gzip. The Reader reads ahead of what it
// decompresses.
func NewReader(r io.Reader) (*Reader, error) {
	z := &Reader{history: make([]byte, 0, window)}
	z.d.in = input{r: r, buf: make([]byte, inputSize)}
	return z, z.header()
}

// Fill decompresses into mem, which must be at least 4 KiB larger than Overhead, until it is full or the stream ends, and
// returns the part of mem that has the new data. It may return data with an error, which is io.EOF at the end; after that
// all calls return the same error.
func (z *Reader) Fill(mem []byte) ([]byte, error) {
	if z.err != nil {
		return nil, z.err
	}
	start := copy(mem, z.history)
	d := &z.d
	d.out, d.op, d.base, z.summed = mem, start, 0, start
	for z.err == nil && !d.full() {
		var ended bool
		if ended, z.err = d.run(); ended {
			z.err = z.trailer()
		}
	}
	z.sum()
	z.history = append(z.history[:0], mem[max(d.base, d.op-window):d.op]...)
	d.out = nil
	return mem[start:d.op], z.err
}

// Read implements io.Reader.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(z.data) == 0 {
		if z.err != nil {
			return 0, z.err
		}
		if z.mem == nil {
			z.mem = make([]byte, Overhead+readSize)
		}
		z.data, _ = z.Fill(z.mem) // the error comes after the data
	}
	n := copy(p, z.data)
	z.data = z.data[n:]
	return n, nil
}

// WriteTo implements io.WriterTo.
func (z *Reader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		n, err := w.Write(z.data)
		total += int64(n)
		z.data = z.data[n:]
		if err != nil {
			return total, err
		}
		if z.err == io.EOF {
			return total, nil
		}
		if z.err != nil {
			return total, z.err
		}
		if z.mem == nil {
			z.mem = make([]byte, Overhead+readSize)
		}
		z.data, _ = z.Fill(z.mem)
	}
}

// sum counts what was decompressed since the last call.
func (z *Reader) sum() {
	p := z.d.out[z.summed:z.d.op]
	z.crc = crc32.Update(z.crc, crc32.IEEETable, p)
	z.size += uint32(len(p))
	z.summed = z.d.op
}

// trailer checks the end of a member, and reads the header of the next one. Source: RFC 1952, 2.3.1.
func (z *Reader) trailer() error {
	z.sum()
	var b [8]byte
	if z.d.in.readFull(b[:]) != nil {
		return z.d.in.cut()
	}
	if binary.LittleEndian.Uint32(b[:]) != z.crc || binary.LittleEndian.Uint32(b[4:]) != z.size {
		return ErrChecksum
	}
	z.crc, z.size = 0, 0
	z.d.base = z.d.op
	return z.header()
}

// header reads what is before a DEFLATE stream. Source: RFC 1952, 2.3. As compress/gzip has it: names and comments have
// at most 511 bytes, and reserved flags mean nothing.
func (z *Reader) header() error {
	const headerCRC, extra, name, comment = 1 << 1, 1 << 2, 1 << 3, 1 << 4
	in := &z.d.in
	var b [512]byte
	if err := in.readFull(b[:10]); err != nil {
		return err // io.EOF: nothing follows
	}
	if b[0] != 0x1f || b[1] != 0x8b || b[2] != 8 {
		return ErrHeader
	}
	flags := b[3]
	sum := crc32.ChecksumIEEE(b[:10])
	if flags&extra != 0 {
		if in.readFull(b[:2]) != nil {
			return in.cut()
		}
		sum = crc32.Update(sum, crc32.IEEETable, b[:2])
		for left := int(binary.LittleEndian.Uint16(b[:])); left > 0; {
			part := b[:min(left, len(b))]
			if in.readFull(part) != nil {
				return in.cut()
			}
			sum = crc32.Update(sum, crc32.IEEETable, part)
			left -= len(part)
		}
	}
	for _, f := range []byte{name, comment} {
		if flags&f == 0 {
			continue
		}
		n := 0
		for ; n == 0 || b[n-1] != 0; n++ {
			if n == len(b) {
				return ErrHeader
			}
			if in.readFull(b[n:n+1]) != nil {
				return in.cut()
			}
		}
		sum = crc32.Update(sum, crc32.IEEETable, b[:n])
	}
	if flags&headerCRC != 0 {
		if in.readFull(b[:2]) != nil {
			return in.cut()
		}
		if uint16(sum) != binary.LittleEndian.Uint16(b[:]) {
			return ErrHeader
		}
	}
	return nil
}
