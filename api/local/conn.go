package local

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/strata-build/strata/diag"
)

// Types of frames.
const (
	frameRequest byte = 'q' // client: begins the call
	frameCancel  byte = 'x' // client: stop, then say how it ended
	frameReply   byte = 'r' // client: outcome of a callback
	frameResize  byte = 'w' // client: rows and columns of its terminal
	frameBegin   byte = 'b' // server: the call is taken; before it, the end of the connection means that it is not
	frameEvent   byte = 'e' // server
	frameAsk     byte = 'c' // server: a callback
	frameDone    byte = 'd' // server: ends the call
)

// maxFrame bounds a body, in bytes; the largest carry Dockerfiles.
const maxFrame = 64 << 20

// frame is one message.
type frame struct {
	kind  byte
	body  []byte
	files []*os.File
}

// conn sends and receives frames. Sending is safe for concurrent use, receiving is not.
type conn struct {
	u    *net.UnixConn
	r    *bufio.Reader
	fds  []int // received, not yet claimed by a frame
	send sync.Mutex
}

func newConn(u *net.UnixConn) *conn {
	c := &conn{u: u}
	c.r = bufio.NewReaderSize(fdReader{c}, 64<<10)
	return c
}

// fdReader reads bytes and collects the descriptors that come with them.
type fdReader struct{ c *conn }

func (r fdReader) Read(p []byte) (int, error) {
	oob := make([]byte, syscall.CmsgSpace(16*4))
	n, oobn, _, _, err := r.c.u.ReadMsgUnix(p, oob)
	n = max(n, 0) // -1 with an error
	if oobn > 0 {
		msgs, perr := syscall.ParseSocketControlMessage(oob[:oobn])
		if perr != nil {
			return n, perr
		}
		for _, m := range msgs {
			fds, perr := syscall.ParseUnixRights(&m)
			if perr != nil {
				return n, perr
			}
			for _, fd := range fds {
				syscall.CloseOnExec(fd)
			}
			r.c.fds = append(r.c.fds, fds...)
		}
	}
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

// write sends a frame. The files stay open here.
func (c *conn) write(kind byte, v any, files ...*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	head := make([]byte, 6, 6+len(body))
	head[0], head[1] = kind, byte(len(files))
	binary.BigEndian.PutUint32(head[2:], uint32(len(body)))
	c.send.Lock()
	defer c.send.Unlock()
	if len(files) == 0 {
		_, err = c.u.Write(append(head, body...))
		return err
	}
	fds := make([]int, len(files))
	for i, f := range files {
		if fds[i], err = fdOf(f); err != nil {
			return err
		}
	}
	// The descriptors travel with the head, which is too short to be split.
	if _, _, err := c.u.WriteMsgUnix(head, syscall.UnixRights(fds...), nil); err != nil {
		return err
	}
	_, err = c.u.Write(body)
	return err
}

// fdOf returns a file's descriptor. Unlike File.Fd it leaves the file's mode alone: a pipe that does not block stays so,
// and a read of it ends when it is closed.
func fdOf(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	return fd, raw.Control(func(n uintptr) { fd = int(n) })
}

func (c *conn) read() (frame, error) {
	var head [6]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return frame{}, err
	}
	n := binary.BigEndian.Uint32(head[2:])
	if n > maxFrame {
		return frame{}, fmt.Errorf("a frame of %d bytes is too large", n)
	}
	f := frame{kind: head[0], body: make([]byte, n)}
	if _, err := io.ReadFull(c.r, f.body); err != nil {
		return frame{}, err
	}
	if int(head[1]) > len(c.fds) {
		return frame{}, errors.New("descriptors are missing")
	}
	for _, fd := range c.fds[:head[1]] {
		f.files = append(f.files, os.NewFile(uintptr(fd), "passed"))
	}
	c.fds = c.fds[head[1]:]
	return f, nil
}

func (c *conn) close() {
	_ = c.u.Close()
	for _, fd := range c.fds {
		_ = syscall.Close(fd)
	}
	c.fds = nil
}

// request begins a call.
type request struct {
	Method string
	Exe    string          // which program the client is; "" = any
	Arg    json.RawMessage `json:",omitempty"`
	Client bool            // the client has a session and takes callbacks
}

// outcome ends a call or a callback.
type outcome struct {
	ID    int64           `json:",omitempty"` // of the callback
	Value json.RawMessage `json:",omitempty"`
	Error *diag.Error     `json:",omitempty"`
}

// ask is a callback.
type ask struct {
	ID     int64
	Method string
	Arg    string
}

func (o *outcome) into(v any) error {
	if o.Error != nil {
		return o.Error
	}
	if v == nil || len(o.Value) == 0 {
		return nil
	}
	return json.Unmarshal(o.Value, v)
}

// outcomeOf packs what a function returned.
func outcomeOf(id int64, v any, err error) outcome {
	o := outcome{ID: id}
	if err == nil && v != nil {
		o.Value, err = json.Marshal(v)
	}
	if err != nil {
		o.Error = diag.Flatten(err)
		o.Error.Err = nil
	}
	return o
}
