package proxy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Check decides about a request. It returns the address to ask instead, which is the same one as a rule, or why there is none.
type Check func(ctx context.Context, url string) (string, error)

// Proxy is the proxy of one step.
type Proxy struct {
	Authority *Authority
	Check     Check // nil lets everything pass

	limits limits // zero values are the defaults

	mu         sync.Mutex
	admitted   int // requests that were passed on or are about to be
	recorded   int // bytes of their addresses
	requests   []Request
	materials  []Material
	incomplete []Incomplete
}

// CA is the certificate that the step must trust, in PEM.
func (p *Proxy) CA() []byte { return p.Authority.pem }

// Serve answers requests until stop is called, which ends those under way and waits for them. Dial makes the connections of the
// proxy's own requests.
func (p *Proxy) Serve(l net.Listener, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (stop func()) {
	lim := p.limits.orDefaults()
	t := &http.Transport{
		DialContext: dial, Proxy: http.ProxyFromEnvironment, DisableCompression: true, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: lim.begin, ResponseHeaderTimeout: lim.idle, MaxResponseHeaderBytes: int64(lim.header),
		MaxIdleConns: lim.conns, IdleConnTimeout: 90 * time.Second,
	}
	ctx, cancel := context.WithCancel(context.Background())
	h := &handler{p: p, way: t, ctx: ctx, limits: lim, tunnels: make(chan net.Conn)}
	outer, inner := h.server(http.HandlerFunc(h.outside)), h.server(http.HandlerFunc(h.inside))
	inner.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if t, ok := c.(*tunnel); ok {
			ctx = context.WithValue(ctx, authorityKey{}, t.authority)
		}
		return ctx
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = outer.Serve(newBoundedListener(l, lim.conns)) }) // they end with stop
	wg.Go(func() { _ = inner.Serve(tunnelListener{h, l.Addr()}) })
	return func() {
		h.end()
		cancel()
		outer.Close()
		inner.Close()
		wg.Wait()
		h.running.Wait()
		t.CloseIdleConnections()
	}
}

// handler answers the requests of a step.
type handler struct {
	p       *Proxy
	way     http.RoundTripper
	ctx     context.Context // ends with the step
	limits  limits
	tunnels chan net.Conn // that have begun

	mu      sync.Mutex
	ended   bool
	running sync.WaitGroup
}

func (h *handler) server(serve http.Handler) *http.Server {
	return &http.Server{
		Handler: serve, ReadHeaderTimeout: h.limits.begin, IdleTimeout: h.limits.idle, MaxHeaderBytes: h.limits.header,
		DisableGeneralOptionsHandler: true,
		BaseContext:                  func(net.Listener) context.Context { return h.ctx }, ErrorLog: log.New(io.Discard, "", 0),
	}
}

// enter counts a request in, unless the step has ended.
func (h *handler) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ended {
		h.running.Add(1)
	}
	return !h.ended
}

func (h *handler) end() {
	h.mu.Lock()
	h.ended = true
	h.mu.Unlock()
}

// outside answers requests to the proxy itself.
func (h *handler) outside(w http.ResponseWriter, r *http.Request) {
	if !h.enter() {
		return
	}
	defer h.running.Done()
	if r.Method == http.MethodConnect {
		h.connect(w, r)
		return
	}
	h.answer(w, r, "")
}

