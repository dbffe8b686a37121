package proxy

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
)

// Request is one that was passed on.
type Request struct {
	Method, URL string
	Redirect    string // where the answer leads to; "" = nowhere
	Status      int
}

// Material is content that was fetched.
type Material struct {
	URL    string
	Digest string // sha256:…
}

// Incomplete is a request of which the answer is no material. Reason is a word of BuildKit's.
type Incomplete struct{ Method, URL, Reason string }

// Requests returns what was passed on so far, in the order of the answers.
func (p *Proxy) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.requests)
}

// Incomplete returns the requests whose answers are no materials.
func (p *Proxy) Incomplete() []Incomplete {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.incomplete)
}

// Materials returns what was fetched. What redirects led to is listed under their addresses as well.
func (p *Proxy) Materials() []Material {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := slices.Clone(p.materials)
	from := map[string][]string{} // the addresses that lead to one
	for _, r := range p.requests {
		if r.Redirect != "" {
			from[r.Redirect] = append(from[r.Redirect], r.URL)
		}
	}
	known := map[string]bool{}
	for _, m := range out {
		known[m.URL] = true
	}
	for i := 0; i < len(out); i++ {
		for _, u := range from[out[i].URL] {
			if !known[u] {
				known[u] = true
				out = append(out, Material{u, out[i].Digest})
			}
		}
	}
	return out
}

// admit reserves the room for what is recorded of a request, or says why there is none.
func (p *Proxy) admit(r *http.Request, l limits) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(r.URL.String())
	switch {
	case p.admitted >= l.requests:
		return fmt.Errorf("the step has made %d requests, and its proxy records no more: split the step", p.admitted)
	case p.recorded+n > l.recorded:
		return fmt.Errorf("the addresses of the step's requests have more than %d bytes, and its proxy records no more: split the step", l.recorded)
	}
	p.admitted++
	p.recorded += n
	return nil
}

func (p *Proxy) answered(r *http.Request, status int, redirect string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.recorded += len(redirect)
	p.requests = append(p.requests, Request{r.Method, plain(r.URL), redirect, status})
}

func (p *Proxy) failed(r *http.Request, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.incomplete = append(p.incomplete, Incomplete{r.Method, plain(r.URL), reason})
}

// fetched notes how the body of an answer went by.
func (p *Proxy) fetched(r *http.Request, resp *http.Response, b *body, sent error) {
	switch {
	case r.Method != http.MethodGet:
		p.failed(r, "method_not_materializable")
	case r.Header.Get("Range") != "" || resp.StatusCode == http.StatusPartialContent:
		p.failed(r, "partial_response")
	case sent != nil || b.err != nil:
		p.failed(r, "body_read_failed")
	case resp.StatusCode >= 400:
		p.failed(r, "unsuccessful_response")
	case resp.StatusCode >= 200 && resp.StatusCode < 300:
		p.mu.Lock()
		defer p.mu.Unlock()
		p.materials = append(p.materials, Material{plain(r.URL), b.digest()})
	}
}

// plain is an address as it is recorded: without a password, and without the port that its scheme has anyway.
func plain(u *url.URL) string {
	c := *u
	if p := c.Port(); c.Scheme == "http" && p == "80" || c.Scheme == "https" && p == "443" {
		c.Host = c.Host[:len(c.Host)-len(p)-1]
	}
	if c.User != nil {
		c.User = url.UserPassword("xxxxx", "xxxxx")
	}
	return c.String()
}
