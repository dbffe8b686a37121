package sandbox

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
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
	slots  chan struct{}

	mu   sync.Mutex
	from map[netip.Addr]int // questions under way, by who asks
}

const (
	dnsTimeout = 5 * time.Second
	dnsRetry   = 50 * time.Millisecond // after an error of the socket
	dnsAtOnce  = 256                   // questions under way; more wait in the socket's buffer
	dnsOfOne   = 64                    // of one step; more are dropped, so that it does not take all
)

// newForwarder listens on port 53 of an address of the calling thread's network namespace.
func newForwarder(ip netip.Addr, resolv string) (*forwarder, error) {
	f := &forwarder{resolv: resolv, port: "53", slots: make(chan struct{}, dnsAtOnce), from: map[netip.Addr]int{}}
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
		done, ok := f.enter(from)
		if !ok {
			continue
		}
		go func() {
			defer done()
			if answer := f.ask(buf[:n]); answer != nil {
				f.udp.WriteTo(answer, from)
			}
		}()
	}
}

// enter waits for a place for a question, unless who asks has many under way.
func (f *forwarder) enter(from net.Addr) (done func(), ok bool) {
	at, err := netip.ParseAddrPort(from.String())
	ip := at.Addr()
	f.mu.Lock()
	ok = err == nil && f.from[ip] < dnsOfOne
	if ok {
		f.from[ip]++
	}
	f.mu.Unlock()
	if !ok {
		return nil, false
	}
	f.slots <- struct{}{}
	return func() {
		<-f.slots
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.from[ip]--; f.from[ip] == 0 {
			delete(f.from, ip)
		}
	}, true
}

// ask sends one question to the servers in turn and returns the first answer.
func (f *forwarder) ask(question []byte) []byte {
	ctx, cancel := context.WithTimeout(context.Background(), 2*dnsTimeout)
	defer cancel()
	for _, server := range f.servers() {
		conn, err := (&net.Dialer{}).DialContext(ctx, "udp", net.JoinHostPort(server, f.port))
		if err != nil {
			continue
		}
		conn.SetDeadline(time.Now().Add(dnsTimeout))
		answer := make([]byte, 64<<10)
		n := 0
		if _, err = conn.Write(question); err == nil {
			n, err = conn.Read(answer)
		}
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
		done, ok := f.enter(in.RemoteAddr())
		if !ok {
			in.Close()
			continue
		}
		go func() {
			defer done()
			defer in.Close()
			f.pipe(in)
		}()
	}
}

func (f *forwarder) pipe(in net.Conn) {
	for _, server := range f.servers() {
		out, err := net.DialTimeout("tcp", net.JoinHostPort(server, f.port), dnsTimeout)
		if err != nil {
			continue
		}
		defer out.Close()
		deadline := time.Now().Add(6 * dnsTimeout)
		in.SetDeadline(deadline)
		out.SetDeadline(deadline)
		go io.Copy(out, in)
		io.Copy(in, out)
		return
	}
}
