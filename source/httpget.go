package source

import (
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/strictjson"
)

// getting is one download.
type getting struct {
	h      *HTTP
	op     *graph.HTTP
	vertex graph.Digest
	key    graph.Digest
}

// run uses the earlier file if the checksum or the server says that it is still right.
func (g *getting) run(ctx context.Context) (*download, error) {
	known := g.known(ctx)
	if known != nil && g.op.Checksum == known.Digest && g.h.env.Client.Owner {
		return known, nil
	}
	req, err := g.request(ctx)
	if err != nil {
		return nil, err
	}
	if req == nil {
		return g.upload(ctx)
	}
	if known != nil && g.op.Checksum == known.Digest && g.h.env.knows(g.readable(req)) {
		return known, nil
	}
	d, err := g.ask(ctx, req, known)
	if err != nil || g.op.Checksum != d.Digest || g.h.env.Client.Owner {
		return d, err
	}
	return d, g.h.env.learn(ctx, g.readable(req))
}

// readable names the memo that a file could be had with a request's logins.
func (g *getting) readable(req *http.Request) graph.Digest {
	var b strings.Builder
	_ = req.Header.Write(&b) // sorted
	return readFact(g.h.env.Client, g.h.names.named(g.op.URL+"\n"+b.String()), "http", g.op.Checksum.String())
}

// request makes the request for the file, with the client's login. It is nil for a stream of the client.
func (g *getting) request(ctx context.Context) (*http.Request, error) {
	u, err := url.Parse(g.op.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, diag.Errorf(diag.Invalid, "%q is no http or https URL", redacted(g.op.URL))
	}
	if u.Host == session.UploadHost {
		return nil, nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.op.URL, nil)
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "%s: %w", registry.Redact(u), err)
	}
	if login := g.op.Login; login != nil {
		password, _ := login.Password()
		req.SetBasicAuth(login.Username(), password)
	}
	req.Header.Set("User-Agent", cmp.Or(g.h.env.Agent, "strata"))
	for k, v := range g.op.Header {
		req.Header.Set(k, v)
	}
	return req, g.authorize(ctx, req)
}

