package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/image"
)

// Upload is a blob to be pushed.
type Upload struct {
	Desc image.Descriptor
	Open func(offset int64) (io.ReadCloser, error) // called again for every attempt
	// From names repositories of the same registry that may have the blob already ("library/debian"): it is then mounted
	// from there instead of sent. The first three are tried.
	From     []string
	Progress func(sent int64) // bytes of this attempt; may be nil
}

// Outcome says how a blob came to be in the repository.
type Outcome string

const (
	Existed  Outcome = "exists"
	Mounted  Outcome = "mounted"
	Uploaded Outcome = "uploaded"
)

// commitTime bounds how long a registry may take to store a blob that it has received.
const commitTime = 10 * time.Minute

// Push makes sure that the repository of ref has a blob, at the least cost: nothing, a mount, or an upload. Broken uploads
// are tried again.
func (c *Client) Push(ctx context.Context, ref Ref, u Upload) (Outcome, error) {
	ok, err := c.Exists(ctx, ref, image.Descriptor{Digest: u.Desc.Digest, Size: u.Desc.Size})
	if err != nil {
		return "", err
	}
	if ok {
		return Existed, nil
	}
	ep, err := c.net.endpoint(ref.Host)
	if err != nil {
		return "", err
	}
	p := &push{c: c, ep: ep, ref: ref, Upload: u}
	if p.From = u.From; len(p.From) > 3 {
		p.From = p.From[:3]
	}
	outcome := Uploaded
	err = c.retry(ctx, func() error {
		loc, mounted, err := p.start(ctx)
		if err != nil {
			return err
		}
		if mounted {
			outcome = Mounted
			return nil
		}
		if !p.chunked {
			if err = p.whole(ctx, loc); !errors.Is(err, errChunks) {
				return err
			}
			p.chunked = true
			if loc, _, err = p.start(ctx); err != nil {
				return err
			}
		}
		return p.chunks(ctx, loc)
	})
	return outcome, err
}

type push struct {
	c   *Client
	ep  *endpoint
	ref Ref
	Upload
	chunked bool // the registry takes no upload in one piece
}

var errChunks = errors.New("the registry wants chunks")

func (p *push) what() string { return p.ref.Name() + "@" + p.Desc.Digest.String() }

func (p *push) scopes(from string) []string {
	s := []string{p.ep.scope(p.ref.Repo, "pull,push")}
	if from != "" {
		s = append(s, p.ep.scope(from, "pull"))
	}
	return s
}

// start opens an upload session and returns where it is, or has the blob mounted. A refused mount is an upload session
// already, so the last one serves.
func (p *push) start(ctx context.Context) (loc *url.URL, mounted bool, err error) {
	froms := p.From
	p.From = nil // not again at the next try
	for _, from := range froms {
		if from == p.ref.Repo {
			continue
		}
		q := url.Values{"mount": {p.Desc.Digest.String()}, "from": {from}}
		resp, err := p.post(ctx, q, p.scopes(from))
		if err != nil {
			return nil, false, err
		}
		if resp.StatusCode == http.StatusCreated {
			Drain(resp.Body)
			return nil, true, nil
		}
		if resp.StatusCode == http.StatusAccepted {
			loc, err = p.location(resp)
			if err != nil {
				return nil, false, err
			}
			continue
		}
		Drain(resp.Body) // no such repository, or no right to read it
	}
	if loc != nil {
		return loc, false, nil
	}
	resp, err := p.post(ctx, nil, p.scopes(""))
	if err != nil {
		return nil, false, err
	}
	if resp.StatusCode != http.StatusAccepted {
		return nil, false, p.c.refused(ctx, p.ep, p.ref.Name(), resp)
	}
	loc, err = p.location(resp)
	return loc, false, err
}

func (p *push) post(ctx context.Context, q url.Values, scopes []string) (*http.Response, error) {
	u, err := p.ep.repo(ctx, p.ref, "blobs/uploads/")
	if err != nil {
		return nil, err
	}
	u.RawQuery = q.Encode()
	return p.c.send(ctx, p.ep, request{method: http.MethodPost, url: u, scopes: scopes})
}

// location returns where the upload goes on. https never becomes http.
func (p *push) location(resp *http.Response) (*url.URL, error) {
	Drain(resp.Body)
	loc, err := resp.Location()
	if err != nil {
		return nil, diag.Errorf(diag.Unavailable, "%s: %s opened an upload without a location", p.what(), p.ep.name)
	}
	if loc.Scheme != "https" && resp.Request.URL.Scheme == "https" {
		return nil, diag.Errorf(diag.Denied, "%s: %s sends the upload to %s, without https: refused", p.what(), p.ep.name, Redact(loc))
	}
	return loc, nil
}

