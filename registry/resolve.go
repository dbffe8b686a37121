package registry

import (
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
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/image"
)

// accept lists every manifest type, so that no registry converts one. Schema 1 is asked for to give a clear error.
var accept = strings.Join([]string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, image.DockerManifestList, image.DockerManifest,
	image.DockerSchema1, "*/*;q=0.1",
}, ", ")

// read runs f against the mirrors of a registry and then against the registry itself, until one has the answer.
func (c *Client) read(ctx context.Context, host string, f func(context.Context, *endpoint) error) error {
	eps, err := c.readers(host)
	if err != nil {
		return err
	}
	var missed []string
	for i, ep := range eps {
		last := i == len(eps)-1
		asked := ctx
		if !last {
			asked = spare(ctx)
		}
		if err = f(asked, ep); err == nil || ctx.Err() != nil {
			return err
		}
		if last {
			return besideMirrors(err, missed)
		}
		missed = append(missed, mirrorAnswer(ep, err))
		c.net.log.Debug("registry: the mirror has no answer", "mirror", ep.name, "error", err)
	}
	return err
}

// mirrorAnswer is what a mirror said, for the error of the registry behind it.
func mirrorAnswer(ep *endpoint, err error) string { return fmt.Sprintf("mirror %s: %v", ep.name, err) }

// besideMirrors puts the answers of the mirrors beside the registry's: the fault is often theirs.
func besideMirrors(err error, missed []string) error {
	if len(missed) == 0 {
		return err
	}
	return diag.Errorf(diag.KindOf(err), "%w (%s)", err, strings.Join(missed, "; "))
}

// Resolve finds what a reference names: its digest, media type and size. Errors are NotFound, Denied or Unavailable.
func (c *Client) Resolve(ctx context.Context, ref Ref) (image.Descriptor, error) {
	var desc image.Descriptor
	err := c.read(ctx, ref.Host, func(ctx context.Context, ep *endpoint) error {
		var err error
		if desc, err = c.head(ctx, ep, ref); err == nil {
			return nil
		}
		if k := diag.KindOf(err); k != diag.Internal && k != diag.Invalid {
			return err
		}
		// The answer to HEAD did not say enough. The bytes say all.
		raw, got, err := c.get(ctx, ep, ref)
		if err != nil {
			return err
		}
		desc = got
		if desc.MediaType == "" {
			if doc, err := Decode(raw, ""); err == nil {
				desc.MediaType = doc.MediaType
			}
		}
		return nil
	})
	if diag.KindOf(err) == diag.NotFound && err != nil {
		err = c.suggest(ctx, ref, err)
	}
	return desc, err
}

// suggest adds the nearest tag that the repository has to an error, if it can be learned soon.
func (c *Client) suggest(ctx context.Context, ref Ref, err error) error {
	var d *diag.Error
	if ref.Tag == "" || ref.Digest != "" || !errors.As(err, &d) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	tags, terr := c.Tags(ctx, ref)
	if terr != nil {
		return err
	}
	if near := diag.Suggest(ref.Tag, tags); near != "" {
		return d.WithHint("did you mean %s:%s?", ref.Name(), near)
	}
	return err
}

var errVague = errors.New("the answer to HEAD has no digest, type or size")

func (c *Client) head(ctx context.Context, ep *endpoint, ref Ref) (image.Descriptor, error) {
	resp, err := c.manifest(ctx, ep, ref, http.MethodHead)
	if err != nil {
		return image.Descriptor{}, err
	}
	defer Drain(resp.Body)
	switch {
	case resp.StatusCode == http.StatusNotFound, resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
		return image.Descriptor{}, c.refused(ctx, ep, ref.String(), resp)
	case resp.StatusCode != http.StatusOK:
		return image.Descriptor{}, errVague
	}
	d := image.Descriptor{
		MediaType: plainType(resp.Header.Get("Content-Type")),
		Digest:    digest.Digest(resp.Header.Get("Docker-Content-Digest")),
		Size:      resp.ContentLength,
	}
	if d.Digest.Validate() != nil || d.Size <= 0 || d.MediaType == "" || ref.Digest != "" && d.Digest != ref.Digest {
		return image.Descriptor{}, errVague
	}
	return d, nil
}

