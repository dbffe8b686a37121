package inflate

import (
	"encoding/binary"
	"unsafe"
)

const (
	// fastIn is how many bytes of input one turn of the fast loop may look at: it moves on by at most 7 bytes in each of two
	// refills, and each reads 8 bytes from where it stands.
	fastIn = 32
	// fastOut is how far one turn may write: six literals, then a match of 258 bytes that is copied in steps of 16.
	fastOut = 320
)

// load64 reads 8 bytes at p+off. It and the stores have no checks: fast makes sure that the bytes are there.
func load64(p unsafe.Pointer, off uint) uint64 {
	return binary.LittleEndian.Uint64((*[8]byte)(unsafe.Add(p, off))[:])
}

func store64(p unsafe.Pointer, off uint, v uint64) {
	binary.LittleEndian.PutUint64((*[8]byte)(unsafe.Add(p, off))[:], v)
}

func store16(p unsafe.Pointer, off uint, v uint16) {
	binary.LittleEndian.PutUint16((*[2]byte)(unsafe.Add(p, off))[:], v)
}

// refill makes at least 56 bits valid. Those above n that are set already are the same ones that are read again.
func refill(in unsafe.Pointer, acc uint64, n uint32, ip uint) (uint64, uint32, uint) {
	return acc | load64(in, ip)<<(n&63), n | 56, ip + uint(7-n>>3&7)
}

// near copies a match of a distance below 8, as fast does with others.
func near(out unsafe.Pointer, op, from, end uint) {
	distance := op - from
	if distance == 1 {
		v := uint64(*(*byte)(unsafe.Add(out, from))) * 0x0101010101010101
		for ; op < end; op += 8 {
			store64(out, op, v)
		}
		return
	}
	// Each step reads 8 bytes of which the first ones, as many as the distance, are right.
	for ; op < end; op += distance {
		store64(out, op, load64(out, from))
		from += distance
	}
}

// fast decodes symbols of a block while there are fastIn bytes of input and fastOut bytes of room, and says why it ended.
//
// Why the unchecked reads and writes are sound: every turn begins with in+fastIn <= len(d.in.buf[:end]) and out+fastOut <=
// len(d.out), and none goes further than these constants. A match is read from out-distance, which is checked to be at
// least d.base, the start of the member's output in this buffer; it is copied in words, which may read and write up to 15
// bytes behind the match, within fastOut. Tables are indexed by masks of their size.
func (d *decoder) fast() status {
	if d.in.end-d.in.pos < fastIn || len(d.out)-d.op < fastOut {
		return again
	}
	in, out := unsafe.Pointer(unsafe.SliceData(d.in.buf)), unsafe.Pointer(unsafe.SliceData(d.out))
	ip, op := uint(d.in.pos), uint(d.op)
	inEnd, outEnd := uint(d.in.end-fastIn), uint(len(d.out)-fastOut)
	lit, dist, base, st := &d.lit, &d.dist, uint(d.base), again
	acc, n := d.in.bits, uint32(d.in.n) // the bits, and in the low byte of n how many are valid
loop:
	for ip <= inEnd && op <= outEnd {
		acc, n, ip = refill(in, acc, n, ip)
		e := lit[acc&(1<<litBits-1)]
		if int32(e) < 0 { // at most 11 bits each
			store16(out, op, uint16(e>>8))
			op += uint(e >> 24 & 3)
			acc >>= e & 63
			n -= e
			e = lit[acc&(1<<litBits-1)]
			if int32(e) < 0 {
				store16(out, op, uint16(e>>8))
				op += uint(e >> 24 & 3)
				acc >>= e & 63
				n -= e
				e = lit[acc&(1<<litBits-1)]
				if int32(e) < 0 {
					store16(out, op, uint16(e>>8))
					op += uint(e >> 24 & 3)
					acc >>= e & 63
					n -= e
					continue
				}
			}
			acc, n, ip = refill(in, acc, n, ip)
		}
		if e&isOdd != 0 {
			if e&isSubtable != 0 {
				acc >>= e & 63
				n -= e & 0xff
				e = lit[(uint64(e>>16)+acc&(1<<(e>>8&15)-1))&uint64(len(lit)-1)]
				if int32(e) < 0 {
					store16(out, op, uint16(e>>8))
					op++
					acc >>= e & 63
					n -= e
					continue
				}
			}
			if e&isOdd != 0 {
				acc >>= e & 63
				n -= e
				if st = corrupt; e&isEnd != 0 {
					st = blockEnd
				}
				break loop
			}
		}
		length := uint(e>>16) + uint(acc&(1<<(e&63)-1)>>(e>>8&63))
		acc >>= e & 63
		n -= e
		e = dist[acc&(1<<distBits-1)]
		if e&isOdd != 0 {
			if e&isSubtable != 0 {
				acc >>= e & 63
				n -= e & 0xff
				e = dist[(uint64(e>>16)+acc&(1<<(e>>8&15)-1))&uint64(len(dist)-1)]
			}
			if e&isOdd != 0 {
				st = corrupt
				break loop
			}
		}
		distance := uint(e>>16) + uint(acc&(1<<(e&63)-1)>>(e>>8&63))
		acc >>= e & 63
		n -= e
		if distance > op-base {
			st = corrupt
			break loop
		}
		from, end := op-distance, op+length
		if distance >= 8 {
			store64(out, op, load64(out, from))
			store64(out, op+8, load64(out, from+8))
			for op += 16; op < end; op += 16 {
				from += 16
				store64(out, op, load64(out, from))
				store64(out, op+8, load64(out, from+8))
			}
		} else {
			near(out, op, from, end)
		}
		op = end
	}
	n &= 63
	d.in.pos = int(ip) - int(n>>3) // whole bytes are given back
	n &= 7
	d.in.bits, d.in.n, d.op = acc&(1<<n-1), uint(n), int(op)
	return st
}
