package engine

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/strata-build/strata/cache"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/export"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/llb"
	"github.com/strata-build/strata/solve"
	"github.com/strata-build/strata/source"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// CacheSpec names a cache that is imported or exported, as --cache-from and --cache-to do.
type CacheSpec = cache.Spec

// CacheRules are the operator's for the caches that clients name.
type CacheRules = cache.Rules

// ErrUnknownCache tells of an import of a type that there is not.
var ErrUnknownCache = cache.ErrUnknown

// CacheExport is a cache that will be written when a build is solved.
type CacheExport = cache.Export

// caches are the caches elsewhere that a build uses. The keys cost nothing as long as there are none.
type caches struct {
	b       *build
	ctx     context.Context // of the build
	keys    *cache.Keys
	matcher *cache.Matcher

	mu    sync.Mutex
	trees []tree.Tree // opened for their content
	deep  bool        // the build is solved: results may be looked for in the store
}

var (
	_ cache.Build   = (*caches)(nil)
	_ cache.Results = (*caches)(nil)
)

func newCaches(ctx context.Context, b *build) *caches {
	c := &caches{b: b, ctx: ctx}
	c.keys = cache.NewKeys(c)
	return c
}

func (c *caches) env() cache.Env {
	who, rules := c.b.client, c.b.e.opt.Caches
	rules.AllowMetadata = c.b.e.opt.AllowMetadata
	return cache.Env{
		Registry: c.b.web, Session: c.b.session, Events: c.b.sink, Rules: rules,
		Client: strings.TrimSpace(who.Tenant + " " + who.Name), Owner: who.Owner,
	}
}

// solved tells that nothing more is solved: from now on results are also looked for in the store.
func (c *caches) solved() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deep = true
}

func (c *caches) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.matcher != nil {
		c.matcher.Close()
	}
	for _, t := range c.trees {
		t.Release()
	}
	c.trees = nil
}

// ImportCaches lets what is solved from now on be found in caches elsewhere. It fails only if there are no such caches: one that
// cannot be read is told, and has nothing.
func (j *Job) ImportCaches(specs ...CacheSpec) error {
	c := j.b.caches
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range specs {
		m := c.matcher
		if m == nil {
			m = cache.NewMatcher(c.ctx, c.keys, c.env(), c.unpack)
		}
		if err := m.Add(s); err != nil {
			return err
		}
		if c.matcher == nil {
			c.matcher = m
			j.b.work.UseRemote(m)
		}
	}
	if c.matcher != nil {
		c.matcher.Preload()
	}
	return nil
}

