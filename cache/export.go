package cache

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/store"
)

// place is where a cache is written.
type place interface {
	name() string // for progress: "exporting cache to registry"
	// put writes one layer, unless it is there.
	put(ctx context.Context, l *Layer, report func(event.Event)) error
	// finish writes what makes the layers a cache, and returns what the client is told.
	finish(ctx context.Context, c *Config, layers []Layer, x *Export) (map[string]string, error)
}

// Packing says how layers become blobs.
type Packing struct {
	Compression layer.Compression
	Force       bool // also those that exist in another compression
}

// Export writes one cache.
type Export struct {
	Max    bool // results of all steps, not only those in the layers of the final ones
	Inline bool // it goes into the image's configuration: see Records
	Mounts bool // with the cache mounts of the steps
	Pack   Packing

	env    Env
	to     place
	ignore bool
	vertex graph.Digest
}

// NewExport makes the export that a client asks for. It fails if there are no such caches, or their options make no sense.
func NewExport(s Spec, env Env) (*Export, error) {
	x := &Export{env: env}
	if m := s.Attrs["mode"]; m == "max" {
		x.Max = true
	} else if m != "" && m != "min" {
		return nil, diag.Errorf(diag.Invalid, "cache of type %s: mode=%s: it must be min or max", s.Type, m)
	}
	var err error
	if x.ignore, err = flag(s, "ignore-error", false); err != nil {
		return nil, err
	}
	if x.Mounts, err = flag(s, "cache-mounts", false); err != nil {
		return nil, err
	}
	if x.Mounts && s.Type == "inline" {
		return nil, diag.Errorf(diag.Invalid, "cache of type inline: an image cannot carry cache mounts").WithHint("export them with a cache of another type")
	}
	if x.Pack, err = packing(s); err != nil {
		return nil, err
	}
	switch s.Type {
	case "registry":
		x.to, err = newToRegistry(s, env)
	case "local":
		x.to, err = newToLocal(s, env)
	case "inline":
		x.Inline = true
	case "s3", "azblob":
		x.to, err = newObjects(s, &env.Rules)
	case "gha":
		x.to, err = newActions(s, &env.Rules)
	default:
		e := diag.Errorf(diag.Invalid, "unknown cache exporter: %q", s.Type)
		if near := diag.Suggest(s.Type, []string{"registry", "local", "inline", "s3", "azblob", "gha"}); near != "" {
			return nil, e.WithHint("did you mean %s?", near)
		}
		return nil, e
	}
	if err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "failed to configure %s cache exporter: %w", s.Type, err)
	}
	return x, nil
}

func packing(s Spec) (Packing, error) {
	types := map[string]layer.Type{"": layer.Gzip, "gzip": layer.Gzip, "zstd": layer.Zstd, "estargz": layer.EStargz, "uncompressed": layer.Uncompressed}
	p := Packing{}
	t, ok := types[s.Attrs["compression"]]
	if !ok {
		return p, diag.Errorf(diag.Invalid, "cache of type %s: unsupported compression type %s", s.Type, s.Attrs["compression"])
	}
	p.Compression.Type = t
	if v := s.Attrs["compression-level"]; v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 || n > 22 {
			return p, diag.Errorf(diag.Invalid, "cache of type %s: compression-level=%s: it must be a number from 0 to 22", s.Type, v)
		}
		if p.Compression.Level = n; n == 0 {
			p.Compression.Level = layer.Stored
		}
	}
	var err error
	p.Force, err = flag(s, "force-compression", false)
	return p, err
}

// sends is how many layers are written at a time.
const sends = 6

// Run writes the cache of what a build has made. Failures are the build's unless ignore-error was asked for.
func (x *Export) Run(ctx context.Context, keys *Keys, m *Matcher, r Results, roots []graph.Edge) (map[string]string, error) {
	x.vertex = digest.FromString(rand.Text())
	x.env.Events.Emit(event.Event{Kind: event.Planned, Vertex: x.vertex, Name: x.to.name()})
	x.env.Events.Emit(event.Event{Kind: event.Started, Vertex: x.vertex, Time: time.Now()})
	said, err := x.run(ctx, newCollector(ctx, keys, m, r), roots)
	done := event.Event{Kind: event.Done, Vertex: x.vertex}
	if err != nil {
		err = diag.Errorf(diag.KindOf(err), "%s: %w", x.to.name(), err)
		done.Error = err.Error()
	}
	x.env.Events.Emit(done)
	if err != nil && x.ignore && ctx.Err() == nil {
		x.warn("the cache was not exported: " + err.Error())
		return nil, nil
	}
	return said, err
}

func (x *Export) warn(text string) {
	x.env.Events.Emit(event.Event{Kind: event.Message, Time: time.Now(), Text: text})
}

