package inflate

import (
	"encoding/binary"
	"io"
)

// input is the compressed stream: a buffer, and up to 63 bits that were taken from it.
type input struct {
	r        io.Reader
	buf      []byte
	pos, end int // what is left of buf
	err      error
	bits     uint64 // the next bits, lowest first; those above n are 0
	n        uint
}

const inputSize = 128 << 10

// more reads at least one byte, or sets err.
func (in *input) more() bool {
	if in.err != nil {
		return false
	}
	if from := in.pos - 8; from > 0 { // align may go back by what is in bits
		in.end = copy(in.buf, in.buf[from:in.end])
		in.pos -= from
	}
	for range 100 {
		n, err := in.r.Read(in.buf[in.end:])
		in.end += n
		in.err = err
		if n > 0 || err != nil {
			return n > 0
		}
	}
	in.err = io.ErrNoProgress
	return false
}

// cut is the error of a stream that ends where it must not.
func (in *input) cut() error {
	if in.err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return in.err
}

// peek tries to have n bits (at most 32), and reports whether it could.
func (in *input) peek(n uint) bool {
	if in.n >= n {
		return true
	}
	if in.end-in.pos >= 4 && in.n < 32 {
		in.bits |= uint64(binary.LittleEndian.Uint32(in.buf[in.pos:])) << in.n
		in.pos += 4
		in.n += 32
		return true
	}
	for in.n < n {
		if in.pos == in.end && !in.more() {
			return false
		}
		in.bits |= uint64(in.buf[in.pos]) << in.n
		in.pos++
		in.n += 8
	}
	return true
}

func (in *input) drop(n uint) {
	in.bits >>= n
	in.n -= n
}

// take returns the next n bits, at most 32.
func (in *input) take(n uint) (uint32, error) {
	if !in.peek(n) {
		return 0, in.cut()
	}
	v := uint32(in.bits & (1<<n - 1))
	in.drop(n)
	return v, nil
}

// align goes on to the next whole byte, and gives back those that were only looked at.
func (in *input) align() {
	in.pos -= int(in.n / 8)
	in.bits, in.n = 0, 0
}

// readFull fills p with bytes; io.EOF if there is none, io.ErrUnexpectedEOF if there are too few. Only after align.
func (in *input) readFull(p []byte) error {
	for n := 0; n < len(p); {
		if in.pos == in.end && !in.more() {
			if n == 0 {
				return in.err
			}
			return in.cut()
		}
		m := copy(p[n:], in.buf[in.pos:in.end])
		in.pos += m
		n += m
	}
	return nil
}
