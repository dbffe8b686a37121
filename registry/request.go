package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/strictjson"
)

// request is one call of the protocol, without its body's life cycle: a body is opened for every attempt.
type request struct {
	method string
	url    *url.URL
	header http.Header
	scopes []string
	body   func() (io.ReadCloser, error) // nil = none
	size   int64
}

// do sends r with authentication: once as it is, once more if the endpoint asks for a login or no longer takes the token.
// A URL on another host gets no credentials.
func (c *Client) do(ctx context.Context, ep *endpoint, r request) (*http.Response, error) {
	rejected := ""
	for try := 0; ; try++ {
		req, err := http.NewRequestWithContext(ctx, r.method, r.url.String(), nil)
		if err != nil {
			return nil, diag.Errorf(diag.Invalid, "invalid URL %s: %w", Redact(r.url), err)
		}
		if r.header != nil {
			req.Header = r.header.Clone()
		}
		own := r.url.Host == ep.host
		if own {
			auth, err := c.authorize(ctx, ep, r.scopes, rejected)
			if err != nil {
				return nil, err
			}
			if auth != "" {
				req.Header.Set("Authorization", auth)
			}
			rejected = auth
		}
		if r.body != nil {
			if req.Body, err = r.body(); err != nil {
				return nil, err
			}
			req.ContentLength = r.size
		}
		send := ep.web.DoForeign
		if own {
			send = ep.web.Do
		}
		resp, err := send(req)
		if err != nil {
			return nil, failure(ep, r.url, err)
		}
		if resp.StatusCode != http.StatusUnauthorized || !own || try > 0 || !c.challenged(ep, resp) {
			return resp, nil
		}
		Drain(resp.Body)
	}
}

// send is do with retries, for requests without a body or with a small one.
func (c *Client) send(ctx context.Context, ep *endpoint, r request) (*http.Response, error) {
	var resp *http.Response
	err := c.retry(ctx, func() error {
		var err error
		if resp, err = c.do(ctx, ep, r); err != nil {
			return err
		}
		return c.busy(ep, r.url, resp)
	})
	return resp, err
}

// transient is an error that another try may not meet.
type transient struct {
	err   error
	after time.Duration // what the server asked to wait for
}

func (t *transient) Error() string { return t.err.Error() }
func (t *transient) Unwrap() error { return t.err }

// spared marks requests to a host that another one can stand in for.
type spared struct{}

// spare returns a context whose requests are not tried again: the next host is asked at once.
func spare(ctx context.Context) context.Context { return context.WithValue(ctx, spared{}, true) }

// retry runs f until it succeeds, fails for good, or failed Tries times. Where another host can answer, f runs once.
func (c *Client) retry(ctx context.Context, f func() error) error {
	tries := c.net.timing.Tries
	if ctx.Value(spared{}) != nil {
		tries = 1
	}
	for try := 1; ; try++ {
		err := f()
		var t *transient
		if err == nil || !errors.As(err, &t) {
			return err
		}
		if try >= tries {
			return t.err
		}
		if err := c.pause(ctx, try, t); err != nil {
			return err
		}
	}
}

// pause waits before try+1. A server that asks for more patience than a minute is taken to be unavailable.
func (c *Client) pause(ctx context.Context, try int, t *transient) error {
	wait := max(c.net.timing.Backoff<<(try-1), t.after)
	if wait > time.Minute {
		return t.err
	}
	c.net.log.Debug("registry: another try", "after", wait, "error", t.err)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// busy returns a transient error, and closes resp, if the answer says to come again later.
func (c *Client) busy(ep *endpoint, u *url.URL, resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
	default:
		return nil
	}
	defer Drain(resp.Body)
	err := diag.Errorf(diag.Unavailable, "%s answered %s to %s%s", ep.name, statusText(resp.StatusCode), Redact(u), serverSays(resp))
	if resp.StatusCode == http.StatusTooManyRequests {
		err = err.WithHint("the registry limits requests; a login may raise the limit: docker login %s", ep.name)
	}
	return &transient{err, retryAfter(resp.Header.Get("Retry-After"))}
}

