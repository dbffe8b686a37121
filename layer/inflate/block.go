package inflate

import (
	"encoding/binary"
	"errors"
)

// ErrCorrupt is the error of a DEFLATE stream that breaks the rules.
var ErrCorrupt = errors.New("invalid deflate data")

// status is why decoding paused.
type status int

const (
	again    status = iota // too little input or room for the fast loop
	blockEnd               // the end of the block was read
	corrupt
)

// decoder decodes one DEFLATE stream into a buffer that is replaced when it is full.
type decoder struct {
	in     input
	out    []byte
	op     int // where out goes on
	base   int // where this stream's output begins in out, or its history
	final  bool
	fixed  bool // the tables are those of the fixed code
	kind   kind
	stored int // bytes that are left of a stored block
	lit    litTable
	dist   distTable
	pre    preTable
}

// kind is what the decoder is in.
type kind int

const (
	noBlock kind = iota
	storedBlock
	codedBlock
)

// run decodes until the buffer is full (false) or the stream has ended (true).
func (d *decoder) run() (ended bool, err error) {
	for {
		switch d.kind {
		case noBlock:
			if d.final {
				d.in.align()
				d.final = false
				return true, nil
			}
			err = d.header()
		case storedBlock:
			err = d.copyStored()
		case codedBlock:
			err = d.coded()
		}
		if err != nil || d.kind != noBlock {
			return false, err
		}
	}
}

// full reports whether the next turn of the fast loop may find no room.
func (d *decoder) full() bool { return len(d.out)-d.op < fastOut }

// header reads the beginning of a block. Source: RFC 1951, 3.2.3.
func (d *decoder) header() error {
	v, err := d.in.take(3)
	if err != nil {
		return err
	}
	d.final = v&1 != 0
	switch v >> 1 {
	case 0:
		return d.storedHeader()
	case 1:
		d.fixedTables()
	case 2:
		if err := d.dynamicTables(); err != nil {
			return err
		}
	default:
		return ErrCorrupt
	}
	d.kind = codedBlock
	return d.coded()
}

func (d *decoder) storedHeader() error {
	d.in.align()
	var b [4]byte
	if err := d.in.readFull(b[:]); err != nil {
		return d.in.cut()
	}
	n := binary.LittleEndian.Uint16(b[:])
	if n != ^binary.LittleEndian.Uint16(b[2:]) {
		return ErrCorrupt
	}
	d.stored, d.kind = int(n), storedBlock
	return d.copyStored()
}

func (d *decoder) copyStored() error {
	for d.stored > 0 {
		if d.full() {
			return nil
		}
		if d.in.pos == d.in.end && !d.in.more() {
			return d.in.cut()
		}
		n := copy(d.out[d.op:len(d.out)-fastOut+1], d.in.buf[d.in.pos:min(d.in.end, d.in.pos+d.stored)])
		d.in.pos += n
		d.op += n
		d.stored -= n
	}
	d.kind = noBlock
	return nil
}

// coded decodes a block with codes.
func (d *decoder) coded() error {
	for !d.full() {
		st := d.fast()
		if st == again && !d.full() {
			if d.in.more() {
				continue
			}
			var err error
			if st, err = d.symbol(); err != nil {
				return err
			}
		}
		switch st {
		case blockEnd:
			d.kind = noBlock
			return nil
		case corrupt:
			return ErrCorrupt
		}
	}
	return nil
}

// symbol decodes one literal or match near the end of the input, where the fast loop cannot work.
func (d *decoder) symbol() (status, error) {
	e, err := d.entry(d.lit[:], litBits)
	if err != nil {
		return corrupt, err
	}
	if e&isLiteral != 0 {
		d.out[d.op] = byte(e >> 8)
		d.op++
		return again, nil
	}
	if e&isEnd != 0 {
		return blockEnd, nil
	}
	length, err := d.value(e)
	if err != nil {
		return corrupt, err
	}
	if e, err = d.entry(d.dist[:], distBits); err != nil {
		return corrupt, err
	}
	distance, err := d.value(e)
	if err != nil {
		return corrupt, err
	}
	if distance > d.op-d.base {
		return corrupt, nil
	}
	for range length {
		d.out[d.op] = d.out[d.op-distance]
		d.op++
	}
	return again, nil
}

