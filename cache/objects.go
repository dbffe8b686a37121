package cache

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// bucket is a place in an object store.
type bucket interface {
	// url is where an object is.
	url(key string) *url.URL
	// prepare completes a request, for instance with a signature. sum is the digest of the body.
	prepare(req *http.Request, sum graph.Digest) error
	// create makes the place itself, if that is possible.
	create(ctx context.Context, o *objects) error
}

// objects is a cache in an object store: a blob for each layer, and the configuration, with annotations instead of a manifest.
type objects struct {
	kind      string
	title     string
	where     string
	bucket    bucket
	manifests string   // prefix of the keys of configurations
	layers    string   // prefix of the keys of layers
	names     []string // of the cache; the first is read
	touch     time.Duration
	client    *http.Client

	making sync.Once
	made   error
}

// make creates the bucket, once.
func (o *objects) make(ctx context.Context) error {
	o.making.Do(func() { o.made = o.bucket.create(ctx, o) })
	return o.made
}

var _ blobs = (*objects)(nil)

func newObjects(s Spec, rules *Rules) (*objects, error) {
	if s.Type == "s3" {
		return newS3(s, rules)
	}
	return newAzure(s, rules)
}

func (o *objects) id() string { return o.kind + ":" + o.where + " " + o.names[0] }

func (o *objects) name() string { return o.title }

// tries is how often a request is made that fails for no lasting reason.
const tries = 3

// do makes a request. Bodies are opened for each try. The caller closes the answer's body.
func (o *objects) do(ctx context.Context, method, key string, h http.Header, body *object) (*http.Response, error) {
	var last error
	for n := range tries {
		if n > 0 {
			select {
			case <-time.After(time.Duration(n*n) * 200 * time.Millisecond):
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		resp, err := o.once(ctx, method, key, h, body)
		if err != nil {
			last = err
			if strings.Contains(err.Error(), "no such host") || ctx.Err() != nil {
				break
			}
			continue
		}
		if resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests {
			return resp, nil
		}
		last = o.refused(resp, key)
	}
	return nil, diag.Errorf(diag.Unavailable, "%s: %w", o.where, last)
}

// object is what is stored.
type object struct {
	size int64
	sum  graph.Digest
	open func() (io.ReadCloser, error)
}

func (o *objects) once(ctx context.Context, method, key string, h http.Header, body *object) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, o.bucket.url(key).String(), nil)
	if err != nil {
		return nil, err
	}
	req.URL = o.bucket.url(key)
	for k, v := range h {
		req.Header[k] = v
	}
	sum := digest.FromString("")
	if body != nil {
		sum = body.sum
		if req.Body, err = body.open(); err != nil {
			return nil, err
		}
		req.ContentLength = body.size
		if body.size == 0 {
			req.Body = http.NoBody
		}
	}
	if err := o.bucket.prepare(req, sum); err != nil {
		return nil, err
	}
	return o.client.Do(req)
}

// refused makes an error of an answer, and closes its body.
func (o *objects) refused(resp *http.Response, key string) error {
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
	kind := diag.Unavailable
	switch resp.StatusCode {
	case http.StatusNotFound:
		kind = diag.NotFound
	case http.StatusForbidden, http.StatusUnauthorized:
		kind = diag.Denied
	}
	return diag.Errorf(kind, "%s %s: %s %s", o.where, key, resp.Status, bytes.TrimSpace(text))
}

func (o *objects) head(ctx context.Context, key string) (size int64, changed time.Time, err error) {
	resp, err := o.do(ctx, http.MethodHead, key, nil, nil)
	if err != nil {
		return 0, changed, err
	}
	if resp.StatusCode != http.StatusOK {
		return 0, changed, o.refused(resp, key)
	}
	resp.Body.Close()
	changed, _ = http.ParseTime(resp.Header.Get("Last-Modified"))
	return resp.ContentLength, changed, nil
}

