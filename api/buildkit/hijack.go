package buildkit

import (
	"net"
	"net/http"
	"sync"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc/metadata"

	"github.com/strata-build/strata/diag"
)

// Session turns a stream of bytes into a connection on which the client serves its session.
func (s *Server) Session(stream control.Control_SessionServer) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	header := http.Header{}
	for k, v := range md {
		header[http.CanonicalHeaderKey(k)] = v
	}
	p := peerOf(stream.Context())
	if p.Conn == "" || linkOf(stream.Context()) == nil {
		return diag.Errorf(diag.Denied, "the connection has no identity")
	}
	c := &hijacked{stream: stream, closed: make(chan struct{})}
	err := s.of(stream.Context()).sessions.Serve(stream.Context(), newWire(c, linkOf(stream.Context()), asClient), header, p)
	if stream.Context().Err() != nil {
		return nil // the client has left
	}
	return err
}

// hijacked is a stream as a connection. It ends with the call.
type hijacked struct {
	stream interface {
		Send(*control.BytesMessage) error
		Recv() (*control.BytesMessage, error)
	}
	rest   []byte
	send   sync.Mutex
	once   sync.Once
	closed chan struct{}
}

func (c *hijacked) Read(b []byte) (int, error) {
	for len(c.rest) == 0 {
		m, err := c.stream.Recv()
		if err != nil {
			return 0, err
		}
		c.rest = m.Data
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *hijacked) Write(b []byte) (int, error) {
	c.send.Lock()
	defer c.send.Unlock()
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
	}
	if err := c.stream.Send(&control.BytesMessage{Data: b}); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (c *hijacked) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func (c *hijacked) LocalAddr() net.Addr              { return address{} }
func (c *hijacked) RemoteAddr() net.Addr             { return address{} }
func (c *hijacked) SetDeadline(time.Time) error      { return nil }
func (c *hijacked) SetReadDeadline(time.Time) error  { return nil }
func (c *hijacked) SetWriteDeadline(time.Time) error { return nil }

type address struct{}

func (address) Network() string { return "session" }
func (address) String() string  { return "session" }