// entry looks the next code up and drops it, but not its extra bits. Of two literals it takes the first.
func (d *decoder) entry(table []uint32, root uint) (uint32, error) {
	d.in.peek(maxCode) // near the end there may be fewer: the code may still be complete
	e := table[d.in.bits&(1<<root-1)]
	if e&(isLiteral|isOdd|isSubtable) == isOdd|isSubtable {
		if d.in.n < root {
			return 0, d.in.cut()
		}
		d.in.drop(root)
		e = table[uint64(e>>16)+d.in.bits&(1<<(e>>8&15)-1)]
	}
	n := uint(e >> 8 & 31)
	if e&isLiteral != 0 {
		n = uint(e >> 26 & 15)
	} else if e&isOdd != 0 {
		if e&isEnd == 0 {
			return 0, ErrCorrupt
		}
		n = uint(e & 0xff)
	}
	if n > d.in.n {
		return 0, d.in.cut()
	}
	d.in.drop(n)
	return e, nil
}

// value adds the extra bits of a length or a distance to its base.
func (d *decoder) value(e uint32) (int, error) {
	extra, err := d.in.take(uint(e&0xff - e>>8&31))
	return int(e>>16 + extra), err
}

// fixedTables makes the tables of RFC 1951, 3.2.6.
func (d *decoder) fixedTables() {
	if d.fixed {
		return
	}
	var lens [288]uint8
	for i := range lens {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		default:
			lens[i] = 8
		}
	}
	build(d.lit[:], litBits, lens[:], litSymbols[:])
	d.lit.pair()
	for i := range 32 {
		lens[i] = 5
	}
	build(d.dist[:], distBits, lens[:32], distSymbols[:])
	d.fixed = true
}

// preOrder is the order in which the lengths of the first code come. Source: RFC 1951, 3.2.7.
var preOrder = [numPre]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamicTables reads the codes of a block. Source: RFC 1951, 3.2.7.
func (d *decoder) dynamicTables() error {
	v, err := d.in.take(14)
	if err != nil {
		return err
	}
	numLit, numDist, numLen := int(v&31)+257, int(v>>5&31)+1, int(v>>10)+4
	if numLit > maxLit || numDist > maxDist {
		return ErrCorrupt
	}
	var pre [numPre]uint8
	for _, s := range preOrder[:numLen] {
		v, err := d.in.take(3)
		if err != nil {
			return err
		}
		pre[s] = uint8(v)
	}
	if !build(d.pre[:], preBits, pre[:], preSymbols[:]) {
		return ErrCorrupt
	}
	var lens [maxLit + maxDist]uint8
	if err := d.lengths(lens[:numLit+numDist]); err != nil {
		return err
	}
	d.fixed = false
	if !build(d.lit[:], litBits, lens[:numLit], litSymbols[:]) || !build(d.dist[:], distBits, lens[numLit:numLit+numDist], distSymbols[:]) {
		return ErrCorrupt
	}
	d.lit.pair()
	return nil
}

// lengths reads the lengths of codes, which are coded themselves.
func (d *decoder) lengths(lens []uint8) error {
	for i := 0; i < len(lens); {
		e, err := d.entry(d.pre[:], preBits)
		if err != nil {
			return err
		}
		s := e >> 16
		if s < 16 {
			lens[i] = uint8(s)
			i++
			continue
		}
		var value uint8
		least, extra := uint32(3), uint(s-14) // 16: 2 bits, 17: 3
		switch s {
		case 16:
			if i == 0 {
				return ErrCorrupt
			}
			value = lens[i-1]
		case 18:
			least, extra = 11, 7
		}
		v, err := d.in.take(extra)
		if err != nil {
			return err
		}
		n := int(least + v)
		if n > len(lens)-i {
			return ErrCorrupt
		}
		for range n {
			lens[i] = value
			i++
		}
	}
	return nil
}