func (o *objects) stat(ctx context.Context, d graph.Digest) (int64, error) {
	n, _, err := o.head(ctx, o.layers+d.String())
	return n, err
}

func (o *objects) open(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error) {
	h := http.Header{}
	if offset > 0 {
		if offset >= d.Size {
			return io.NopCloser(strings.NewReader("")), nil
		}
		h.Set("Range", "bytes="+itoa(offset)+"-")
	}
	key := o.layers + d.Digest.String()
	resp, err := o.do(ctx, http.MethodGet, key, h, nil)
	if err != nil {
		return nil, err
	}
	if want := map[bool]int{false: http.StatusOK, true: http.StatusPartialContent}[offset > 0]; resp.StatusCode != want {
		return nil, o.refused(resp, key)
	}
	return resp.Body, nil
}

// load reads the configuration. One that does not exist is an empty cache.
func (o *objects) load(ctx context.Context) (*index, error) {
	key := o.manifests + o.names[0]
	resp, err := o.do(ctx, http.MethodGet, key, nil, nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusNotFound {
		resp.Body.Close()
		return &index{}, nil
	}
	if resp.StatusCode != http.StatusOK {
		return nil, o.refused(resp, key)
	}
	defer resp.Body.Close()
	return readConfig(resp.Body, o)
}

// readConfig reads a configuration whose layers have annotations.
func readConfig(r io.Reader, b blobs) (*index, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxConfig+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxConfig {
		return nil, diag.Errorf(diag.Exhausted, "the cache's configuration has more than %d bytes", maxConfig)
	}
	c, err := decode(raw)
	if err != nil {
		return nil, err
	}
	known := map[graph.Digest]Layer{}
	for _, l := range c.Layers {
		if a := l.Annotations; a != nil && l.Blob.Validate() == nil && a.DiffID.Validate() == nil && a.Size >= 0 {
			x := Layer{Desc: image.Descriptor{MediaType: a.MediaType, Digest: l.Blob, Size: a.Size}, DiffID: a.DiffID, Created: a.CreatedAt}
			x.at(b)
			known[l.Blob] = x
		}
	}
	return parseAt(c, known, b)
}

// annotate describes the layers in the configuration itself.
func (c *Config) annotate(layers []Layer) {
	byDigest := map[graph.Digest]*Layer{}
	for i := range layers {
		byDigest[layers[i].Desc.Digest] = &layers[i]
	}
	for i := range c.Layers {
		l := byDigest[c.Layers[i].Blob]
		c.Layers[i].Annotations = &LayerAnnotations{MediaType: l.Desc.MediaType, DiffID: l.DiffID, Size: l.Desc.Size, CreatedAt: l.Created.UTC()}
	}
}

func (o *objects) write(ctx context.Context, key string, body *object) error {
	resp, err := o.do(ctx, http.MethodPut, key, nil, body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return o.refused(resp, key)
	}
	resp.Body.Close()
	return nil
}

func (o *objects) put(ctx context.Context, l *Layer, _ func(event.Event)) error {
	key := o.layers + l.Desc.Digest.String()
	if n, changed, err := o.head(ctx, key); err == nil && n == l.Desc.Size && (o.touch == 0 || time.Since(changed) < o.touch) {
		return nil
	} else if err != nil && diag.KindOf(err) != diag.NotFound {
		return err
	}
	if err := o.make(ctx); err != nil {
		return err
	}
	// One that is old is written again, so that no rule of the store lets it expire while it is in use.
	return o.write(ctx, key, &object{l.Desc.Size, l.Desc.Digest, func() (io.ReadCloser, error) { return l.Open(ctx, 0) }})
}

func (o *objects) finish(ctx context.Context, c *Config, layers []Layer, x *Export) (map[string]string, error) {
	c.annotate(layers)
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	for _, n := range o.names {
		done := x.step("writing manifest " + n)
		err := o.write(ctx, o.manifests+n, &object{int64(len(raw)), digest.FromBytes(raw), func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(raw)), nil
		}})
		done()
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}
