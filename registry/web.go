package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/strata-build/strata/span"
)

// Web sends requests that start at one origin and follows redirects with care: credentials stay with the origin, https
// does not become http, and another host may not be on a private network unless the origin is (or the machine's metadata
// service would answer for a public server). Use one Web per origin.
type Web struct {
	own, foreign *http.Transport
	userAgent    string
	header       time.Duration
	private      atomic.Bool // the origin has a private address
}

var (
	errHeader = errors.New("no answer within the time limit")

	// ErrRedirect is why a Web does not go where a server sends it.
	ErrRedirect = errors.New("redirect refused")
)

// NewWeb makes a Web. A nil tls means the system's certificates; header is the limit for an answer's header.
func NewWeb(tlsConfig *tls.Config, userAgent string, header time.Duration) *Web {
	w := &Web{userAgent: userAgent, header: header}
	w.own = transport(tlsConfig, w.checkOwn)
	w.foreign = transport(nil, w.checkForeign)
	return w
}

// Close drops idle connections.
func (w *Web) Close() {
	w.own.CloseIdleConnections()
	w.foreign.CloseIdleConnections()
}

// transport speaks HTTP/1.1 over several connections: parallel blobs then do not share one flow-control window.
func transport(cfg *tls.Config, check func(network, addr string, c syscall.RawConn) error) *http.Transport {
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
			return direct.DialContext(ctx, network, addr)
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
	ip := addrIP(addr)
	w.private.Store(ip.IsPrivate() || ip.IsLoopback())
	return nil
}

func (w *Web) checkForeign(_, addr string, _ syscall.RawConn) error {
	ip := addrIP(addr)
	switch {
	case ip.IsLinkLocalUnicast(), ip.IsMulticast(), ip.IsUnspecified():
		return fmt.Errorf("%w: %s is no public address", ErrRedirect, ip)
	case (ip.IsPrivate() || ip.IsLoopback()) && !w.private.Load():
		return fmt.Errorf("%w: a public server leads to the private address %s", ErrRedirect, ip)
	}
	return nil
}

func addrIP(addr string) net.IP {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil
	}
	return net.ParseIP(host)
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
	if w.userAgent != "" {
		req.Header.Set("User-Agent", w.userAgent)
	}
	ctx, cancel := context.WithCancelCause(traced)
	var timer *time.Timer
	if req.Body == nil || req.Body == http.NoBody {
		timer = time.AfterFunc(w.header, func() { cancel(errHeader) })
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
