package remote

import (
	"bufio"
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// chunk is how many bytes of a stream go into one message.
const chunk = 1 << 20

// pipe is a stream of bytes in both directions, as messages whose field 1 is data.
type pipe struct {
	stream grpc.ClientStream
	ctx    context.Context
	done   func()
	rest   []byte
}

// pipe opens a stream. It ends with ctx, with the session, or when it is closed.
func (c *client) pipe(ctx context.Context, method string, kv map[string][]string) (*pipe, error) {
	ctx, done := c.call(ctx, kv)
	s, err := c.cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		done()
		return nil, failed(ctx, err, "a stream of the client")
	}
	return &pipe{stream: s, ctx: ctx, done: done}, nil
}

func (p *pipe) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		var m message
		if err := p.stream.RecvMsg(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return 0, io.EOF
			}
			return 0, failed(p.ctx, err, "a stream of the client")
		}
		var err error
		if p.rest, err = m.field(1); err != nil {
			return 0, err
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

func (p *pipe) Write(b []byte) (int, error) {
	if err := p.stream.SendMsg(blob(b)); err != nil {
		if errors.Is(err, io.EOF) { // the client has ended the stream: it says why when it is read
			if err = p.stream.RecvMsg(&message{}); err == nil || errors.Is(err, io.EOF) {
				return 0, io.ErrClosedPipe
			}
		}
		if status.Code(err) == codes.AlreadyExists {
			return 0, errHave
		}
		return 0, failed(p.ctx, err, "a stream of the client")
	}
	return len(b), nil
}

// CloseWrite tells the client that no more comes.
func (p *pipe) CloseWrite() error { return p.stream.CloseSend() }

func (p *pipe) Close() error {
	_ = p.stream.CloseSend() // the connection may have gone: then there is nobody to tell
	p.done()
	return nil
}

// writer splits what is written into messages.
type writer struct{ p *pipe }

func (w writer) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		k, err := w.p.Write(b[:min(len(b), chunk)])
		n += k
		if err != nil {
			return n, err
		}
		b = b[k:]
	}
	return n, nil
}

// file is a stream to a file of the client. Close waits until the client has all of it.
type file struct {
	pipe     *pipe
	buf      *bufio.Writer
	unwanted bool // the client has it already: the rest goes nowhere
}

func (f *file) Write(b []byte) (int, error) {
	if f.unwanted {
		return len(b), nil
	}
	n, err := f.buf.Write(b)
	if errors.Is(err, errHave) {
		f.unwanted = true
		return len(b), nil
	}
	return n, err
}

func (f *file) Close() error {
	defer f.pipe.done()
	if f.unwanted {
		return nil
	}
	if err := f.buf.Flush(); err != nil {
		if errors.Is(err, errHave) {
			return nil
		}
		return err
	}
	if err := f.pipe.stream.CloseSend(); err != nil {
		return failed(f.pipe.ctx, err, "a stream of the client")
	}
	err := f.pipe.stream.RecvMsg(&message{})
	if err != nil && !errors.Is(err, io.EOF) && status.Code(err) != codes.AlreadyExists {
		return failed(f.pipe.ctx, err, "a stream of the client")
	}
	return nil
}

// errHave says that the client has the file already.
var errHave = errors.New("the client has it already")

// Abort ends the stream without telling the client that it is complete.
func (f *file) Abort() { f.pipe.done() }
