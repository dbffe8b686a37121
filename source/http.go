package source

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// HTTP downloads files for one build, each URL once.
type HTTP struct {
	env   Env
	locks locks
	mu    sync.Mutex
	seen  map[string]*download
}

// NewHTTP starts a build's downloads.
func NewHTTP(env Env) *HTTP { return &HTTP{env: env, seen: map[string]*download{}} }

// download is what is known of a URL. It is kept as a blob that a memo names, so that the next build need only ask
// whether the file has changed.
type download struct {
	Digest   graph.Digest `json:"digest"`
	ETag     string       `json:"etag,omitempty"`
	Modified string       `json:"modified,omitempty"` // the Last-Modified header
	Filename string       `json:"filename,omitempty"` // from Content-Disposition
}

// Pin returns the digest of what the download makes: content, name and time. With a checksum nothing is asked. Without
// one, the server is asked whether the file is still the one that an earlier build got; if not, it is downloaded now.
func (h *HTTP) Pin(ctx context.Context, op *graph.HTTP, vertex graph.Digest) (graph.Digest, error) {
	if err := checkName(op.Filename); err != nil {
		return "", err
	}
	if op.Checksum != "" {
		return op.Checksum, op.Checksum.Validate()
	}
	d, err := h.get(ctx, op, vertex)
	if err != nil {
		return "", err
	}
	return digest.FromString(d.Digest.String() + "\n" + d.name(op) + "\n" + d.time(op).UTC().Format(time.RFC3339)), nil
}

// Fetch makes a layer of one file. The draft is not committed.
func (h *HTTP) Fetch(ctx context.Context, op *graph.HTTP, vertex graph.Digest) (*tree.Stack, error) {
	if err := checkName(op.Filename); err != nil {
		return nil, err
	}
	d, err := h.get(ctx, op, vertex)
	if err != nil {
		return nil, err
	}
	if op.Signature != nil {
		if err := h.verify(ctx, op, d); err != nil {
			return nil, err
		}
	}
	r, err := stored(ctx, h.env.Store, d.Digest)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return oneFile{name: d.name(op), mode: op.Mode, uid: op.UID, gid: op.GID, mtime: d.time(op)}.make(ctx, h.env, r)
}

func (d *download) name(op *graph.HTTP) string {
	if op.Filename != "" {
		return op.Filename
	}
	if d.Filename != "" {
		return d.Filename
	}
	u, err := url.Parse(op.URL)
	if err != nil {
		return "download"
	}
	return fileName(u.Path, "download")
}

func (d *download) time(op *graph.HTTP) time.Time {
	if op.ModTime != nil {
		return *op.ModTime
	}
	if t, err := http.ParseTime(d.Modified); err == nil {
		return t
	}
	return time.Unix(0, 0)
}

// get returns what the URL has, and the file is in the store and held then.
func (h *HTTP) get(ctx context.Context, op *graph.HTTP, vertex graph.Digest) (*download, error) {
	id := op.URL + "\n" + op.AuthHeader
	for _, k := range slices.Sorted(maps.Keys(op.Header)) {
		id += "\n" + k + ":" + op.Header[k]
	}
	release, err := h.locks.take(ctx, id)
	if err != nil {
		return nil, err
	}
	defer release()
	h.mu.Lock()
	d := h.seen[id]
	h.mu.Unlock()
	if d == nil {
		g := &getting{h: h, op: op, vertex: vertex, key: digest.FromString("http\n" + id)}
		if d, err = g.run(ctx); err != nil {
			return nil, err
		}
		h.mu.Lock()
		h.seen[id] = d
		h.mu.Unlock()
	}
	if op.Checksum != "" && op.Checksum != d.Digest {
		return nil, diag.Errorf(diag.Invalid, "%s has the digest %s, not %s", redacted(op.URL), d.Digest, op.Checksum).
			WithHint("if the file was changed on purpose, change the checksum")
	}
	return d, nil
}

// getting is one download.
type getting struct {
	h      *HTTP
	op     *graph.HTTP
	vertex graph.Digest
	key    graph.Digest
}

// run uses the earlier file if the checksum or the server says that it is still right.
func (g *getting) run(ctx context.Context) (*download, error) {
	env := g.h.env
	known := g.known(ctx)
	if known != nil && g.op.Checksum == known.Digest {
		return known, nil
	}
	u, err := url.Parse(g.op.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, diag.Errorf(diag.Invalid, "%q is no http or https URL", redacted(g.op.URL))
	}
	if u.Host == session.UploadHost {
		return g.upload(ctx, u)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.op.URL, nil)
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "%s: %w", registry.Redact(u), err)
	}
	if u.User != nil {
		password, _ := u.User.Password()
		req.SetBasicAuth(u.User.Username(), password)
		req.URL.User = nil
	}
	for k, v := range g.op.Header {
		req.Header.Set(k, v)
	}
	if g.op.AuthHeader != "" && env.Session != nil {
		secret, err := env.Session.Secret(ctx, g.op.AuthHeader)
		if err != nil && diag.KindOf(err) != diag.NotFound {
			return nil, err
		}
		if err == nil {
			req.Header.Set("Authorization", strings.TrimSpace(string(secret)))
		}
	}
	web := registry.NewWeb(nil, "strata", 30*time.Second)
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
	if json.NewDecoder(io.LimitReader(r, 64<<10)).Decode(&d) != nil || d.Digest.Validate() != nil {
		return nil
	}
	g.h.env.Hold.Blobs(d.Digest)
	if _, ok := s.HasBlob(d.Digest); !ok {
		return nil
	}
	return &d
}

// try asks once; again says whether another try may help.
func (g *getting) try(ctx context.Context, web *registry.Web, req *http.Request, known *download) (_ *download, again bool, err error) {
	req = req.Clone(ctx)
	if known != nil && known.ETag != "" {
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
			diag.Errorf(kind, "cannot download %s: the server answered %s", where, resp.Status)
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
	w, err := g.h.env.Store.NewBlob(ctx, "")
	if err != nil {
		return err
	}
	defer w.Abort()
	in := registry.Watch(resp, 60*time.Second)
	defer in.Close()
	p := &progress{sink: g.h.env.Progress, vertex: g.vertex, item: where, action: "downloading", total: max(resp.ContentLength, 0)}
	src := &sourceError{r: &counted{in, p}}
	if _, err := io.Copy(w, src); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if src.err == nil {
			return err // the store's
		}
		return diag.Errorf(diag.Unavailable, "cannot download %s: it broke after %d bytes: %w", where, p.sofar, err)
	}
	// The blob must be held before the collector can see that nobody names it.
	d.Digest, _, err = w.Commit(ctx)
	if err != nil {
		return err
	}
	g.h.env.Hold.Blobs(d.Digest)
	p.done()
	return nil
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

// redacted is a URL without what may be secret, as far as it can be parsed.
func redacted(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "the URL"
	}
	return registry.Redact(u)
}
