package layer

import (
	"crypto/sha256"
	"hash"
	"io"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/layer/inflate"
)

const (
	chunkSize  = 256 << 10
	chunkCount = 8
)

// filler is a source that puts its data where it likes within mem: a decoder that needs room around it saves a copy so.
type filler interface {
	Fill(mem []byte) (data []byte, err error)
}

func asFiller(r io.Reader) filler {
	if f, ok := r.(filler); ok {
		return f
	}
	return fullReads{r}
}

// fullReads fills mem unless the source ends or fails first; unlike io.ReadFull it keeps the source's own error.
type fullReads struct{ r io.Reader }

func (f fullReads) Fill(mem []byte) ([]byte, error) {
	n, empty := 0, 0
	for n < len(mem) {
		m, err := f.r.Read(mem[n:])
		n += m
		if err != nil {
			return mem[:n], err
		}
		if m > 0 {
			empty = 0
		} else if empty++; empty > 100 {
			return mem[:n], io.ErrNoProgress
		}
	}
	return mem, nil
}

// ahead reads from a source in its own goroutine, a few chunks ahead of its consumer, and hashes the chunks in another
// one if it has a hash. It starts with the first Read.
type ahead struct {
	src     filler
	hash    hash.Hash // nil: only read ahead
	start   sync.Once
	begun   bool          // start was done; for the consumer
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
	mem  []byte
	buf  []byte // the part of mem with the data
	err  error  // what the source said after these bytes
	refs atomic.Int32
}

func newAhead(src filler, h hash.Hash) *ahead {
	return &ahead{
		src: src, hash: h, stop: make(chan struct{}), free: make(chan *chunk, chunkCount), out: make(chan *chunk, chunkCount),
		hashed: make(chan struct{}),
	}
}

func (a *ahead) run() {
	for range chunkCount {
		a.free <- &chunk{}
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
		select {
		case <-a.stop: // both were ready
			return
		default:
		}
		if c.mem == nil { // most streams are short
			c.mem = make([]byte, inflate.Overhead+chunkSize)
		}
		c.buf, c.err = a.src.Fill(c.mem)
		a.size.Add(int64(len(c.buf)))
		c.refs.Store(1)
		if a.hash != nil {
			c.refs.Store(2)
			toHash <- c
		}
		failed := c.err != nil // c is the consumer's from here on
		a.out <- c
		if failed {
			return
		}
	}
}

func (a *ahead) release(c *chunk) {
	if c.refs.Add(-1) == 0 {
		a.free <- c
	}
}

// next makes cur the chunk to read from; false at the end.
func (a *ahead) next() bool {
	a.begun = true
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
	a.begun = true
	a.start.Do(func() { // never started, and never will be
		close(a.out)
		close(a.hashed)
		if a.ended != nil {
			a.ended()
		}
	})
	return nil
}

// ReadAhead passes a stream on while its own goroutine reads ahead. It is for one consumer.
type ReadAhead struct{ a *ahead }

// NewReadAhead reads r until its end or error. Close frees what is held if the consumer stops earlier, and does not close r.
func NewReadAhead(r io.Reader) *ReadAhead { return &ReadAhead{newAhead(asFiller(r), nil)} }

func (r *ReadAhead) Read(p []byte) (int, error) { return r.a.Read(p) }

// WriteTo implements io.WriterTo.
func (r *ReadAhead) WriteTo(w io.Writer) (int64, error) { return r.a.WriteTo(w) }

// Close stops reading ahead, but does not wait for a Read of the source that is under way.
func (r *ReadAhead) Close() error { return r.a.Close() }

// Size returns the number of bytes that the source has given so far.
func (r *ReadAhead) Size() int64 { return r.a.size.Load() }

// Wait returns when the source is no longer read. It comes after Close, and after whatever ends a Read of the source.
func (r *ReadAhead) Wait() {
	for range r.a.out { // what was read for nobody
	}
}

// DigestReader passes a stream on while its own goroutines read ahead and hash it. It is for one consumer.
type DigestReader struct{ a *ahead }

// NewDigestReader hashes r with sha256. r is read until its end or error; Close frees what is held if the consumer stops
// earlier, and does not close r. What Decompress returned, and nobody has read of yet, is hashed where it is, and not
// passed through once more; nobody else may read it then.
func NewDigestReader(r io.Reader) *DigestReader {
	if a, ok := r.(*ahead); ok && a.hash == nil && !a.begun {
		a.hash = sha256.New()
		return &DigestReader{a}
	}
	return &DigestReader{newAhead(asFiller(r), sha256.New())}
}

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
