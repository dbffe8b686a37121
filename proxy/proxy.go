package proxy

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
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

	mu         sync.Mutex
	requests   []Request
	materials  []Material
	incomplete []Incomplete
}

// CA is the certificate that the step must trust, in PEM.
func (p *Proxy) CA() []byte { return p.Authority.pem }

// headerPatience is how long a step may take for the header of a request.
const headerPatience = 30 * time.Second

// Serve answers requests until stop is called, which ends those under way and waits for them. Dial makes the connections of the
// proxy's own requests.
func (p *Proxy) Serve(l net.Listener, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (stop func()) {
	t := &http.Transport{DialContext: dial, Proxy: http.ProxyFromEnvironment, DisableCompression: true, ForceAttemptHTTP2: true}
	ctx, cancel := context.WithCancel(context.Background())
	h := &handler{p: p, way: t, ctx: ctx}
	s := &http.Server{Handler: h, ReadHeaderTimeout: headerPatience}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) }) // it ends with stop
	return func() {
		cancel()
		s.Close()
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
	running sync.WaitGroup
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.running.Add(1)
	defer h.running.Done()
	r = r.WithContext(h.ctx)
	if r.Method == http.MethodConnect {
		h.connect(w, r)
		return
	}
	if !r.URL.IsAbs() {
		r.URL.Scheme, r.URL.Host = "http", r.Host
	}
	resp, code, err := h.pass(r)
	if err != nil {
		http.Error(w, err.Error(), code)
		return
	}
	defer resp.Body.Close()
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	b := newBody(resp.Body)
	_, err = io.Copy(w, b)
	h.p.fetched(r, resp, b, err)
}

var errForbidden = errors.New("Forbidden") //nolint:staticcheck // it is what a client reads

// pass asks the policy and passes a request on. An error comes with the status to answer.
func (h *handler) pass(r *http.Request) (*http.Response, int, error) {
	if h.p.Check != nil {
		was := redacted(r.URL)
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
	for _, name := range []string{"Connection", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Keep-Alive", "Te", "Trailer", "Upgrade", "Accept-Encoding"} {
		for _, f := range strings.Split(r.Header.Get(name), ",") {
			if name == "Connection" && strings.TrimSpace(f) != "" {
				r.Header.Del(strings.TrimSpace(f))
			}
		}
		r.Header.Del(name) // Accept-Encoding too: what is recorded is the content
	}
	r.RequestURI = ""
	resp, err := h.way.RoundTrip(r)
	if err != nil {
		h.p.answered(r, http.StatusBadGateway, "")
		h.p.failed(r, "upstream_error")
		return nil, http.StatusBadGateway, err
	}
	redirect := ""
	if to, err := resp.Location(); err == nil {
		redirect = plain(to)
	}
	h.p.answered(r, resp.StatusCode, redirect)
	return resp, 0, nil
}

func redacted(u *url.URL) string {
	if u.User == nil {
		return u.String()
	}
	c := *u
	c.User = url.UserPassword("xxxxx", "xxxxx")
	return c.String()
}

// connect looks into a tunnel: it is the server that the step wants to talk to.
func (h *handler) connect(w http.ResponseWriter, r *http.Request) {
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		http.Error(w, "no tunnels here", http.StatusInternalServerError)
		return
	}
	raw, _, err := hijacker.Hijack()
	if err != nil {
		return
	}
	defer raw.Close()
	defer context.AfterFunc(h.ctx, func() { raw.Close() })()
	if _, err := io.WriteString(raw, "HTTP/1.1 200 Connection Established\r\n\r\n"); err != nil {
		return
	}
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	cert, err := h.p.Authority.leaf(host)
	if err != nil {
		return
	}
	conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12})
	defer conn.Close()
	if err := conn.HandshakeContext(h.ctx); err != nil {
		return
	}
	for in := bufio.NewReader(conn); h.one(in, conn, r.Host); {
	}
}

// one answers a request in a tunnel, and reports whether there may be another one.
func (h *handler) one(in *bufio.Reader, conn net.Conn, host string) bool {
	req, err := http.ReadRequest(in)
	if err != nil {
		return false
	}
	req = req.WithContext(h.ctx)
	defer req.Body.Close()
	req.URL.Scheme, req.URL.Host = "https", host
	resp, code, err := h.pass(req)
	if err != nil {
		text := err.Error() + "\n"
		fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", code, http.StatusText(code), len(text), text)
		return false
	}
	defer resp.Body.Close()
	b := newBody(resp.Body)
	resp.Body = b
	// The answer is written as one to what the step asked, whatever was spoken outside.
	resp.Proto, resp.ProtoMajor, resp.ProtoMinor = req.Proto, req.ProtoMajor, req.ProtoMinor
	resp.Close = resp.Close || req.Close || !req.ProtoAtLeast(1, 1) || resp.ContentLength < 0 && len(resp.TransferEncoding) == 0
	err = resp.Write(conn)
	h.p.fetched(req, resp, b, err)
	return err == nil && !resp.Close
}

// body is the body of an answer, hashed as it goes by.
type body struct {
	io.ReadCloser
	sum hash.Hash
	err error
}

func newBody(r io.ReadCloser) *body { return &body{ReadCloser: r, sum: sha256.New()} }

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.sum.Write(p[:n])
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}

func (b *body) digest() string { return "sha256:" + hex.EncodeToString(b.sum.Sum(nil)) }
