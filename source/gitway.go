package source

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/registry"
)

// gitWay is how git reaches http and https servers: a SOCKS server (RFC 1928, RFC 1929) of this process, which looks at the address of
// every connection, those of redirects and submodules too, after it has resolved the name. Only git knows the password.
type gitWay struct {
	listener net.Listener
	password string
	dialer   net.Dialer
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu      sync.Mutex
	refused error // why a connection was not made
}

const (
	wayUser   = "strata"
	wayConns  = 64               // at once
	wayGreets = 30 * time.Second // for what comes before the connection
)

// newGitWay starts the server. It is nil where git goes another way: by the machine's own proxy, or anywhere it likes.
func newGitWay(ctx context.Context, allowMetadata bool) (*gitWay, error) {
	if allowMetadata {
		return nil, nil
	}
	for _, name := range []string{"http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
		if os.Getenv(name) != "" {
			return nil, nil
		}
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, diag.Errorf(diag.Unavailable, "cannot start git's proxy: %w", err)
	}
	w := &gitWay{listener: l, password: rand.Text()}
	w.dialer = net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second, Control: w.check}
	w.ctx, w.cancel = context.WithCancel(ctx)
	w.wg.Go(w.serve)
	return w, nil
}

// config is what git is told.
func (w *gitWay) config() [2]string {
	u := url.URL{Scheme: "socks5h", User: url.UserPassword(wayUser, w.password), Host: w.listener.Addr().String()}
	return [2]string{"http.proxy", u.String()}
}

// close ends all connections.
func (w *gitWay) close() {
	if w == nil {
		return
	}
	w.cancel()
	w.listener.Close()
	w.wg.Wait()
}

// why returns the refusal that made git fail; nil = none.
func (w *gitWay) why() error {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.refused
}

func (w *gitWay) check(_, addr string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(addr)
	if err == nil {
		err = registry.CheckMetadata(at.Addr())
	}
	if err == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refused = err
	return err
}

func (w *gitWay) serve() {
	slots := make(chan struct{}, wayConns)
	for {
		slots <- struct{}{}
		c, err := w.listener.Accept()
		if err != nil {
			return
		}
		w.wg.Go(func() {
			defer func() { <-slots }()
			defer c.Close()
			defer context.AfterFunc(w.ctx, func() { c.Close() })()
			w.connect(c)
		})
	}
}

// connect answers one connection of git.
func (w *gitWay) connect(c net.Conn) {
	if c.SetDeadline(time.Now().Add(wayGreets)) != nil {
		return
	}
	to, err := w.greet(c)
	if err != nil {
		return
	}
	out, err := w.dialer.DialContext(w.ctx, "tcp", to)
	code := byte(0)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		code = 5
	case err != nil && w.why() != nil:
		code = 2
	case err != nil:
		code = 4
	}
	if _, werr := c.Write([]byte{5, code, 0, 1, 0, 0, 0, 0, 0, 0}); werr != nil || err != nil {
		if err == nil {
			out.Close()
		}
		return
	}
	defer out.Close()
	defer context.AfterFunc(w.ctx, func() { out.Close() })()
	if c.SetDeadline(time.Time{}) != nil {
		return
	}
	ended := make(chan struct{}, 2)
	pass := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		if t, ok := to.(*net.TCPConn); ok {
			_ = t.CloseWrite()
		}
		ended <- struct{}{}
	}
	go pass(out, c)
	go pass(c, out)
	<-ended
	<-ended
}

var errSocks = errors.New("not a request of git's")

// greet reads who asks and for what, a host and a port.
func (w *gitWay) greet(c net.Conn) (string, error) {
	read := func(n byte) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(c, b); err != nil {
			return nil
		}
		return b
	}
	if head := read(2); head == nil || head[0] != 5 || read(head[1]) == nil {
		return "", errSocks
	}
	if _, err := c.Write([]byte{5, 2}); err != nil { // with a password
		return "", err
	}
	head := read(2)
	if head == nil || head[0] != 1 {
		return "", errSocks
	}
	user, size := read(head[1]), read(1)
	if user == nil || size == nil {
		return "", errSocks
	}
	if pass := read(size[0]); pass == nil || string(user) != wayUser || subtle.ConstantTimeCompare(pass, []byte(w.password)) != 1 {
		_, err := c.Write([]byte{1, 1})
		return "", errors.Join(errSocks, err)
	}
	if _, err := c.Write([]byte{1, 0}); err != nil {
		return "", err
	}
	req := read(4)
	if req == nil || req[0] != 5 || req[1] != 1 {
		return "", errSocks
	}
	host := ""
	switch req[3] {
	case 1, 4:
		ip, ok := netip.AddrFromSlice(read(map[byte]byte{1: 4, 4: 16}[req[3]]))
		if !ok {
			return "", errSocks
		}
		host = ip.String()
	case 3:
		n := read(1)
		if n == nil || n[0] == 0 {
			return "", errSocks
		}
		host = string(read(n[0]))
		if strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r > '~' || r == '[' || r == ']' }) { // no name of a host
			return "", errSocks
		}
	}
	port := read(2)
	if host == "" || port == nil {
		return "", errSocks
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port[0])<<8|int(port[1]))), nil
}

// checkHost refuses a server that git reaches without a gitWay: by ssh, or git's own protocol.
func checkHost(ctx context.Context, remote string, allowMetadata bool) error {
	host := ""
	if u, err := url.Parse(remote); err == nil && (u.Scheme == "ssh" || u.Scheme == "git") {
		host = u.Hostname()
	} else if !strings.Contains(remote, "://") { // user@host:path
		host, _, _ = strings.Cut(remote[strings.IndexByte(remote, '@')+1:], ":")
	}
	if allowMetadata || host == "" {
		return nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil //nolint:nilerr // git says so
	}
	for _, ip := range ips {
		if err := registry.CheckMetadata(ip); err != nil {
			return fmt.Errorf("%s: %w", remote, err)
		}
	}
	return nil
}