func retryAfter(s string) time.Duration {
	if n, err := strconv.Atoi(s); err == nil && n > 0 {
		return time.Duration(min(n, 1<<20)) * time.Second
	}
	if at, err := http.ParseTime(s); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}

// failure describes a request that got no answer. What a second try may mend is transient.
func failure(ep *endpoint, u *url.URL, err error) error {
	var t *transient
	var d *diag.Error
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &t), errors.As(err, &d):
		return err
	case errors.Is(err, ErrRedirect):
		return diag.Errorf(diag.Denied, "%s: %w", ep.name, err)
	}
	e := unreachable(ep, u, err)
	if isDial(err) || isTLS(err) {
		return e
	}
	return &transient{err: e}
}

func unreachable(ep *endpoint, u *url.URL, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	e := diag.Errorf(diag.Unavailable, "cannot reach the registry %s at %s: %w", ep.name, Redact(u), err)
	var record tls.RecordHeaderError
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		if ep.name == DockerHub {
			return e.WithHint("check the network and its name servers; behind a proxy set HTTPS_PROXY for the engine; a mirror goes into the registry configuration")
		}
		return e.WithHint("check the name %s and the network; behind a proxy set HTTPS_PROXY for the engine; an image of Docker Hub is docker.io/library/NAME", ep.name)
	case errors.As(err, &record):
		return e.WithHint("it speaks plain http: set http = true for it in the registry configuration")
	case isTLS(err):
		return e.WithHint("give its certificate authority (ca = [...]) in the registry configuration, or insecure = true")
	}
	return e
}

func isDial(err error) bool {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "dial" {
		return false
	}
	var dns *net.DNSError
	return !errors.As(err, &dns) || dns.IsNotFound
}

func isTLS(err error) bool {
	var v *tls.CertificateVerificationError
	var rec tls.RecordHeaderError
	var u x509.UnknownAuthorityError
	return errors.As(err, &v) || errors.As(err, &rec) || errors.As(err, &u)
}

func statusText(code int) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", code, http.StatusText(code)))
}

// serverSays returns ": " and the first message of an error document, or "".
func serverSays(resp *http.Response) string {
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	if (strictjson.Limits{Bytes: 64 << 10}).Read(resp.Body, &doc) != nil || len(doc.Errors) == 0 {
		return ""
	}
	msg := doc.Errors[0].Message
	if msg == "" {
		msg = doc.Errors[0].Code
	}
	if len(msg) > 300 {
		msg = msg[:300]
	}
	return fmt.Sprintf(": %q", msg)
}

// refused makes the error for an answer that is not what was asked for, about what (a reference, a blob), and closes resp.
func (c *Client) refused(ctx context.Context, ep *endpoint, what string, resp *http.Response) error {
	defer Drain(resp.Body)
	switch resp.StatusCode {
	case http.StatusNotFound:
		msg := what + ": not found in " + ep.name // BuildKit's clients look for a pinned reference and these words
		if !strings.Contains(what, "@") {
			msg = strings.TrimPrefix(strings.TrimPrefix(what, ep.name+"/"), "library/") + " was not found in " + ep.name
		}
		return diag.Errorf(diag.NotFound, "%s", msg).WithHint("check the name and the tag; a private image needs docker login %s", ep.name)
	case http.StatusUnauthorized, http.StatusForbidden:
		if l := c.login(ep); l.isBasic() {
			cred, err := c.credential(ctx, loginPlaceOf(ep, resp.Request.URL.Path))
			if err != nil {
				return err
			}
			return ep.refusedLogin(cred)
		}
		return diag.Errorf(diag.Denied, "%s: access denied, or it does not exist%s", what, serverSays(resp)).WithHint("check the name, or docker login %s", ep.name)
	}
	return diag.Errorf(diag.Unavailable, "%s: %s answered %s%s", what, ep.name, statusText(resp.StatusCode), serverSays(resp))
}

func (l *login) isBasic() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.chal.scheme == "basic"
}