func (c *Client) manifest(ctx context.Context, ep *endpoint, ref Ref, method string) (*http.Response, error) {
	u, err := ep.repo(ctx, ref, "manifests/"+ref.object())
	if err != nil {
		return nil, err
	}
	return c.send(ctx, ep, request{
		method: method, url: u, header: http.Header{"Accept": {accept}},
		scopes: []string{ep.scope(ref.Repo, "pull")},
	})
}

// get reads a manifest and computes its digest. A reference with a digest gets those bytes or an error.
func (c *Client) get(ctx context.Context, ep *endpoint, ref Ref) ([]byte, image.Descriptor, error) {
	var raw []byte
	var desc image.Descriptor
	algorithm := digest.SHA256
	if ref.Digest != "" {
		algorithm = ref.Digest.Algorithm()
	}
	if !algorithm.Available() {
		return nil, desc, diag.Errorf(diag.Unsupported, "%s: digests of %s are not supported", ref, algorithm)
	}
	err := c.retry(ctx, func() error {
		resp, err := c.manifest(ctx, ep, ref, http.MethodGet)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return c.refused(ctx, ep, ref.String(), resp)
		}
		raw, err = c.readSmall(resp, MaxManifest)
		if err != nil {
			return failure(ep, resp.Request.URL, err)
		}
		desc = image.Descriptor{MediaType: plainType(resp.Header.Get("Content-Type")), Size: int64(len(raw)), Digest: algorithm.FromBytes(raw)}
		if ref.Digest != "" && desc.Digest != ref.Digest {
			return &transient{err: diag.Errorf(diag.Invalid, "%s: %s sent a manifest whose digest is %s", ref, ep.name, desc.Digest)}
		}
		return nil
	})
	if err != nil {
		return nil, desc, err
	}
	return raw, desc, nil
}

// readSmall reads a body of at most limit bytes under the stall limit.
func (c *Client) readSmall(resp *http.Response, limit int64) ([]byte, error) {
	body := Watch(resp, c.net.timing.Stall)
	defer body.Close()
	raw, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, diag.Errorf(diag.Exhausted, "%s is larger than %d bytes", Redact(resp.Request.URL), limit)
	}
	return raw, nil
}

// Manifest returns the bytes of the manifest or index that desc names, at most MaxManifest of them, with desc's digest.
// Without a digest in desc, those that ref names now. Decode tells what they are.
func (c *Client) Manifest(ctx context.Context, ref Ref, desc image.Descriptor) ([]byte, error) {
	raw, _, err := c.Document(ctx, ref, desc)
	return raw, err
}

// Document is Manifest that also returns the descriptor, with the type that the server gave, "" if that says nothing.
func (c *Client) Document(ctx context.Context, ref Ref, desc image.Descriptor) ([]byte, image.Descriptor, error) {
	if desc.Size > MaxManifest {
		return nil, desc, diag.Errorf(diag.Exhausted, "%s: the manifest has %d bytes, the limit is %d", ref, desc.Size, MaxManifest)
	}
	pinned := ref
	if desc.Digest != "" {
		pinned = ref.WithDigest(desc.Digest)
	}
	var raw []byte
	var got image.Descriptor
	err := c.read(ctx, ref.Host, func(ctx context.Context, ep *endpoint) error {
		var err error
		raw, got, err = c.get(ctx, ep, pinned)
		return err
	})
	if err == nil && desc.Size > 0 && int64(len(raw)) != desc.Size {
		err = diag.Errorf(diag.Invalid, "%s: the manifest has %d bytes, its descriptor says %d", pinned, len(raw), desc.Size)
	}
	if err != nil {
		return nil, desc, err
	}
	return raw, got, nil
}

