package layer

import (
	"bytes"
	stdflate "compress/flate"
	"encoding/binary"
	"hash/crc32"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"

	"github.com/strata-build/strata/diag"
)

const (
	// gzipBlock is how much is compressed at once; each block ends with a flush. It and gzipSample are part of the bytes that
	// are made: changing one changes every blob digest.
	gzipBlock = 1 << 20
	// gzipAhead is how many blocks are in memory at most; it does not change the bytes.
	gzipAhead = 8
	// gzipSample is how much of the middle of a block is tried with both levels. The lower one is taken for the block if the
	// higher one would make it less than 1/gzipGain smaller: data that is compressed already, keys, random numbers.
	gzipSample = 32 << 10
	gzipGain   = 25
	gzipDict   = 32 << 10 // what a block may refer back to
	// gzipSmall is up to which size a stream is what the standard library makes of it. That costs a few milliseconds, and
	// small layers have the digests that BuildKit, which compresses with it, gives them.
	gzipSmall = 128 << 10
)

// gzipWriter compresses blocks in parallel. The bytes do not depend on how many there are at a time.
type gzipWriter struct {
	low, high int // the levels to choose from
	small     int // the level of small streams
	block     []byte
	start     int // of the data in block; before it is the end of the last block
	crc, size uint32
	queue     chan chan *bytes.Buffer // blocks in their order
	written   chan struct{}
	blocks    sync.Pool    // *[]byte
	writers   [2]sync.Pool // *flate.Writer, of low and high
	mu        sync.Mutex
	err       error // of the writer below
	closed    bool
}

// newGzip returns a compressor of one level, which may be Stored, or for level 0 one that takes the level that suits each block.
func newGzip(w io.Writer, level int) (io.WriteCloser, error) {
	if level < Stored || level > 9 {
		return nil, diag.Errorf(diag.Invalid, "gzip has no level %d", level).WithHint("use 1 to 9")
	}
	z := &gzipWriter{low: level, high: level, small: level, queue: make(chan chan *bytes.Buffer, gzipAhead), written: make(chan struct{})}
	switch level {
	case 0:
		z.low, z.high, z.small = gzipLow, gzipHigh, flate.DefaultCompression
	case Stored:
		z.low, z.high, z.small = flate.NoCompression, flate.NoCompression, flate.NoCompression
	}
	z.block = z.space()
	go z.write(w)
	return z, nil
}

func (z *gzipWriter) space() []byte {
	if b, ok := z.blocks.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return make([]byte, 0, gzipDict+gzipBlock)
}

// write writes the blocks in their order. After an error it only takes them.
func (z *gzipWriter) write(w io.Writer) {
	defer close(z.written)
	put := func(b []byte) {
		if z.failed() != nil {
			return
		}
		if _, err := w.Write(b); err != nil {
			z.mu.Lock()
			z.err = err
			z.mu.Unlock()
		}
	}
	extra := map[int]byte{flate.BestCompression: 2, flate.BestSpeed: 4}[z.small]
	put([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, extra, 255}) // RFC 1952: no name, no time, the level, an unknown OS
	for out := range z.queue {
		put((<-out).Bytes())
	}
	if z.closed {
		put(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, z.crc), z.size))
	}
}

func (z *gzipWriter) failed() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.err
}

// Write implements io.Writer. An error of the writer below comes with a later call.
func (z *gzipWriter) Write(p []byte) (int, error) {
	if z.closed {
		return 0, diag.Errorf(diag.Internal, "gzip: write after close")
	}
	if err := z.failed(); err != nil {
		return 0, err
	}
	z.crc = crc32.Update(z.crc, crc32.IEEETable, p)
	z.size += uint32(len(p))
	total := len(p)
	for len(p) > 0 {
		if len(z.block)-z.start == gzipBlock { // not before more comes: the last block ends otherwise
			z.send(false)
		}
		n := min(len(p), gzipBlock-(len(z.block)-z.start))
		z.block = append(z.block, p[:n]...)
		p = p[n:]
	}
	return total, nil
}

// Close implements io.Closer. It waits until everything is written.
func (z *gzipWriter) Close() error {
	if !z.closed {
		z.closed = true
		z.send(true)
		close(z.queue)
	}
	<-z.written
	return z.failed()
}

// send compresses the block in the background and begins the next one.
func (z *gzipWriter) send(last bool) {
	block, start := z.block, z.start
	if !last {
		z.block = append(z.space(), block[max(0, len(block)-gzipDict):]...)
		z.start = len(z.block)
	}
	out := make(chan *bytes.Buffer, 1)
	z.queue <- out
	go func() {
		buf := bytes.NewBuffer(make([]byte, 0, (len(block)-start)/2+1024))
		if last && start == 0 && len(block) <= gzipSmall {
			f, _ := stdflate.NewWriter(buf, z.small) // nothing can fail, as below
			_, _ = f.Write(block)
			_ = f.Close()
		} else {
			z.compress(buf, z.level(block[start:]), block[:start], block[start:], last)
		}
		z.blocks.Put(&block)
		out <- buf
	}()
}

// level chooses 0, the low level, or 1, the high one, by what they make of a sample.
func (z *gzipWriter) level(data []byte) int {
	if z.low == z.high || len(data) < 2*gzipSample {
		return 1
	}
	sample := data[len(data)/2:][:gzipSample]
	var low, high counting
	z.compress(&low, 0, nil, sample, true)
	z.compress(&high, 1, nil, sample, true)
	if high > low-low/gzipGain {
		return 0
	}
	return 1
}

// counting counts what is written to it.
type counting int64

func (c *counting) Write(p []byte) (int, error) {
	*c += counting(len(p))
	return len(p), nil
}

// compress writes DEFLATE blocks that may refer back to dict. Nothing can fail: w is memory, and levels are checked.
func (z *gzipWriter) compress(w io.Writer, which int, dict, data []byte, last bool) {
	f, ok := z.writers[which].Get().(*flate.Writer)
	if !ok {
		f, _ = flate.NewWriter(w, [2]int{z.low, z.high}[which])
	}
	f.ResetDict(w, dict)
	_, _ = f.Write(data)
	if last {
		_ = f.Close()
	} else {
		_ = f.Flush()
	}
	z.writers[which].Put(f)
}
