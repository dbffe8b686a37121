package registry

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/image"
)

// progressBytes is how much has to arrive until the tries start to count anew.
const progressBytes = 1 << 20

// Fetch reads a blob of ref's repository from offset on. The reader asks again for the rest when the connection breaks, and
// the last Read returns a [Wrong] error if size or digest are not those of desc: see [Again]. With an offset the digest cannot be checked
// here: the caller, who has the first bytes, must. The size must be known (see Stat). Close ends the transfer at once.
func (c *Client) Fetch(ctx context.Context, ref Ref, desc image.Descriptor, offset int64) (io.ReadCloser, error) {
	return c.fetch(ctx, ref, desc, offset, offset == 0)
}

// FetchUnverified is Fetch for those who check the digest themselves, and call [Blame] if it is wrong. The size is right.
func (c *Client) FetchUnverified(ctx context.Context, ref Ref, desc image.Descriptor, offset int64) (io.ReadCloser, error) {
	return c.fetch(ctx, ref, desc, offset, false)
}

func (c *Client) fetch(ctx context.Context, ref Ref, desc image.Descriptor, offset int64, verify bool) (io.ReadCloser, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, diag.Errorf(diag.Invalid, "invalid digest %q: %w", desc.Digest, err)
	}
	if offset < 0 || offset > desc.Size {
		return nil, diag.Errorf(diag.Invalid, "offset %d of a blob of %d bytes", offset, desc.Size)
	}
	eps, err := c.readers(ref.Host)
	if err != nil {
		return nil, err
	}
	b := &blob{c: c, ref: ref, desc: desc, pos: offset, eps: c.net.honest(eps, desc.Digest), urls: desc.URLs, mark: offset}
	b.ctx, b.cancel = context.WithCancelCause(ctx)
	if verify {
		b.hash = desc.Digest.Algorithm().Hash()
	}
	if b.pos == b.desc.Size {
		return b, nil
	}
	if err := b.open(); err != nil {
		b.cancel(nil)
		return nil, err
	}
	return b, nil
}

// blob is the reader that Fetch returns.
type blob struct {
	c      *Client
	ctx    context.Context
	cancel context.CancelCauseFunc
	ref    Ref
	desc   image.Descriptor
	eps    []*endpoint // still to be tried; the first is in use
	used   []*endpoint // those that have sent something
	missed []string    // what the mirrors before it said
	urls   []string    // of the descriptor, still to be tried when no endpoint has the blob
	other  *url.URL    // one of them that is in use; nil = the endpoint is
	hash   hash.Hash   // nil if the caller verifies
	pos    int64       // bytes received, the offset included
	mark   int64       // pos when the tries began to count
	tries  int
	stalls int
	body   io.ReadCloser
	ended  error // how it ended
}

func (b *blob) what() string { return b.ref.Name() + "@" + b.desc.Digest.String() }

func (b *blob) Read(p []byte) (int, error) {
	for b.ended == nil {
		if err := context.Cause(b.ctx); err != nil {
			b.ended = err
			break
		}
		if b.pos == b.desc.Size {
			b.ended = b.verify()
			break
		}
		if b.body == nil {
			if err := b.open(); err != nil {
				b.ended = err
				break
			}
		}
		n, err := b.body.Read(p[:min(int64(len(p)), b.desc.Size-b.pos)])
		if n > 0 {
			if b.hash != nil {
				b.hash.Write(p[:n])
			}
			b.pos += int64(n)
			return n, nil // an error comes again
		}
		if err != nil {
			b.broken(err)
		}
	}
	return 0, b.ended
}

// verify is called with all bytes received.
func (b *blob) verify() error {
	var one [1]byte
	if b.body == nil { // nothing was left to ask for
	} else if n, _ := io.ReadFull(b.body, one[:]); n > 0 {
		return b.wrong("sent more than the %d bytes of the descriptor", b.desc.Size)
	}
	if b.hash != nil {
		if got := digest.NewDigest(b.desc.Digest.Algorithm(), b.hash); got != b.desc.Digest {
			return b.Blame(got)
		}
	}
	return io.EOF
}