// whole sends the blob in one PUT.
func (p *push) whole(ctx context.Context, loc *url.URL) error {
	resp, err := p.put(ctx, p.final(loc), http.MethodPut, 0, p.Desc.Size)
	if err != nil {
		return err
	}
	switch resp.StatusCode {
	case http.StatusCreated, http.StatusNoContent, http.StatusAccepted:
		Drain(resp.Body)
		return nil
	case http.StatusMethodNotAllowed, http.StatusLengthRequired, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusNotImplemented:
		Drain(resp.Body)
		return errChunks
	}
	return p.c.refused(ctx, p.ep, p.what(), resp)
}

// chunks sends the blob in PATCH requests and closes it with an empty PUT.
func (p *push) chunks(ctx context.Context, loc *url.URL) error {
	const chunk = 16 << 20
	for at := int64(0); at < p.Desc.Size; {
		n := min(chunk, p.Desc.Size-at)
		resp, err := p.put(ctx, loc, http.MethodPatch, at, n)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusAccepted {
			return p.c.refused(ctx, p.ep, p.what(), resp)
		}
		if loc, err = p.location(resp); err != nil {
			return err
		}
		at += n
		// The registry may have kept less than was sent. Range is inclusive: "0-99" is 100 bytes.
		if _, last, ok := strings.Cut(resp.Header.Get("Range"), "-"); ok {
			if end, err := strconv.ParseInt(last, 10, 64); err == nil && end+1 < at && end+1 > at-n {
				at = end + 1
			}
		}
	}
	resp, err := p.put(ctx, p.final(loc), http.MethodPut, p.Desc.Size, 0)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusNoContent {
		return p.c.refused(ctx, p.ep, p.what(), resp)
	}
	Drain(resp.Body)
	return nil
}

func (p *push) final(loc *url.URL) *url.URL {
	u := *loc
	q := u.Query()
	q.Set("digest", p.Desc.Digest.String())
	u.RawQuery = q.Encode()
	return &u
}

// put sends n bytes of the blob from offset at. A blob that is not what its descriptor says is noticed here, not blamed on
// the registry.
func (p *push) put(ctx context.Context, u *url.URL, method string, at, n int64) (*http.Response, error) {
	ctx, stop := context.WithCancelCause(ctx)
	sent := &sending{p: p, stop: stop, at: at, left: n}
	r := request{method: method, url: u, scopes: p.scopes(""), size: n, header: http.Header{"Content-Type": {"application/octet-stream"}}}
	if n > 0 {
		r.body = sent.open
		if method == http.MethodPatch {
			r.header.Set("Content-Range", fmt.Sprintf("%d-%d", at, at+n-1))
		}
	}
	defer stop(nil)
	defer sent.watch(p.c.net.timing.Stall)()
	resp, err := p.c.do(ctx, p.ep, r)
	if err == nil {
		err = p.c.busy(p.ep, u, resp)
	}
	if err == nil {
		var raw []byte
		raw, err = io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		_ = resp.Body.Close()
		resp.Body = io.NopCloser(bytes.NewReader(raw))
	}
	if err == nil {
		return resp, nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, errStalled) {
		err = &transient{err: unreachable(p.ep, u, err)}
	}
	return nil, err
}

// PushManifest stores a manifest or an index under ref's tag, or its digest if ref has one or no tag. Everything that it
// names has to be there already. It returns the descriptor.
func (c *Client) PushManifest(ctx context.Context, ref Ref, raw []byte, mediaType string) (image.Descriptor, error) {
	desc := image.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if len(raw) > MaxManifest {
		return desc, diag.Errorf(diag.Exhausted, "%s: the manifest has %d bytes, registries take %d", ref, len(raw), MaxManifest)
	}
	if ref.Digest == "" && ref.Tag == "" {
		ref.Digest = desc.Digest
	}
	if ref.Digest != "" && ref.Digest != desc.Digest {
		return desc, diag.Errorf(diag.Invalid, "%s: the manifest's digest is %s", ref, desc.Digest)
	}
	ep, err := c.net.endpoint(ref.Host)
	if err != nil {
		return desc, err
	}
	u, err := ep.repo(ctx, ref, "manifests/"+ref.object())
	if err != nil {
		return desc, err
	}
	resp, err := c.send(ctx, ep, request{
		method: http.MethodPut, url: u, header: http.Header{"Content-Type": {mediaType}}, size: int64(len(raw)),
		body:   func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil },
		scopes: []string{ep.scope(ref.Repo, "pull,push")},
	})
	if err != nil {
		return desc, err
	}
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusAccepted {
		return desc, c.refused(ctx, ep, ref.String(), resp)
	}
	Drain(resp.Body)
	if got := digest.Digest(resp.Header.Get("Docker-Content-Digest")); got != "" && got.Validate() == nil && got != desc.Digest {
		return desc, diag.Errorf(diag.Unavailable, "%s: %s stored %s instead of %s", ref, ep.name, got, desc.Digest)
	}
	return desc, nil
}