// step reports one activity, and returns what reports its end.
func (x *Export) step(item string) func() {
	x.env.Events.Emit(event.Event{Kind: event.Progress, Vertex: x.vertex, Item: item})
	return func() {
		x.env.Events.Emit(event.Event{Kind: event.Progress, Vertex: x.vertex, Item: item, Complete: true})
	}
}

func (x *Export) run(ctx context.Context, c *collector, roots []graph.Edge) (map[string]string, error) {
	done := x.step("preparing build cache for export")
	for _, e := range roots {
		if e.V != nil {
			c.record(e)
		}
	}
	if !x.Max {
		c.within(roots)
	}
	all := c.sorted()
	chains, err := x.pack(ctx, c.results, all)
	done()
	if err != nil {
		return nil, err
	}
	conf, layers := config(all, chains)
	var mounted []Layer
	if x.Mounts {
		if conf.Mounts, mounted, err = x.sendMounts(ctx, c, roots); err != nil {
			return nil, err
		}
	}
	if len(layers)+len(mounted) == 0 {
		x.step("skipping cache export for empty result")()
		return nil, nil
	}
	defer x.step("sending cache export")()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(sends)
	for i := range layers {
		g.Go(func() error { return x.put(gctx, &layers[i]) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return x.to.finish(ctx, conf, append(layers, mounted...), x)
}

func (x *Export) put(ctx context.Context, l *Layer) error {
	ev := event.Event{Kind: event.Progress, Vertex: x.vertex, Item: "writing layer " + l.Desc.Digest.String(), Total: l.Desc.Size}
	x.env.Events.Emit(ev)
	err := x.to.put(ctx, l, func(p event.Event) {
		ev.Current = p.Current
		x.env.Events.Emit(ev)
	})
	ev.Current, ev.Complete = l.Desc.Size, true
	x.env.Events.Emit(ev)
	return err
}

// pack makes blobs of all layers of the results. A result of which a layer cannot be had is not exported.
func (x *Export) pack(ctx context.Context, r Results, all []*item) (map[*item][]Layer, error) {
	near, far := map[store.LayerID]*Layer{}, map[graph.Digest]*Layer{}
	var refs []ref // distinct
	for _, it := range all {
		for _, l := range it.chain {
			if l.far != nil {
				if _, ok := far[l.far.Desc.Digest]; !ok {
					far[l.far.Desc.Digest] = nil
					refs = append(refs, l)
				}
			} else if _, ok := near[l.id]; !ok {
				near[l.id] = nil
				refs = append(refs, l)
			}
		}
	}
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(2 * sends)
	for _, l := range refs {
		g.Go(func() error {
			if l.far != nil && !l.far.Exists(ctx) {
				return nil
			}
			p := l.far
			if p == nil {
				one, err := r.Pack(ctx, l.id, x.Pack)
				if err != nil {
					if ctx.Err() == nil {
						x.warn("a layer is not exported to the cache: " + err.Error())
					}
					return nil
				}
				p = &one
			}
			mu.Lock()
			defer mu.Unlock()
			if l.far != nil {
				far[p.Desc.Digest] = p
			} else {
				near[l.id] = p
			}
			return nil
		})
	}
	_ = g.Wait() // they return none
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	chains := map[*item][]Layer{}
	for _, it := range all {
		chain := make([]Layer, 0, len(it.chain))
		for _, l := range it.chain {
			p := near[l.id]
			if l.far != nil {
				p = far[l.far.Desc.Digest]
			}
			if p == nil {
				break
			}
			chain = append(chain, *p)
		}
		if len(chain) == len(it.chain) {
			chains[it] = chain
		}
	}
	return chains, nil
}

// Records are the records of an inline cache, for the configuration of the image that holds root's layers: bottom first, as
// the store knows them, with their diff_ids. Nil if there are none.
func Records(ctx context.Context, c *Collected, root graph.Edge, ids []store.LayerID, diffs []graph.Digest) ([]byte, error) {
	if root.V == nil {
		return nil, nil
	}
	col := newCollector(ctx, c.Keys, c.Matcher, c.Results)
	col.record(root)
	col.within([]graph.Edge{root})
	all := col.sorted()
	out := records(all)
	some := false
	for i, it := range all {
		var at []int
		for _, l := range it.chain {
			n := slices.Index(ids, l.id)
			if l.far != nil {
				n = slices.Index(diffs, l.far.DiffID)
			}
			at = append(at, n)
		}
		if len(at) == 0 || slices.Contains(at, -1) {
			continue
		}
		some = true
		whole := true
		for k, n := range at {
			whole = whole && k == n
		}
		if whole {
			out[i].Results = []ConfigResult{{Layer: len(at) - 1, CreatedAt: it.made.UTC()}}
		} else {
			out[i].Chains = []ConfigChain{{Layers: at, CreatedAt: it.made.UTC()}}
		}
	}
	if !some {
		return nil, nil
	}
	return json.Marshal(out)
}

// Collected is what records are made of.
type Collected struct {
	Keys    *Keys
	Matcher *Matcher // nil = nothing was imported
	Results Results
}