// describes reports whether the headers of an answer fit what was asked for. A server in the way may answer everything with a
// page of its own; what it does not have would not be pushed then.
func describes(resp *http.Response, desc image.Descriptor) bool {
	d := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	if d.Validate() == nil && d.Algorithm() == desc.Digest.Algorithm() && d != desc.Digest {
		return false
	}
	n := resp.ContentLength
	return resp.StatusCode != http.StatusOK || n <= 0 || desc.Size <= 0 || n == desc.Size
}

// Exists reports whether the repository of ref has what desc names.
func (c *Client) Exists(ctx context.Context, ref Ref, desc image.Descriptor) (bool, error) {
	ep, err := c.net.endpoint(ref.Host)
	if err != nil {
		return false, err
	}
	path := "blobs/"
	if IsManifest(desc.MediaType) || IsIndex(desc.MediaType) {
		path = "manifests/"
	}
	u, err := ep.repo(ctx, ref, path+desc.Digest.String())
	if err != nil {
		return false, err
	}
	resp, err := c.probe(ctx, ep, request{url: u, header: http.Header{"Accept": {accept}}, scopes: []string{ep.scope(ref.Repo, "pull")}})
	if err != nil {
		return false, err
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
		Drain(resp.Body)
		return describes(resp, desc), nil
	case http.StatusNotFound:
		Drain(resp.Body)
		return false, nil
	}
	return false, c.refused(ctx, ep, ref.Name()+"@"+desc.Digest.String(), resp)
}

// probe asks with HEAD, and with GET for the first byte where the registry does not know HEAD. The body of the answer says
// nothing.
func (c *Client) probe(ctx context.Context, ep *endpoint, r request) (*http.Response, error) {
	r.method = http.MethodHead
	resp, err := c.send(ctx, ep, r)
	if err != nil || resp.StatusCode != http.StatusMethodNotAllowed && resp.StatusCode != http.StatusNotImplemented {
		return resp, err
	}
	Drain(resp.Body)
	r.method = http.MethodGet
	if r.header = r.header.Clone(); r.header == nil {
		r.header = http.Header{}
	}
	r.header.Set("Range", "bytes=0-0")
	return c.send(ctx, ep, r)
}

// Stat returns the descriptor of a blob that only its digest is known of.
func (c *Client) Stat(ctx context.Context, ref Ref, d digest.Digest) (image.Descriptor, error) {
	desc := image.Descriptor{MediaType: "application/octet-stream", Digest: d}
	what := ref.Name() + "@" + d.String()
	err := c.read(ctx, ref.Host, func(ctx context.Context, ep *endpoint) error {
		u, err := ep.repo(ctx, ref, "blobs/"+d.String())
		if err != nil {
			return err
		}
		resp, err := c.probe(ctx, ep, request{url: u, scopes: []string{ep.scope(ref.Repo, "pull")}})
		if err != nil {
			return err
		}
		size := resp.ContentLength
		switch resp.StatusCode {
		case http.StatusOK:
		case http.StatusPartialContent:
			var ok bool
			if _, size, ok = parseRange(resp.Header.Get("Content-Range")); !ok {
				size = -1
			}
		default:
			return c.refused(ctx, ep, what, resp)
		}
		Drain(resp.Body)
		if size < 0 {
			return diag.Errorf(diag.Unavailable, "%s: %s does not tell the size", what, ep.name)
		}
		desc.Size = size
		return nil
	})
	return desc, err
}

// Tags lists the tags of ref's repository, at most 100,000.
func (c *Client) Tags(ctx context.Context, ref Ref) ([]string, error) {
	ep, err := c.net.endpoint(ref.Host)
	if err != nil {
		return nil, err
	}
	u, err := ep.repo(ctx, ref, "tags/list")
	if err != nil {
		return nil, err
	}
	u.RawQuery = url.Values{"n": {strconv.Itoa(1000)}}.Encode()
	var tags []string
	for u != nil && len(tags) < 100_000 {
		page, next, err := c.tagPage(ctx, ep, ref, u)
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			break
		}
		tags, u = append(tags, page...), next
	}
	return tags, nil
}
