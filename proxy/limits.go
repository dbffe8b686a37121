package proxy

import (
	"net"
	"sync"
	"time"
)

// limits bound what a step can make its proxy hold and wait for.
type limits struct {
	requests int           // that are recorded; later ones are refused
	recorded int           // bytes of the recorded addresses
	address  int           // bytes of one address
	header   int           // bytes of a header, of requests and of answers
	conns    int           // connections at once; more wait in the socket's queue
	begin    time.Duration // for a TLS handshake, or the header of a request
	idle     time.Duration // without a byte in either direction
}

// orDefaults fills in what is not set.
func (l limits) orDefaults() limits {
	d := limits{
		requests: 1 << 16, recorded: 16 << 20, address: 8 << 10, header: 256 << 10, conns: 256,
		begin: 30 * time.Second, idle: 5 * time.Minute,
	}
	for _, f := range []struct{ set, to *int }{
		{&l.requests, &d.requests}, {&l.recorded, &d.recorded}, {&l.address, &d.address}, {&l.header, &d.header}, {&l.conns, &d.conns},
	} {
		if *f.set == 0 {
			*f.set = *f.to
		}
	}
	if l.begin == 0 {
		l.begin = d.begin
	}
	if l.idle == 0 {
		l.idle = d.idle
	}
	return l
}

// boundedListener accepts a limited number of connections at once.
type boundedListener struct {
	net.Listener
	slots chan struct{}
	ended chan struct{}
	once  sync.Once
}

func newBoundedListener(l net.Listener, n int) *boundedListener {
	return &boundedListener{Listener: l, slots: make(chan struct{}, n), ended: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.ended:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &boundedConn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

// Close implements net.Listener.
func (l *boundedListener) Close() error {
	l.once.Do(func() { close(l.ended) })
	return l.Listener.Close()
}

type boundedConn struct {
	net.Conn
	free func()
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}
