package cache

// The sizes of chunks, in bytes. The average is a little more than chunkWanted.
const (
	chunkLeast  = 256 << 10
	chunkWanted = 1 << 20
	chunkMost   = 4 << 20
)

// chunker cuts what is written to it where its content says so, so that equal parts of two streams become equal chunks
// wherever they lie. It is FastCDC with two masks: Xia et al., "FastCDC: a Fast and Efficient Content-Defined Chunking
// Approach for Data Deduplication", USENIX ATC 2016.
type chunker struct {
	gear [256]uint64
	hash uint64 // of the last 64 bytes
	buf  []byte // the chunk so far
	emit func(chunk []byte) error
}

// newChunker returns a chunker that gives each chunk to emit, which must not keep it.
func newChunker(emit func([]byte) error) *chunker {
	c := &chunker{buf: make([]byte, 0, chunkMost), emit: emit}
	x := uint64(0)
	for i := range c.gear { // splitmix64: a fixed table of random numbers. Another one would make all chunks new
		x += 0x9e3779b97f4a7c15
		z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		c.gear[i] = z ^ z>>31
	}
	return c
}

// The upper bits of the hash, which more bytes have a say in than in the lower ones, must be zero for a cut: many before
// the wanted size is reached, few after it.
const (
	maskBefore = uint64(1<<22-1) << 42
	maskAfter  = uint64(1<<18-1) << 46
)

// cut returns how many of p belong to the chunk, and whether it ends there.
func (c *chunker) cut(p []byte) (n int, end bool) {
	for i, b := range p {
		c.hash = c.hash<<1 + c.gear[b]
		size := len(c.buf) + i + 1
		mask := maskBefore
		if size > chunkWanted {
			mask = maskAfter
		}
		if size >= chunkMost || size >= chunkLeast && c.hash&mask == 0 {
			return i + 1, true
		}
	}
	return len(p), false
}

func (c *chunker) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n, end := c.cut(rest)
		c.buf = append(c.buf, rest[:n]...)
		rest = rest[n:]
		if end {
			if err := c.flush(); err != nil {
				return 0, err
			}
		}
	}
	return len(p), nil
}

// flush ends the last chunk.
func (c *chunker) flush() error {
	if len(c.buf) == 0 {
		return nil
	}
	err := c.emit(c.buf)
	c.buf, c.hash = c.buf[:0], 0
	return err
}