// answer passes a request on, and its answer back. Authority is that of the request's tunnel.
func (h *handler) answer(w http.ResponseWriter, r *http.Request, authority string) {
	u, err := target(r, authority)
	if err != nil {
		http.Error(w, err.Error(), http.StatusMisdirectedRequest)
		return
	}
	if len(r.Method) > maxMethod { // it is recorded
		http.Error(w, "the method is too long", http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	rc := http.NewResponseController(w)
	idle := time.AfterFunc(h.limits.idle, func() {
		cancel()
		past := time.Unix(1, 0)
		_, _ = rc.SetReadDeadline(past), rc.SetWriteDeadline(past)
	})
	defer idle.Stop()
	touch := func() { idle.Reset(h.limits.idle) }
	r = r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &body{ReadCloser: r.Body, touch: touch}
	}
	r.URL, r.Host = u, u.Host
	resp, code, err := h.pass(r)
	if err != nil {
		http.Error(w, err.Error(), code)
		return
	}
	defer resp.Body.Close()
	removeHop(resp.Header)
	for _, k := range []string{"Content-Type", "Date"} { // the server would add its own
		w.Header()[k] = nil
	}
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	b := &body{ReadCloser: resp.Body, sum: sha256.New(), touch: touch}
	var to io.Writer = w
	if resp.ContentLength < 0 { // it may trickle
		to = flushed{w, rc}
	}
	_, err = io.Copy(to, b)
	h.p.fetched(r, resp, b, err)
	if err != nil {
		panic(http.ErrAbortHandler) // the step must not take the answer for a whole one
	}
}

// flushed is a writer that holds nothing back.
type flushed struct {
	io.Writer
	rc *http.ResponseController
}

// Write implements io.Writer.
func (f flushed) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	return n, errors.Join(err, f.rc.Flush())
}

// maxMethod bounds the bytes of a method.
const maxMethod = 32

var errForbidden = errors.New("Forbidden") //nolint:staticcheck // it is what a client reads

// pass asks the policy and passes a request on. An error comes with the status to answer.
func (h *handler) pass(r *http.Request) (*http.Response, int, error) {
	if n := len(r.URL.String()); n > h.limits.address {
		return nil, http.StatusRequestURITooLong, fmt.Errorf("the address has %d bytes, and the proxy records at most %d", n, h.limits.address)
	}
	if h.p.Check != nil {
		was := r.URL.String()
		now, err := h.p.Check(h.ctx, was)
		if err != nil || now != was && r.Method != http.MethodGet {
			return nil, http.StatusForbidden, errForbidden
		}
		if now != was {
			u, err := url.Parse(now)
			if err != nil || u.Scheme != "http" && u.Scheme != "https" {
				return nil, http.StatusForbidden, errForbidden
			}
			r.URL, r.Host = u, u.Host
		}
	}
	if err := h.p.admit(r, h.limits); err != nil {
		return nil, http.StatusServiceUnavailable, err
	}
	removeHop(r.Header)
	r.Header.Del("Accept-Encoding") // what is recorded is the content
	r.RequestURI = ""
	resp, err := h.way.RoundTrip(r)
	if err == nil && (resp.StatusCode < 200 || resp.StatusCode > 599) {
		err = errors.Join(fmt.Errorf("the answer has the status %d", resp.StatusCode), resp.Body.Close())
	}
	if err != nil {
		h.p.answered(r, http.StatusBadGateway, "")
		h.p.failed(r, "upstream_error")
		return nil, http.StatusBadGateway, err
	}
	redirect := ""
	if to, err := resp.Location(); err == nil {
		if host, err := canonicalHost(to.Scheme, to.Host); err == nil {
			to.Host = host
		}
		if redirect = plain(to); len(redirect) > h.limits.address {
			redirect = ""
		}
	}
	h.p.answered(r, resp.StatusCode, redirect)
	return resp, 0, nil
}

// removeHop removes the fields of a header that are between two neighbours only.
func removeHop(header http.Header) {
	for _, v := range header.Values("Connection") {
		for f := range strings.SplitSeq(v, ",") {
			header.Del(strings.TrimSpace(f))
		}
	}
	for _, name := range []string{
		"Connection", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
	} {
		header.Del(name)
	}
}

// body is a body, hashed as it goes by if it is an answer's.
type body struct {
	io.ReadCloser
	sum   hash.Hash // nil = it is not hashed
	touch func()    // is called for what arrives
	err   error
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.touch()
	}
	if b.sum != nil {
		b.sum.Write(p[:n])
	}
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}

func (b *body) digest() string { return "sha256:" + hex.EncodeToString(b.sum.Sum(nil)) }