// broken ends the connection after err and decides whether there is another one.
func (b *blob) broken(err error) {
	if cause := context.Cause(b.ctx); cause != nil {
		b.ended = cause
		return
	}
	_ = b.body.Close()
	b.body = nil
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if b.pos-b.mark >= progressBytes {
		b.mark, b.tries, b.stalls = b.pos, 0, 0
	}
	b.tries++
	if errors.Is(err, errStalled) {
		b.stalls++
	}
	failed := diag.Errorf(diag.Unavailable, "%s: the transfer from %s broke at byte %d of %d: %w", b.what(), b.eps[0].name, b.pos, b.desc.Size, err)
	if len(b.eps) > 1 { // the next host goes on where this one ended
		b.c.net.log.Debug("registry: the mirror broke off", "mirror", b.eps[0].name, "error", failed)
		b.eps, b.mark, b.tries, b.stalls = b.eps[1:], b.pos, 0, 0
		return
	}
	if b.tries >= b.c.net.timing.Tries || b.stalls > 1 {
		b.ended = failed
		return
	}
	b.ended = b.c.pause(b.ctx, b.tries, &transient{err: failed})
}

// open asks for the rest of the blob, at the next endpoint if this one does not have it, and at last where the descriptor
// says that the blob is besides: layers that may not be distributed are at their maker's only.
func (b *blob) open() error {
	for {
		ctx := b.ctx
		if len(b.eps) > 1 {
			ctx = spare(ctx)
		}
		err := b.c.retry(ctx, func() error { return b.request(ctx) })
		switch {
		case err == nil || b.ctx.Err() != nil:
			return err
		case len(b.eps) > 1:
			b.c.net.log.Debug("registry: the mirror has no answer", "mirror", b.eps[0].name, "error", err)
			b.missed = append(b.missed, mirrorAnswer(b.eps[0], err))
			b.eps = b.eps[1:]
			continue
		case b.other == nil && diag.KindOf(err) != diag.NotFound:
			return besideMirrors(err, b.missed)
		}
		if b.other = b.elsewhere(); b.other == nil {
			return besideMirrors(err, b.missed)
		}
	}
}

// elsewhere takes the next URL of the descriptor, nil if there is none any more.
func (b *blob) elsewhere() *url.URL {
	for len(b.urls) > 0 {
		u, err := url.Parse(b.urls[0])
		b.urls = b.urls[1:]
		if err == nil && u.Host != "" && (u.Scheme == "https" || u.Scheme == "http") {
			return u
		}
	}
	return nil
}

func (b *blob) request(ctx context.Context) error {
	ep := b.eps[0]
	u := b.other
	if u == nil {
		var err error
		if u, err = ep.repo(ctx, b.ref, "blobs/"+b.desc.Digest.String()); err != nil {
			return err
		}
	}
	r := request{method: http.MethodGet, url: u, scopes: []string{ep.scope(b.ref.Repo, "pull")}}
	if b.pos > 0 && b.pos < b.desc.Size {
		r.header = http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", b.pos, b.desc.Size-1)}}
	}
	resp, err := b.c.do(ctx, ep, r)
	if err == nil {
		err = b.c.busy(ep, u, resp)
	}
	if err != nil {
		return err
	}
	body := Watch(resp, b.c.net.timing.Stall)
	if err := b.position(ep, resp, body); err != nil {
		_ = body.Close()
		return err
	}
	if b.body = body; !slices.Contains(b.used, ep) {
		b.used = append(b.used, ep)
	}
	return nil
}

// position makes sure that body stands at b.pos.
func (b *blob) position(ep *endpoint, resp *http.Response, body io.Reader) error {
	switch resp.StatusCode {
	case http.StatusOK:
		if resp.ContentLength >= 0 && resp.ContentLength != b.desc.Size {
			return b.sentWrong([]*endpoint{ep}, "sends %d bytes, the descriptor says %d", resp.ContentLength, b.desc.Size)
		}
		// The server does not know ranges: what was received already comes again.
		if _, err := io.CopyN(io.Discard, body, b.pos); err != nil {
			return failure(ep, resp.Request.URL, err)
		}
		return nil
	case http.StatusPartialContent:
		first, total, ok := parseRange(resp.Header.Get("Content-Range"))
		if !ok || first != b.pos || total >= 0 && total != b.desc.Size {
			return b.sentWrong([]*endpoint{ep}, "was asked for bytes from %d of %d and sends %q", b.pos, b.desc.Size, resp.Header.Get("Content-Range"))
		}
		return nil
	}
	return b.c.refused(b.ctx, ep, b.what(), resp)
}

// parseRange parses "bytes 5-9/10"; total is -1 for "*".
func parseRange(s string) (first, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	span, all, ok2 := strings.Cut(s, "/")
	from, _, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, false
	}
	first, err := strconv.ParseInt(from, 10, 64)
	if err != nil {
		return 0, 0, false
	}
	if all == "*" {
		return first, -1, true
	}
	total, err = strconv.ParseInt(all, 10, 64)
	return first, total, err == nil
}

func (b *blob) Close() error {
	b.cancel(nil)
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}
