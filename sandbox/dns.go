package sandbox

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// forwarder passes DNS messages from steps to the host's name servers, for hosts whose servers listen on the loopback
// address or on IPv6, where steps cannot reach them. It does not look into the messages.
type forwarder struct {
	udp    net.PacketConn
	tcp    net.Listener
	resolv string // path of the host's resolv.conf, read again for each question
	port   string

	mu    sync.Mutex
	from  map[netip.Addr][]*question // under way, by who asks; oldest first
	asked int                        // questions under way
}

// question is one that waits for its answer.
type question struct{ drop context.CancelFunc }

const (
	dnsTimeout = 5 * time.Second
	dnsRetry   = 50 * time.Millisecond // after an error of the socket
	dnsAtOnce  = 256                   // questions under way; beyond, the step with the most loses its oldest
	dnsOfOne   = 64                    // of one step; more are dropped
)

// newForwarder listens on port 53 of an address of the calling thread's network namespace.
func newForwarder(ip netip.Addr, resolv string) (*forwarder, error) {
	f := &forwarder{resolv: resolv, port: "53", from: map[netip.Addr][]*question{}}
	at := net.JoinHostPort(ip.String(), "53")
	var err error
	if f.udp, err = net.ListenPacket("udp", at); err != nil {
		return nil, err
	}
	if f.tcp, err = net.Listen("tcp", at); err != nil {
		f.udp.Close()
		return nil, err
	}
	go f.serveUDP()
	go f.serveTCP()
	return f, nil
}

func (f *forwarder) close() {
	f.udp.Close()
	f.tcp.Close()
}

func (f *forwarder) servers() []string {
	s := readResolvConf(f.resolv).servers
	if len(s) == 0 {
		return []string{fallbackDNS}
	}
	return s
}

func (f *forwarder) serveUDP() {
	for {
		buf := make([]byte, 4096)
		n, from, err := f.udp.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(dnsRetry)
			continue
		}
		ctx, done := f.enter(from)
		if ctx == nil {
			continue
		}
		go func() {
			defer done()
			if answer := f.ask(ctx, buf[:n]); answer != nil {
				f.udp.WriteTo(answer, from)
			}
		}()
	}
}

// enter makes a place for a question, and returns a context that ends when the question loses it. The context is nil if there is no
// place: who asks has many questions under way, or no step has more. Several steps of one client cannot take all places either.
func (f *forwarder) enter(from net.Addr) (ctx context.Context, done func()) {
	at, err := netip.ParseAddrPort(from.String())
	ip := at.Addr()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil || len(f.from[ip]) >= dnsOfOne {
		return nil, nil
	}
	if f.asked >= dnsAtOnce {
		var most netip.Addr
		for other, all := range f.from {
			if len(all) > len(f.from[most]) {
				most = other
			}
		}
		if len(f.from[most]) <= len(f.from[ip])+1 {
			return nil, nil
		}
		f.forget(most, f.from[most][0])
	}
	q := &question{}
	ctx, q.drop = context.WithCancel(context.Background())
	f.from[ip] = append(f.from[ip], q)
	f.asked++
	return ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.forget(ip, q)
	}
}

// forget takes a question's place, if it has one. The caller holds mu.
func (f *forwarder) forget(ip netip.Addr, q *question) {
	i := slices.Index(f.from[ip], q)
	if i < 0 {
		return
	}
	q.drop()
	f.asked--
	if f.from[ip] = slices.Delete(f.from[ip], i, i+1); len(f.from[ip]) == 0 {
		delete(f.from, ip)
	}
}

// ask sends one question to the servers in turn and returns the first answer.
func (f *forwarder) ask(ctx context.Context, question []byte) []byte {
	ctx, cancel := context.WithTimeout(ctx, 2*dnsTimeout)
	defer cancel()
	for _, server := range f.servers() {
		conn, err := (&net.Dialer{}).DialContext(ctx, "udp", net.JoinHostPort(server, f.port))
		if err != nil {
			continue
		}
		conn.SetDeadline(time.Now().Add(dnsTimeout))
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		answer := make([]byte, 64<<10)
		n := 0
		if _, err = conn.Write(question); err == nil {
			n, err = conn.Read(answer)
		}
		stop()
		conn.Close()
		if err == nil {
			return answer[:n]
		}
	}
	return nil
}

func (f *forwarder) serveTCP() {
	for {
		in, err := f.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(dnsRetry)
			continue
		}
		ctx, done := f.enter(in.RemoteAddr())
		if ctx == nil {
			in.Close()
			continue
		}
		go func() {
			defer done()
			defer in.Close()
			defer context.AfterFunc(ctx, func() { in.Close() })()
			f.pipe(ctx, in)
		}()
	}
}

func (f *forwarder) pipe(ctx context.Context, in net.Conn) {
	for _, server := range f.servers() {
		out, err := net.DialTimeout("tcp", net.JoinHostPort(server, f.port), dnsTimeout)
		if err != nil {
			continue
		}
		defer out.Close()
		defer context.AfterFunc(ctx, func() { out.Close() })()
		deadline := time.Now().Add(6 * dnsTimeout)
		in.SetDeadline(deadline)
		out.SetDeadline(deadline)
		go io.Copy(out, in)
		io.Copy(in, out)
		return
	}
}
