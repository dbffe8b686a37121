package cache

import (
	"context"
	"sync"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/llb"
	"github.com/strata-build/strata/tree"
)

// Build is what caches need to know of a build.
type Build interface {
	// Pin says what a source stands for.
	Pin(ctx context.Context, v *graph.Vertex) (llb.SourcePin, error)
	// At returns a result that is at hand. The caller does not release it.
	At(e graph.Edge) (tree.Tree, bool)
	// Recall and Learn keep, between builds, the record of what an input of a vertex holds. Recall returns "" if it is not known.
	Recall(ctx context.Context, v *graph.Vertex, in llb.CacheInput) graph.Digest
	// origin is the cache that says so, "" if the input was read or the operator trusts the cache.
	Learn(ctx context.Context, v *graph.Vertex, in llb.CacheInput, rec graph.Digest, origin string)
	// MountSource returns the digest of what a cache mount of a vertex began with, "" if it is not known.
	MountSource(ctx context.Context, v *graph.Vertex, m graph.Mount) graph.Digest
}

// Keys computes what the vertices of a build are known by in caches, once. It is safe for concurrent use.
type Keys struct {
	b Build

	mu      sync.Mutex
	maps    map[graph.Digest]*keyed
	content map[contentOf]*known
}

type keyed struct {
	once sync.Once
	m    *llb.CacheMap // nil = it has no key
}

type contentOf struct {
	v  graph.Digest
	in int
}

type known struct {
	mu  sync.Mutex
	rec graph.Digest
}

// NewKeys returns the keys of a build.
func NewKeys(b Build) *Keys {
	return &Keys{b: b, maps: map[graph.Digest]*keyed{}, content: map[contentOf]*known{}}
}

// of returns a vertex's map, nil if it has none.
func (k *Keys) of(ctx context.Context, v *graph.Vertex) *llb.CacheMap {
	k.mu.Lock()
	x := k.maps[v.ID]
	if x == nil {
		x = &keyed{}
		k.maps[v.ID] = x
	}
	k.mu.Unlock()
	x.once.Do(func() {
		pin, err := k.b.Pin(ctx, v)
		if err != nil {
			return // the build meets the error, too
		}
		x.m, _ = llb.NewCacheMap(v, pin)
	})
	return x.m
}

// contentRecord returns the digest of the record of what an input holds, "" if that is not known and the input is not at hand.
func (k *Keys) contentRecord(ctx context.Context, v *graph.Vertex, in llb.CacheInput) graph.Digest {
	if in.Content == nil {
		return ""
	}
	x := k.known(v, in)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.rec != "" {
		return x.rec
	}
	if x.rec = k.b.Recall(ctx, v, in); x.rec != "" {
		return x.rec
	}
	t, ok := k.b.At(v.In[in.In])
	if !ok {
		return ""
	}
	rec, err := sum(ctx, t, in.Content)
	if err != nil {
		return "" // the build meets the error, too
	}
	x.rec = rec
	k.b.Learn(ctx, v, in, rec, "")
	return rec
}

// learn notes what a cache says of the record of what an input holds.
func (k *Keys) learn(ctx context.Context, v *graph.Vertex, in llb.CacheInput, rec graph.Digest, origin string) {
	x := k.known(v, in)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.rec == "" {
		x.rec = rec
		k.b.Learn(ctx, v, in, rec, origin)
	}
}

func (k *Keys) known(v *graph.Vertex, in llb.CacheInput) *known {
	k.mu.Lock()
	defer k.mu.Unlock()
	id := contentOf{v.ID, in.In}
	x := k.content[id]
	if x == nil {
		x = &known{}
		k.content[id] = x
	}
	return x
}

// filer is a tree whose files can be read.
type filer interface{ Files() (*tree.Files, error) }

// sum hashes selected files as BuildKit does.
func sum(ctx context.Context, t tree.Tree, sel []graph.Select) (graph.Digest, error) {
	f, err := t.(filer).Files()
	if err != nil {
		return "", err
	}
	sums := make([]graph.Digest, len(sel))
	for i, s := range sel {
		if sums[i], err = f.BuildKitSum(ctx, s); err != nil {
			return "", err
		}
	}
	return llb.RecordDigest(llb.ContentDigest(sums), llb.ContentOutput), nil
}
