package layer

import (
	"crypto/sha256"
	"hash"
	"io"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/graph"
)

const (
	chunkSize  = 256 << 10
	chunkCount = 8
)

// ahead reads from a source in its own goroutine, a few chunks ahead of its consumer, and hashes the chunks in another
// one if it has a hash. It starts with the first Read.
type ahead struct {
	src     io.Reader
	hash    hash.Hash // nil: only read ahead
	start   sync.Once
	stop    chan struct{} // closed by Close
	stopped sync.Once
	free    chan *chunk
	out     chan *chunk
	hashed  chan struct{} // closed when the hash has all bytes
	cur     *chunk
	off     int
	err     error
	size    atomic.Int64
	ended   func() // runs when the source is no longer read; may be nil
}

type chunk struct {
	buf  []byte // cap chunkSize
	err  error  // what the source said after these bytes
	refs atomic.Int32
}

func newAhead(src io.Reader, h hash.Hash) *ahead {
	return &ahead{
		src: src, hash: h, stop: make(chan struct{}), free: make(chan *chunk, chunkCount), out: make(chan *chunk, chunkCount),
		hashed: make(chan struct{}),
	}
}

func (a *ahead) run() {
	for range chunkCount {
		a.free <- &chunk{buf: make([]byte, 0, chunkSize)}
	}
	toHash := make(chan *chunk, chunkCount)
	if a.hash != nil {
		go a.hashing(toHash)
	} else {
		close(a.hashed)
	}
	go a.reading(toHash)
}

func (a *ahead) hashing(in <-chan *chunk) {
	defer close(a.hashed)
	for c := range in {
		a.hash.Write(c.buf)
		a.release(c)
	}
}

func (a *ahead) reading(toHash chan<- *chunk) {
	defer close(a.out)
	if a.ended != nil {
		defer a.ended()
	}
	defer close(toHash)
	for {
		var c *chunk
		select {
		case c = <-a.free:
		case <-a.stop:
			return
		}
		n, err := readFull(a.src, c.buf[:cap(c.buf)])
		c.buf, c.err = c.buf[:n], err
		a.size.Add(int64(n))
		c.refs.Store(1)
		if a.hash != nil {
			c.refs.Store(2)
			toHash <- c
		}
		a.out <- c
		if err != nil {
			return
		}
	}
}

// readFull fills buf unless the source ends or fails first; unlike io.ReadFull it keeps the source's own error.
func readFull(r io.Reader, buf []byte) (int, error) {
	n, empty := 0, 0
	for n < len(buf) {
		m, err := r.Read(buf[n:])
		n += m
		if err != nil {
			return n, err
		}
		if m > 0 {
			empty = 0
		} else if empty++; empty > 100 {
			return n, io.ErrNoProgress
		}
	}
	return n, nil
}

func (a *ahead) release(c *chunk) {
	if c.refs.Add(-1) == 0 {
		a.free <- c
	}
}

// next makes cur the chunk to read from; false at the end.
func (a *ahead) next() bool {
	a.start.Do(a.run)
	for a.cur == nil || a.off == len(a.cur.buf) {
		if a.cur != nil {
			a.err = a.cur.err
			a.release(a.cur)
			a.cur, a.off = nil, 0
		}
		if a.err != nil {
			return false
		}
		c, ok := <-a.out
		if !ok {
			a.err = io.ErrClosedPipe
			return false
		}
		a.cur = c
	}
	return true
}

func (a *ahead) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if !a.next() {
		return 0, a.err
	}
	n := copy(p, a.cur.buf[a.off:])
	a.off += n
	return n, nil
}

// WriteTo saves the copy that Read makes.
func (a *ahead) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for a.next() {
		n, err := w.Write(a.cur.buf[a.off:])
		a.off += n
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
	if a.err == io.EOF {
		return total, nil
	}
	return total, a.err
}

// Close makes the goroutines end. It does not wait for a Read of the source that is under way: a stalled connection must
// not stall the one who gives up on it.
func (a *ahead) Close() error {
	a.stopped.Do(func() { close(a.stop) })
	a.start.Do(func() { // never started, and never will be
		close(a.out)
		close(a.hashed)
		if a.ended != nil {
			a.ended()
		}
	})
	return nil
}

// DigestReader passes a stream on while its own goroutines read ahead and hash it. It is for one consumer.
type DigestReader struct{ a *ahead }

// NewDigestReader hashes r with sha256. r is read until its end or error; Close frees what is held if the consumer stops
// earlier, and does not close r.
func NewDigestReader(r io.Reader) *DigestReader { return &DigestReader{newAhead(r, sha256.New())} }

func (d *DigestReader) Read(p []byte) (int, error) { return d.a.Read(p) }

// WriteTo implements io.WriterTo.
func (d *DigestReader) WriteTo(w io.Writer) (int64, error) { return d.a.WriteTo(w) }

// Close stops reading ahead.
func (d *DigestReader) Close() error { return d.a.Close() }

// Digest returns the sha256 of the stream. Call it after Read has returned io.EOF; before that it reads the rest.
func (d *DigestReader) Digest() graph.Digest {
	for d.a.next() {
		d.a.off = len(d.a.cur.buf)
	}
	<-d.a.hashed
	return digest.NewDigest(digest.SHA256, d.a.hash)
}

// Size returns the number of bytes that the source has given so far, which is the stream's length after io.EOF.
func (d *DigestReader) Size() int64 { return d.a.size.Load() }
