package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/strata-build/strata/netguard"
	"github.com/strata-build/strata/span"
)

// Web sends requests that start at one origin and follows redirects with care: credentials stay with the origin, https
// does not become http, and another host may not be on a private network unless the origin is (or the machine's metadata
// service would answer for a public server). Use one Web per origin.
type Web struct {
	own, foreign *http.Transport
	opt          WebOptions
	private      atomic.Bool // a connection to the origin led to a private address
	public       atomic.Bool // and one to another; then the origin counts as public
}

// WebOptions configure a Web.
type WebOptions struct {
	TLS           *tls.Config   // nil = the system's certificates
	UserAgent     string        // "" = that of the requests
	Header        time.Duration // limit for an answer's header
	AllowMetadata bool          // link-local addresses and the metadata services of clouds can be reached
}

var (
	errHeader = errors.New("no answer within the time limit")

	// ErrRedirect is why a Web does not go where a server sends it.
	ErrRedirect = errors.New("redirect refused")
)

// NewWeb makes a Web.
func NewWeb(opt WebOptions) *Web {
	w := &Web{opt: opt}
	w.own = transport(opt.TLS, w.checkOwn, w.seen)
	w.foreign = transport(nil, w.checkForeign, func(net.Conn) {})
	return w
}

// Transport is for servers that builds name and that have protocols of their own. Link-local addresses and the metadata services
// of clouds are refused, unless they are allowed.
func Transport(allowMetadata bool) *http.Transport {
	w := &Web{opt: WebOptions{AllowMetadata: allowMetadata}}
	return transport(nil, w.checkOwn, func(net.Conn) {})
}

// Close drops idle connections.
func (w *Web) Close() {
	w.own.CloseIdleConnections()
	w.foreign.CloseIdleConnections()
}

// transport speaks HTTP/1.1 over several connections: parallel blobs then do not share one flow-control window.
// Check decides about an address, after its name was resolved; connected is called with each connection.
func transport(cfg *tls.Config, check func(network, addr string, c syscall.RawConn) error, connected func(net.Conn)) *http.Transport {
	direct := &net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second, Control: check}
	proxied := &net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}
	proxies := map[string]bool{}
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"} {
		if v := os.Getenv(name); v != "" {
			proxies[proxyAddr(v)] = true
		}
	}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if proxies[addr] { // the proxy connects for us, and may well be on a private network
				return proxied.DialContext(ctx, network, addr)
			}
			c, err := direct.DialContext(ctx, network, addr)
			if err == nil {
				connected(c)
			}
			return c, err
		},
		TLSClientConfig:     cfg,
		TLSHandshakeTimeout: 15 * time.Second,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true, // bytes are hashed as they are stored
		ReadBufferSize:      64 << 10,
		WriteBufferSize:     64 << 10,
	}
}

