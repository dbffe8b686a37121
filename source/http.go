package source

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/tree"
)

// HTTP downloads files for one build, each URL once.
type HTTP struct {
	env   Env
	names namer
	locks locks
	mu    sync.Mutex
	seen  map[string]*download
}

// NewHTTP starts a build's downloads.
func NewHTTP(env Env) *HTTP {
	return &HTTP{env: env, names: newNamer(env.Store), seen: map[string]*download{}}
}

// download is what is known of a URL. It is kept as a blob that a memo names, so that the next build need only ask
// whether the file has changed.
type download struct {
	Digest   graph.Digest `json:"digest"`
	ETag     string       `json:"etag,omitempty"`
	Modified string       `json:"modified,omitempty"` // the Last-Modified header
	Filename string       `json:"filename,omitempty"` // from Content-Disposition
}

// Pin returns the digest of what the download makes: content, name and time. With a checksum nothing is asked, unless it is not
// known whether this client can have the file. Without one, the server is asked whether the file is still the one that an earlier build got; if not, it is downloaded now.
func (h *HTTP) Pin(ctx context.Context, op *graph.HTTP, vertex graph.Digest) (graph.Digest, error) {
	if err := checkName(op.Filename); err != nil {
		return "", err
	}
	if op.Checksum != "" {
		if err := op.Checksum.Validate(); err != nil {
			return "", err
		}
		return op.Checksum, h.mayRead(ctx, op, vertex)
	}
	d, err := h.get(ctx, op, vertex)
	if err != nil {
		return "", err
	}
	return digest.FromString(d.Digest.String() + "\n" + d.name(op) + "\n" + d.time(op).UTC().Format(time.RFC3339)), nil
}

// Digest returns the digest of the file's content, for provenance.
func (h *HTTP) Digest(ctx context.Context, op *graph.HTTP, vertex graph.Digest) (graph.Digest, error) {
	if op.Checksum != "" {
		return op.Checksum, nil
	}
	d, err := h.get(ctx, op, vertex)
	if err != nil {
		return "", err
	}
	return d.Digest, nil
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
	if err := h.verify(ctx, op, d); err != nil {
		return nil, err
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
	if t := d.modified(); t != nil {
		return *t
	}
	return time.Unix(0, 0)
}

// modified is when the server says that the file was changed; nil if it does not say.
func (d *download) modified() *time.Time {
	t, err := http.ParseTime(d.Modified)
	if err != nil {
		return nil
	}
	return &t
}

// Download is what is known of a file before a layer is made of it.
type Download struct {
	Digest   graph.Digest
	Filename string
	Modified *time.Time // nil if the server does not say
}

// Meta tells what the URL has now; what it has stays the same for the rest of the build. Of a file with a checksum nothing is
// asked, unless its signature is to be verified.
func (h *HTTP) Meta(ctx context.Context, op *graph.HTTP) (*Download, error) {
	if err := checkName(op.Filename); err != nil {
		return nil, err
	}
	if op.Checksum != "" && op.Signature == nil {
		return &Download{Digest: op.Checksum, Filename: (&download{}).name(op)}, op.Checksum.Validate()
	}
	d, err := h.get(ctx, op, "")
	if err != nil {
		return nil, err
	}
	if err := h.verify(ctx, op, d); err != nil {
		return nil, err
	}
	return &Download{Digest: d.Digest, Filename: d.name(op), Modified: d.modified()}, nil
}

// Sum hashes the file and then some bytes: that is what an OpenPGP signature is over.
func (h *HTTP) Sum(ctx context.Context, op *graph.HTTP, algorithm digest.Algorithm, suffix []byte) (graph.Digest, error) {
	d, err := h.get(ctx, op, "")
	if err != nil {
		return "", err
	}
	r, err := stored(ctx, h.env.Store, d.Digest)
	if err != nil {
		return "", err
	}
	defer r.Close()
	sum := algorithm.Digester()
	if _, err := io.Copy(sum.Hash(), io.MultiReader(&archive.Cancelable{Ctx: ctx, Reader: r}, bytes.NewReader(suffix))); err != nil {
		return "", err
	}
	return sum.Digest(), nil
}

// mayRead makes sure that the client itself can have a file whose checksum it knows.
func (h *HTTP) mayRead(ctx context.Context, op *graph.HTTP, vertex graph.Digest) error {
	if h.env.Client.Owner {
		return nil
	}
	g := &getting{h: h, op: op}
	req, err := g.request(ctx)
	if err == nil && req != nil && h.env.knows(g.readable(req)) {
		return nil
	}
	if err == nil {
		_, err = h.get(ctx, op, vertex)
	}
	return err
}

// get returns what the URL has, and the file is in the store and held then.
func (h *HTTP) get(ctx context.Context, op *graph.HTTP, vertex graph.Digest) (*download, error) {
	n, err := graph.Normalize(op)
	if err != nil {
		return nil, err
	}
	op = n.(*graph.HTTP)
	id := op.URL + "\n" + op.AuthHeader
	for _, k := range slices.Sorted(maps.Keys(op.Header)) {
		id += "\n" + k + ":" + op.Header[k]
	}
	once := id
	if op.Login != nil {
		once += "\n" + op.Login.String() // one build may ask with several logins
	}
	release, err := h.locks.take(ctx, once)
	if err != nil {
		return nil, err
	}
	defer release()
	h.mu.Lock()
	d := h.seen[once]
	h.mu.Unlock()
	if d == nil {
		options := fmt.Sprintf("%s %o %d:%d", op.Filename, op.Mode, op.UID, op.GID) // each is asked for on its own, as in BuildKit
		g := &getting{h: h, op: op, vertex: vertex, key: digest.FromString("http\n" + id + "\n" + options)}
		if d, err = g.run(ctx); err != nil {
			return nil, err
		}
		h.mu.Lock()
		h.seen[once] = d
		h.mu.Unlock()
	}
	if op.Checksum != "" && op.Checksum != d.Digest {
		return nil, diag.Errorf(diag.Invalid, "%s: digest mismatch %s: %s", redacted(op.URL), d.Digest, op.Checksum).
			WithHint("if the file was changed on purpose, change the checksum")
	}
	return d, nil
}

// redacted is a URL without what may be secret, as far as it can be parsed.
func redacted(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "the URL"
	}
	return registry.Redact(u)
}
