package buildkit

import (
	"net"
	"sync"
)

// oneConn is a listener of one connection. It ends with it.
type oneConn struct {
	conn   solo
	first  chan struct{} // has a value until the connection has been accepted
	closed chan struct{}
	close  func()
}

// solo is the connection of a oneConn.
type solo struct {
	net.Conn
	l *oneConn
}

func newOneConn(conn net.Conn) *oneConn {
	l := &oneConn{first: make(chan struct{}, 1), closed: make(chan struct{})}
	l.conn = solo{conn, l}
	l.first <- struct{}{}
	l.close = sync.OnceFunc(func() { close(l.closed) })
	return l
}

// Accept implements net.Listener.
func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case <-l.first:
		return l.conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *oneConn) Close() error {
	l.close()
	return nil
}

// Addr implements net.Listener.
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

// Close implements net.Conn.
func (c solo) Close() error {
	c.l.close()
	return c.Conn.Close()
}
