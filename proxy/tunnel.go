package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// tunnel is a connection through which a step speaks TLS with the proxy, which it takes for the authority.
type tunnel struct {
	*tls.Conn
	authority string // canonical host and port
}

// authorityKey is the key of a request's authority in its context.
type authorityKey struct{}

// inside answers requests that came through a tunnel.
func (h *handler) inside(w http.ResponseWriter, r *http.Request) {
	if !h.enter() {
		return
	}
	defer h.running.Done()
	authority, ok := r.Context().Value(authorityKey{}).(string)
	if !ok || r.Method == http.MethodConnect {
		http.Error(w, "no tunnel inside a tunnel", http.StatusMethodNotAllowed)
		return
	}
	h.answer(w, r, authority)
}

// connect begins a tunnel.
func (h *handler) connect(w http.ResponseWriter, r *http.Request) {
	authority, err := canonicalHost("https", r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		http.Error(w, "no tunnels here", http.StatusInternalServerError)
		return
	}
	raw, early, err := hijacker.Hijack()
	if err != nil {
		return
	}
	conn, err := h.handshake(raw, early, authority)
	if err != nil {
		raw.Close()
		return
	}
	select {
	case h.tunnels <- &tunnel{conn, authority}:
	case <-h.ctx.Done():
		raw.Close()
	}
}

// handshake makes the proxy the server that the step wants to talk to. Early are the bytes that the step has sent already.
func (h *handler) handshake(raw net.Conn, early io.Reader, authority string) (*tls.Conn, error) {
	host := hostOnly(authority)
	cert, err := h.p.Authority.leaf(host)
	if err != nil {
		return nil, err
	}
	if err := raw.SetDeadline(time.Now().Add(h.limits.begin)); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(raw, "HTTP/1.1 200 Connection Established\r\n\r\n"); err != nil {
		return nil, err
	}
	conf := &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12}
	conf.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if name, err := canonicalHost("https", hello.ServerName); hello.ServerName != "" && (err != nil || name != host) {
			return nil, fmt.Errorf("a tunnel to %s got a handshake with %q", authority, hello.ServerName)
		}
		return nil, nil
	}
	conn := tls.Server(&begunConn{raw, early}, conf)
	if err := conn.HandshakeContext(h.ctx); err != nil {
		return nil, err
	}
	return conn, raw.SetDeadline(time.Time{})
}

// begunConn is a connection of which something has been read into a buffer.
type begunConn struct {
	net.Conn
	r io.Reader
}

// Read implements net.Conn.
func (c *begunConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// tunnelListener accepts the tunnels that have begun.
type tunnelListener struct {
	h    *handler
	addr net.Addr
}

// Accept implements net.Listener.
func (l tunnelListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.h.tunnels:
		return c, nil
	case <-l.h.ctx.Done():
		return nil, context.Cause(l.h.ctx)
	}
}

// Close implements net.Listener: the context of the handler ends it.
func (l tunnelListener) Close() error { return nil }

// Addr implements net.Listener.
func (l tunnelListener) Addr() net.Addr { return l.addr }