// proxyAddr returns the host:port that a transport dials for a proxy setting, "" if there is none.
func proxyAddr(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		u, err = url.Parse("http://" + s)
	}
	if err != nil || u.Hostname() == "" {
		return ""
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	}
	if port == "" {
		port = "80"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

func (w *Web) checkOwn(_, addr string, _ syscall.RawConn) error {
	return w.checkMetadata(addrIP(addr))
}

// seen notes what kind of address the origin has. A name that stands for a private address now and then for a public one is not
// that of a private server.
func (w *Web) seen(c net.Conn) {
	if ip := addrIP(c.RemoteAddr().String()); ip.IsPrivate() || ip.IsLoopback() {
		w.private.Store(true)
	} else {
		w.public.Store(true)
	}
}

func (w *Web) checkMetadata(ip netip.Addr) error {
	if w.opt.AllowMetadata {
		return nil
	}
	return CheckMetadata(ip)
}

// CheckMetadata refuses the addresses of the machine's metadata services.
func CheckMetadata(ip netip.Addr) error {
	if netguard.IsMetadata(ip) {
		return netguard.Refuse(ip)
	}
	return nil
}

func (w *Web) checkForeign(_, addr string, _ syscall.RawConn) error {
	ip := addrIP(addr)
	switch {
	case !ip.IsValid(), ip.IsLinkLocalUnicast(), ip.IsMulticast(), ip.IsUnspecified():
		return fmt.Errorf("%w: %s is no public address", ErrRedirect, ip)
	case (ip.IsPrivate() || ip.IsLoopback()) && (!w.private.Load() || w.public.Load()):
		return fmt.Errorf("%w: a public server leads to the private address %s", ErrRedirect, ip)
	}
	return w.checkMetadata(ip)
}

// addrIP is the address of a connection, without what IPv6 wraps around one of IPv4.
func addrIP(addr string) netip.Addr {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}

// Do sends req, whose URL is on the origin, and follows up to 10 redirects of requests without a body. The answer's
// header has to arrive within the limit; the body may take as long as req's context lives. The body of a request is under
// the caller's watch, not under the limit.
func (w *Web) Do(req *http.Request) (*http.Response, error) {
	return w.follow(req, req.URL, w.own)
}

// DoForeign is Do for a URL that the origin named: a token server, an upload location. It carries the credentials that
// req has, so the caller decides whether there are any.
func (w *Web) DoForeign(req *http.Request) (*http.Response, error) {
	return w.follow(req, req.URL, w.foreign)
}

func (w *Web) follow(req *http.Request, origin *url.URL, rt *http.Transport) (*http.Response, error) {
	for hop := 0; ; hop++ {
		resp, err := w.once(rt, req)
		if err != nil || !isRedirect(resp.StatusCode) {
			return resp, err
		}
		loc, err := resp.Location()
		Drain(resp.Body)
		if err != nil {
			return nil, fmt.Errorf("%w: no location", ErrRedirect)
		}
		switch {
		case hop == 10:
			return nil, fmt.Errorf("%w: more than 10 in a row", ErrRedirect)
		case loc.Scheme != "https" && loc.Scheme != "http", loc.Scheme == "http" && req.URL.Scheme == "https":
			return nil, fmt.Errorf("%w: from %s to %s", ErrRedirect, Redact(req.URL), Redact(loc))
		case req.Body != nil && req.Body != http.NoBody:
			return nil, fmt.Errorf("%w: an upload was sent on to %s", ErrRedirect, Redact(loc))
		}
		next := req.Clone(req.Context())
		next.URL, next.Host = loc, ""
		if loc.Host != origin.Host || loc.Scheme != origin.Scheme {
			next.Header.Del("Authorization")
			next.Header.Del("Cookie")
			rt = w.foreign
		}
		req = next
	}
}

// once sends one request and limits the time for the answer's header.
func (w *Web) once(rt *http.Transport, req *http.Request) (_ *http.Response, err error) {
	traced, end := span.Start(req.Context(), req.Method+" "+req.URL.Host, "url.path", req.URL.Path)
	defer func() { end(err) }()
	if w.opt.UserAgent != "" {
		req.Header.Set("User-Agent", w.opt.UserAgent)
	}
	ctx, cancel := context.WithCancelCause(traced)
	var timer *time.Timer
	if req.Body == nil || req.Body == http.NoBody {
		timer = time.AfterFunc(w.opt.Header, func() { cancel(errHeader) })
	}
	resp, err := rt.RoundTrip(req.WithContext(ctx))
	if timer != nil {
		timer.Stop()
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, err
	}
	resp.Body = &answer{resp.Body, ctx, cancel}
	return resp, nil
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// Redact returns a URL without what may be secret: password, query (signed URLs) and fragment.
func Redact(u *url.URL) string {
	c := *u
	c.RawQuery, c.Fragment, c.RawFragment, c.ForceQuery = "", "", "", false
	if c.User != nil {
		c.User = url.User("xxxxx")
	}
	return c.String()
}
