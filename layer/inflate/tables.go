package inflate

import "math/bits"

// An entry of a decode table is one word. In all of them, bits 0-7 are how many bits to drop from the input.
//
//	literals   bit 31 set; bits 8-15 the first, bits 16-23 the second, bits 24-25 how many (1 or 2),
//	           bits 26-29 the length of the first one's code
//	length     bits 16-31 the base, bits 8-12 the length of the code; bits 0-7 count the extra bits too
//	distance   the same
//	subtable   bits 14 and 15 set; bits 16-30 where it starts, bits 8-11 how many bits index it
//	end        bits 13 and 15 set
//	invalid    bit 15 set, nothing else
const (
	isLiteral  = 1 << 31
	isOdd      = 1 << 15 // a subtable, the end of the block, or no code at all
	isSubtable = 1 << 14
	isEnd      = 1 << 13

	litBits  = 11
	distBits = 9
	preBits  = 7
	maxCode  = 15 // bits of the longest code
	maxLit   = 286
	maxDist  = 30
	numPre   = 19
)

// The sizes are powers of two, so that a masked index needs no check, and large enough for every code: with codes of up to
// 15 bits, 288 symbols need at most 2342 entries below 11 bits, 32 symbols at most 594 below 9 (zlib's enough.c).
type (
	litTable  [4096]uint32
	distTable [1024]uint32
	preTable  [1 << preBits]uint32
)

// litSymbols, distSymbols and preSymbols hold the entries of symbols, before the length of the code is added.
// Source: RFC 1951, 3.2.5.
var (
	litSymbols  = makeLitSymbols()
	distSymbols = makeDistSymbols()
	preSymbols  = makePreSymbols()
)

func makeLitSymbols() (s [288]uint32) {
	for i := range 256 {
		s[i] = isLiteral | 1<<24 | uint32(i)<<8
	}
	s[256] = isOdd | isEnd
	base := uint32(3)
	for i := 257; i < 285; i++ {
		extra := uint32(0)
		if i >= 265 {
			extra = uint32(i-261) / 4
		}
		s[i] = base<<16 | extra
		base += 1 << extra
	}
	s[285] = 258 << 16
	s[286], s[287] = isOdd, isOdd // part of the fixed code, and never used
	return s
}

func makeDistSymbols() (s [32]uint32) {
	base := uint32(1)
	for i := range maxDist {
		extra := uint32(max(i-2, 0)) / 2
		s[i] = base<<16 | extra
		base += 1 << extra
	}
	s[30], s[31] = isOdd, isOdd
	return s
}

func makePreSymbols() (s [numPre]uint32) {
	for i := range s {
		s[i] = uint32(i) << 16
	}
	return s
}

// build makes the decode table of a canonical code (RFC 1951, 3.2.2), indexed by root bits: lens are the lengths of the
// symbols' codes, 0 for unused symbols. It reports whether the code is allowed: complete, without any symbol, or one
// symbol of one bit, as compress/flate has it.
func build(table []uint32, root int, lens []uint8, symbols []uint32) bool {
	var count [maxCode + 1]int
	for _, l := range lens {
		count[l]++
	}
	count[0] = 0
	sum, longest := 0, 0
	for l := 1; l <= maxCode; l++ {
		sum += count[l] << (maxCode - l)
		if count[l] > 0 {
			longest = l
		}
	}
	lone := longest == 1 && count[1] == 1
	if longest > 0 && sum != 1<<maxCode && !lone {
		return false
	}
	if longest == 0 || lone {
		for i := range table[:1<<root] {
			table[i] = isOdd
		}
	}
	// The symbols in the order of their codes.
	var next [maxCode + 2]int
	for l := 1; l <= maxCode; l++ {
		next[l+1] = next[l] + count[l]
	}
	var sorted [288]uint16
	for s, l := range lens {
		if l > 0 {
			sorted[next[l]] = uint16(s)
			next[l]++
		}
	}
	b := builder{table: table, root: root, count: &count, end: 1 << root, prefix: -1}
	i, code := 0, uint32(0)
	for l := 1; l <= longest; l++ {
		for range count[l] {
			s := sorted[i]
			i++
			reversed := int(bits.Reverse32(code) >> (32 - l))
			code++
			if l > root {
				b.long(symbols[s], reversed, l)
				continue
			}
			entry := withLength(symbols[s], l)
			for k := reversed; k < 1<<root; k += 1 << l {
				table[k] = entry
			}
		}
		code <<= 1
	}
	return true
}

// withLength adds the length of a symbol's code to its entry, where extra bits are counted already.
func withLength(entry uint32, l int) uint32 {
	if entry&isLiteral != 0 {
		return entry + uint32(l)<<26 + uint32(l)
	}
	return entry + uint32(l)<<8 + uint32(l)
}

// builder makes the subtables of one table. Codes come in their order.
type builder struct {
	table  []uint32
	root   int
	count  *[maxCode + 1]int
	seen   [maxCode + 1]int
	end    int // of the used part of the table
	prefix int // of the subtable in work
	start  int // where that begins
	bits   int // how many bits index it
}

// long adds a symbol whose code, here with its first bit lowest, has more bits than index the table.
func (b *builder) long(entry uint32, reversed, l int) {
	if prefix := reversed & (1<<b.root - 1); prefix != b.prefix {
		b.prefix, b.start = prefix, b.end
		b.bits = l - b.root
		for used := b.count[l] - b.seen[l]; used < 1<<b.bits; { // as large as the longest code of this prefix needs
			b.bits++
			used = used<<1 + b.count[b.root+b.bits]
		}
		b.end += 1 << b.bits
		b.table[prefix] = isOdd | isSubtable | uint32(b.start)<<16 | uint32(b.bits)<<8 | uint32(b.root)
	}
	b.seen[l]++
	l -= b.root
	entry = withLength(entry, l)
	for i := reversed >> b.root; i < 1<<b.bits; i += 1 << l {
		b.table[b.start+i] = entry
	}
}

// pair lets two literals whose codes fit into the index together share an entry.
func (t *litTable) pair() {
	// From the end: what follows the first code is at a lower index, and has no pair yet.
	for i := 1<<litBits - 1; i >= 0; i-- {
		e := t[i]
		if e&isLiteral == 0 {
			continue
		}
		l := e & 0xff
		if f := t[i>>l]; f&isLiteral != 0 && l+f&0xff <= litBits {
			t[i] = e + f&0xff + 1<<24 | f<<8&(0xff<<16)
		}
	}
}