// ask makes the request, again where that may help.
func (g *getting) ask(ctx context.Context, req *http.Request, known *download) (*download, error) {
	web := registry.NewWeb(registry.WebOptions{Header: 30 * time.Second, AllowMetadata: g.h.env.AllowMetadata})
	defer web.Close()
	var last error
	for try := range 5 {
		if try > 0 {
			select {
			case <-time.After(200 * time.Millisecond << try):
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		d, again, err := g.try(ctx, web, req, known)
		if err == nil {
			return d, nil
		}
		if last = err; !again {
			break
		}
	}
	return nil, last
}

// known returns what an earlier build learned, if its file is still there.
func (g *getting) known(ctx context.Context) *download {
	s := g.h.env.Store
	at, err := s.Memo(g.key)
	if err != nil {
		return nil
	}
	r, err := stored(ctx, s, at)
	if err != nil {
		return nil
	}
	defer r.Close()
	var d download
	if (strictjson.Limits{Bytes: 64 << 10}).Read(r, &d) != nil || d.Digest.Validate() != nil {
		return nil
	}
	g.h.env.Hold.Blobs(d.Digest)
	if _, ok := s.HasBlob(d.Digest); !ok {
		return nil
	}
	return &d
}

// authorize adds the login that the client has for the download: the secret that the source names, or else those of the host's
// name, as BuildKit calls them.
func (g *getting) authorize(ctx context.Context, req *http.Request) error {
	if g.h.env.Session == nil {
		return nil
	}
	type secret struct{ id, prefix string }
	ids := []secret{{"HTTP_AUTH_TOKEN_" + req.URL.Hostname(), "Bearer "}, {"HTTP_AUTH_HEADER_" + req.URL.Hostname(), ""}}
	if g.op.AuthHeader != "" {
		ids = []secret{{g.op.AuthHeader, ""}}
	}
	for _, s := range ids {
		v, err := g.h.env.Session.Secret(ctx, s.id)
		switch {
		case err == nil:
			req.Header.Set("Authorization", s.prefix+strings.TrimSpace(string(v)))
			return nil
		case g.op.AuthHeader != "":
			return diag.Errorf(diag.KindOf(err), "failed to retrieve HTTP auth secret %s: %w", s.id, err)
		case diag.KindOf(err) != diag.NotFound:
			return err
		}
	}
	return nil
}

// same asks with HEAD whether the server still has the file with an entity tag. Some servers give tags and take no notice of
// If-None-Match, so their tag is compared here. No answer is no reason to fail: the file is downloaded then.
func same(ctx context.Context, web *registry.Web, req *http.Request, etag string) bool {
	req = req.Clone(ctx)
	req.Method = http.MethodHead
	req.Header.Set("If-None-Match", etag)
	resp, err := web.Do(req)
	if err != nil {
		return false
	}
	defer registry.Drain(resp.Body)
	got := resp.Header.Get("ETag")
	switch resp.StatusCode {
	case http.StatusNotModified:
		return got == "" || weak(got) == weak(etag)
	case http.StatusOK:
		return got != "" && weak(got) == weak(etag)
	}
	return false
}

// weak is an entity tag without the mark of a weak one: equal tags are equal content here.
func weak(etag string) string { return strings.TrimPrefix(etag, "W/") }

// try asks once; again says whether another try may help.
func (g *getting) try(ctx context.Context, web *registry.Web, req *http.Request, known *download) (_ *download, again bool, err error) {
	req = req.Clone(ctx)
	req.Header.Set("Accept-Encoding", "gzip")
	if known != nil && known.ETag != "" {
		if same(ctx, web, req, known.ETag) {
			return known, false, nil
		}
		req.Header.Set("If-None-Match", known.ETag)
	} else if known != nil && known.Modified != "" {
		req.Header.Set("If-Modified-Since", known.Modified)
	}
	where := registry.Redact(req.URL)
	resp, err := web.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, false, context.Cause(ctx)
		}
		if diag.KindOf(err) == diag.Denied || errors.Is(err, registry.ErrRedirect) {
			return nil, false, fmt.Errorf("cannot download %s: %w", where, err)
		}
		return nil, true, diag.Errorf(diag.Unavailable, "cannot download %s: %w", where, err)
	}
	defer registry.Drain(resp.Body)
	switch {
	case resp.StatusCode == http.StatusNotModified && known != nil:
		return known, false, nil
	case resp.StatusCode == http.StatusOK:
	default:
		kind := diag.Unavailable
		switch resp.StatusCode {
		case http.StatusNotFound, http.StatusGone:
			kind = diag.NotFound
		case http.StatusUnauthorized, http.StatusForbidden:
			kind = diag.Denied
		}
		return nil, resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests,
			diag.Errorf(kind, "cannot download %s: invalid response status %s", where, resp.Status)
	}
	d := &download{ETag: resp.Header.Get("ETag"), Modified: resp.Header.Get("Last-Modified")}
	if _, p, err := mime.ParseMediaType(resp.Header.Get("Content-Disposition")); err == nil {
		d.Filename = fileName(p["filename"], "")
	}
	if err := g.body(ctx, resp, d, where); err != nil {
		return nil, diag.KindOf(err) == diag.Unavailable && ctx.Err() == nil, err
	}
	return d, false, g.remember(ctx, d)
}

// body stores the file as a blob.
func (g *getting) body(ctx context.Context, resp *http.Response, d *download, where string) error {
	w, err := g.h.env.Hold.NewBlob(ctx, "")
	if err != nil {
		return err
	}
	defer w.Abort()
	in := registry.Watch(resp, 60*time.Second)
	defer in.Close()
	p := &progress{sink: g.h.env.Progress, vertex: g.vertex, item: where, action: "downloading", total: max(resp.ContentLength, 0)}
	src := &sourceError{r: &counted{in, p}}
	if strings.EqualFold(resp.Header.Get("Content-Encoding"), "gzip") { // we asked for it: the file is what is inside
		src.r = &gunzip{from: src.r}
	}
	if _, err := io.Copy(w, src); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if src.err == nil {
			return err // the store's
		}
		return diag.Errorf(diag.Unavailable, "cannot download %s: it broke after %d bytes: %w", where, p.sofar, err)
	}
	if d.Digest, _, err = w.Commit(ctx); err != nil {
		return err
	}
	p.done()
	return nil
}

// gunzip reads what is inside of a gzip stream, whose header is read with the first bytes.
type gunzip struct {
	from io.Reader
	z    *gzip.Reader
}

func (g *gunzip) Read(p []byte) (int, error) {
	if g.z == nil {
		z, err := gzip.NewReader(g.from)
		if err != nil {
			return 0, err
		}
		g.z = z
	}
	return g.z.Read(p)
}

// sourceError tells the errors of a source from those of a destination.
type sourceError struct {
	r   io.Reader
	err error
}

func (s *sourceError) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (g *getting) remember(ctx context.Context, d *download) error {
	raw, err := json.Marshal(d)
	if err != nil {
		return err
	}
	at, err := g.h.env.Store.PutBlob(ctx, raw)
	if err != nil {
		return err
	}
	return g.h.env.Store.Update(ctx, func(b *store.Batch) error {
		b.Memo(g.key, at)
		return nil
	})
}
