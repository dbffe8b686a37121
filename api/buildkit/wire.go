package buildkit

import (
	"encoding/binary"
	"net"
	"sync"
)

// wire is a connection of HTTP/2 that counts for its link, as the bytes pass, what gRPC holds: of each call the message that has
// begun to come and is not complete, and what is written of answers. It reads no more of HTTP/2 than the heads of frames (RFC 9113,
// section 4.1) and of gRPC the heads of messages (a byte, and four of the length). It changes nothing: whether a frame is valid
// is for gRPC to say.
type wire struct {
	net.Conn
	link *link
	role role

	mu      sync.Mutex
	streams map[uint32]*arriving
	last    uint32 // the newest stream
	in, out frames
}

// role is which side of HTTP/2 the daemon is.
type role int

const (
	asServer role = iota
	asClient      // of a session
)

// arriving is the message of a stream that comes in.
type arriving struct {
	head [5]byte
	got  int // bytes of the head
	left uint32
	held int64 // what is counted
}

// streamSize is what a stream costs besides its messages, about.
const streamSize = 1 << 10

const prefaceSize = len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")

func newWire(conn net.Conn, k *link, r role) *wire {
	w := &wire{Conn: conn, link: k, role: r, streams: map[uint32]*arriving{}}
	if r == asServer {
		w.in.skip = prefaceSize
	} else {
		w.out.skip = prefaceSize
	}
	return w
}

// Read implements net.Conn.
func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.in.feed(b[:n], w.came)
	return n, err
}

// Write implements net.Conn.
func (w *wire) Write(b []byte) (int, error) {
	n, err := w.Conn.Write(b)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out.feed(b[:n], w.went)
	return n, err
}

// Close implements net.Conn.
func (w *wire) Close() error {
	err := w.Conn.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.streams {
		w.end(id)
	}
	return err
}

func (w *wire) came(f *frames, data []byte) {
	if w.role == asServer {
		w.begin(f)
	}
	if s := w.streams[f.stream]; s != nil && len(data) > 0 {
		w.count(s, s.take(data))
	}
	if f.done() && (f.kind == frameReset || f.ends()) {
		w.end(f.stream)
	}
}

func (w *wire) went(f *frames, data []byte) {
	if w.role == asClient {
		w.begin(f)
	} else if len(data) > 0 {
		w.link.add(-int64(len(data)))
	}
	if f.done() && (f.kind == frameReset || w.role == asServer && f.ends()) {
		w.end(f.stream)
	}
}

// begin notes a new stream. HEADERS of a stream that is known are its trailers; frames of one that has ended are late.
func (w *wire) begin(f *frames) {
	if f.kind != frameHeaders || f.stream <= w.last {
		return
	}
	w.last = f.stream
	s := &arriving{}
	w.streams[f.stream] = s
	w.count(s, streamSize)
}

func (w *wire) end(id uint32) {
	if s := w.streams[id]; s != nil {
		delete(w.streams, id)
		w.count(s, -s.held)
	}
}

func (w *wire) count(s *arriving, n int64) {
	if n != 0 {
		s.held += n
		w.link.add(n)
	}
}

// take follows the stream's messages and returns by how much the part of an unfinished one has grown.
func (s *arriving) take(data []byte) (grown int64) {
	for len(data) > 0 {
		if s.got < len(s.head) {
			n := copy(s.head[s.got:], data)
			s.got += n
			data = data[n:]
			grown += int64(n)
			if s.got < len(s.head) {
				break
			}
			s.left = binary.BigEndian.Uint32(s.head[1:])
		}
		n := min(len(data), int(s.left))
		data = data[n:]
		s.left -= uint32(n)
		grown += int64(n)
		if s.left == 0 {
			s.got = 0
			grown = streamSize - s.held // it is complete: a handler has it, or it waits within the window
		}
	}
	return grown
}

// frames follows frames through a sequence of bytes.
type frames struct {
	skip int // bytes before the first frame
	head [9]byte
	got  int // bytes of the head
	left int // bytes of the payload that are to come

	kind   byte
	flags  byte
	stream uint32
	data   int // bytes of the payload, after a byte that says how many pad it, that are data
	padded bool
}

// Frames, RFC 9113, section 6.
const (
	frameData    = 0
	frameHeaders = 1
	frameReset   = 3

	flagEndStream = 1
	flagPadded    = 8
)

// done reports whether the payload has come whole.
func (f *frames) done() bool { return f.left == 0 }

// ends reports whether nothing follows in this direction of the stream.
func (f *frames) ends() bool {
	return (f.kind == frameData || f.kind == frameHeaders) && f.flags&flagEndStream != 0
}

// feed calls see for each part of a frame: data has what it holds of a DATA frame.
func (f *frames) feed(b []byte, see func(f *frames, data []byte)) {
	n := min(f.skip, len(b))
	f.skip -= n
	for b = b[n:]; len(b) > 0; {
		if f.got < len(f.head) {
			n := copy(f.head[f.got:], b)
			f.got += n
			b = b[n:]
			if f.got < len(f.head) {
				return
			}
			f.begin()
			if f.left > 0 {
				continue // its first part tells
			}
			f.got = 0
			see(f, nil)
			continue
		}
		part := b[:min(f.left, len(b))]
		b = b[len(part):]
		f.left -= len(part)
		if f.left == 0 {
			f.got = 0
		}
		see(f, f.payload(part))
	}
}

func (f *frames) begin() {
	f.left = int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2])
	f.kind, f.flags = f.head[3], f.head[4]
	f.stream = binary.BigEndian.Uint32(f.head[5:]) & (1<<31 - 1)
	f.padded = f.kind == frameData && f.flags&flagPadded != 0
	f.data = 0
	if f.kind == frameData {
		f.data = f.left
	}
}

// payload returns the data in a part of the payload.
func (f *frames) payload(part []byte) []byte {
	if f.padded {
		f.padded = false
		f.data = max(0, f.data-1-int(part[0]))
		part = part[1:]
	}
	part = part[:min(len(part), f.data)]
	f.data -= len(part)
	return part
}