// CacheExports checks what caches are to be written before anything is built.
func (j *Job) CacheExports(specs []CacheSpec) ([]*CacheExport, error) {
	var out []*CacheExport
	for _, s := range specs {
		x, err := cache.NewExport(s, j.b.caches.env())
		if err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	return out, nil
}

// Pin implements cache.Build.
func (c *caches) Pin(ctx context.Context, v *graph.Vertex) (llb.SourcePin, error) {
	switch o := v.Op.(type) {
	case *graph.Image:
		img, err := c.b.images.Resolve(ctx, o, v.Platform)
		if err != nil {
			return llb.SourcePin{}, err
		}
		return imagePin(img, o.LayerLimit), nil
	case *graph.OCILayout:
		img, err := c.b.images.ResolveLayout(ctx, o, v.Platform)
		if err != nil {
			return llb.SourcePin{}, err
		}
		return imagePin(img, o.LayerLimit), nil
	case *graph.Git:
		commit, err := c.b.git.Commit(ctx, o)
		return llb.SourcePin{Commit: commit}, err
	case *graph.Build:
		return llb.SourcePin{}, diag.Errorf(diag.Unsupported, "what a nested build makes is known by its content only")
	}
	p, err := runner{c.b.e}.Pin(ctx, v, c.b)
	return llb.SourcePin{Other: p.Value}, err
}

func imagePin(img *source.Image, limit int) llb.SourcePin {
	switch {
	case img.Digest != "":
		return llb.SourcePin{Image: img.Digest.String()}
	case img.Manifest != nil:
		return llb.SourcePin{Image: img.Manifest.Digest.String()}
	}
	return llb.SourcePin{Other: img.Pin(limit).String()}
}

// At implements cache.Build.
func (c *caches) At(e graph.Edge) (tree.Tree, bool) {
	if t, ok := c.b.work.At(e); ok {
		return t, true
	}
	c.mu.Lock()
	deep := c.deep
	c.mu.Unlock()
	if !deep {
		return nil, false
	}
	ids, _, ok := c.Kept(c.ctx, e)
	if !ok {
		return nil, false
	}
	t := tree.NewStack(c.b.e.store, ids)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trees = append(c.trees, t)
	return t, true
}

// contentMemo names the memo of what an input holds; "" if the input's key says nothing.
func (c *caches) contentMemo(v *graph.Vertex, in llb.CacheInput) graph.Digest {
	e := v.In[in.In]
	key, err := c.b.work.Key(e)
	if err != nil || c.b.work.Volatile(e) {
		return ""
	}
	return digest.FromBytes(graph.Canonical(struct {
		Key   graph.Digest
		Out   int
		Paths []graph.Select
		What  string
	}{key, e.Out, in.Content, "BuildKit's record of the content"}))
}

// Recall implements cache.Build.
func (c *caches) Recall(ctx context.Context, v *graph.Vertex, in llb.CacheInput) (d graph.Digest) {
	memo := c.contentMemo(v, in)
	if memo == "" || c.b.work.Forced(v.In[in.In]) {
		return ""
	}
	c.b.work.Trusted(ctx, func(origins []string) bool {
		var err error
		d, err = c.b.e.store.Memo(solve.OriginKey(memo, origins))
		return err == nil
	})
	return d
}

// Learn implements cache.Build.
func (c *caches) Learn(ctx context.Context, v *graph.Vertex, in llb.CacheInput, rec graph.Digest, origin string) {
	memo := c.contentMemo(v, in)
	if memo == "" {
		return
	}
	memo = solve.OriginKey(memo, solve.Union(c.b.work.Origins(v.In[in.In]), solve.OriginOf(origin)))
	if err := (results{c.b.e.store}).SetMemo(ctx, memo, rec); err != nil {
		c.b.e.log.Debug("a memo was not kept", "err", err)
	}
}

// mountSource names the memo of what a cache mount begins with.
func (c *caches) mountSource(v *graph.Vertex, m graph.Mount) (graph.Digest, error) {
	e := v.In[m.Input]
	key := graph.Digest("")
	if e.V != nil {
		var err error
		if key, err = c.b.work.Key(e); err != nil {
			return "", err
		}
	}
	return digest.FromBytes(graph.Canonical(struct {
		Key          graph.Digest
		Out          int
		Source, What string
	}{key, e.Out, m.Source, "the source of a cache mount"})), nil
}

// MountSource implements cache.Build.
func (c *caches) MountSource(_ context.Context, v *graph.Vertex, m graph.Mount) graph.Digest {
	memo, err := c.mountSource(v, m)
	if err != nil {
		return ""
	}
	d, _ := c.b.e.store.Memo(memo)
	return d
}

// noteSource keeps, for the export of caches, what a cache mount of a step begins with.
func (c *caches) noteSource(ctx context.Context, v *graph.Vertex) func(graph.Mount, graph.Digest) {
	return func(m graph.Mount, content graph.Digest) {
		memo, err := c.mountSource(v, m)
		if err == nil {
			err = (results{c.b.e.store}).SetMemo(ctx, memo, content)
		}
		if err != nil {
			c.b.e.log.Debug("a memo was not kept", "err", err)
		}
	}
}

// unpack brings layers of a cache into the store.
func (c *caches) unpack(ctx context.Context, v *graph.Vertex, place string, chain []cache.Layer) (tree.Tree, error) {
	from := map[graph.Digest]*cache.Layer{}
	get := source.Chain{Name: v.Name, Place: place, Open: func(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error) {
		return from[d.Digest].Open(ctx, offset)
	}}
	for i := range chain {
		l := &chain[i]
		from[l.Desc.Digest] = l
		get.DiffIDs, get.Blobs, get.Created = append(get.DiffIDs, l.DiffID), append(get.Blobs, l.Desc), append(get.Created, l.Created)
	}
	ids, err := c.b.images.FetchChain(ctx, get, v.ID)
	if err != nil {
		return nil, err
	}
	return tree.NewStack(c.b.e.store, ids), nil
}

// Kept implements cache.Results.
func (c *caches) Kept(_ context.Context, e graph.Edge) ([]store.LayerID, time.Time, bool) {
	keys, err := c.b.work.Keys(e)
	if err != nil || c.b.work.Volatile(e) {
		return nil, time.Time{}, false
	}
	for _, key := range keys {
		if r, err := c.b.hold.Result(key); err == nil && e.Out < len(r.Outputs) {
			return r.Outputs[e.Out], r.Created, true
		}
		if r, err := c.b.hold.Result(solve.PartKey(key, e.Out)); err == nil && len(r.Outputs) == 1 {
			return r.Outputs[0], r.Created, true
		}
	}
	return nil, time.Time{}, false
}

// DiffID implements cache.Results.
func (c *caches) DiffID(id store.LayerID) graph.Digest {
	info, _ := c.b.e.store.Layer(id)
	return info.DiffID
}

// Pack implements cache.Results.
func (c *caches) Pack(ctx context.Context, id store.LayerID, p cache.Packing) (cache.Layer, error) {
	packer := c.b.e.packer
	l, desc, err := packer.Blob(ctx, export.Request{ID: id, Compression: p.Compression, Force: p.Force, Hold: c.b.hold})
	if err != nil {
		return cache.Layer{}, err
	}
	desc.Annotations = nil
	return cache.Layer{
		Desc: desc, DiffID: l.DiffID, Created: l.Created,
		Open: func(ctx context.Context, offset int64) (io.ReadCloser, error) {
			r, err := packer.Open(ctx, l, desc)
			if err != nil || offset == 0 {
				return r, err
			}
			if _, err := io.CopyN(io.Discard, r, offset); err != nil {
				return nil, fmt.Errorf("%w (and %w)", err, r.Close())
			}
			return r, nil
		},
		Exists: func(context.Context) bool { return true },
	}, nil
}

// ReadMount implements cache.Results.
func (c *caches) ReadMount(ctx context.Context, m cache.UsedMount, read func(dir string) error) (bool, error) {
	return c.b.e.store.ReadCacheMount(ctx, store.MountKey(c.b.client.Tenant, m.ID), m.Sharing, read)
}

// TempDir implements cache.Results.
func (c *caches) TempDir(prefix string) (string, func(), error) { return c.b.e.store.TempDir(prefix) }

// restoreMount fills a new cache mount from the caches that are imported.
func (c *caches) restoreMount(ctx context.Context, id, dir string) (bool, error) {
	c.mu.Lock()
	m := c.matcher
	c.mu.Unlock()
	if m == nil {
		return false, nil
	}
	return m.RestoreMount(ctx, id, dir)
}

// inline lets the images of a set carry records of a cache.
func (c *caches) inline(set *export.Set, plan *image.Plan) {
	for i := range set.Images {
		root := plan.Targets[i].Root
		set.Images[i].Cache = func(ctx context.Context, ids []store.LayerID, diffs []graph.Digest) ([]byte, error) {
			return cache.Records(ctx, &cache.Collected{Keys: c.keys, Matcher: c.matcher, Results: c}, root, ids, diffs)
		}
	}
}

// export writes the caches of a build that is solved, and returns what the client is told.
func (c *caches) export(ctx context.Context, plan *image.Plan, all []*CacheExport) (map[string]string, error) {
	var roots []graph.Edge
	for _, t := range plan.Targets {
		roots = append(roots, t.Root)
	}
	var mu sync.Mutex
	said := map[string]string{}
	g, ctx := errgroup.WithContext(ctx)
	for _, x := range all {
		if x.Inline {
			continue
		}
		g.Go(func() error {
			m, err := x.Run(ctx, c.keys, c.matcher, c, roots)
			mu.Lock()
			defer mu.Unlock()
			for k, v := range m {
				said[k] = v
			}
			return err
		})
	}
	return said, g.Wait()
}
