package cache

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/llb"
	"github.com/strata-build/strata/solve"
	"github.com/strata-build/strata/tree"
)

// Matcher finds results in the caches that a build imports. It is safe for concurrent use.
type Matcher struct {
	ctx    context.Context // of the build
	stop   context.CancelFunc
	wg     sync.WaitGroup // preloads
	keys   *Keys
	env    Env
	unpack Unpack

	mu  sync.Mutex
	all []*source
}

var _ solve.Remote[tree.Tree] = (*Matcher)(nil)

// source is one cache that is imported: it is read when it is first asked.
type source struct {
	id     string
	origin string // "" = the operator trusts it
	place  string // where its blobs are
	load   func(context.Context) (*index, error)
	once   sync.Once
	ix     *index // nil = it cannot be read
}

// Unpack brings a chain of layers that lies at a place into the store.
type Unpack func(ctx context.Context, v *graph.Vertex, place string, chain []Layer) (tree.Tree, error)

// NewMatcher returns a matcher without caches. The caller closes it.
func NewMatcher(ctx context.Context, keys *Keys, env Env, unpack Unpack) *Matcher {
	ctx, stop := context.WithCancel(ctx)
	return &Matcher{ctx: ctx, stop: stop, keys: keys, env: env, unpack: unpack}
}

// Add imports a cache, after those that are there. It fails only if there are no such caches.
func (m *Matcher) Add(s Spec) error {
	load, id, err := importer(s, m.env)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.ContainsFunc(m.all, func(x *source) bool { return x.id == id }) {
		m.all = append(m.all, &source{id: id, origin: origin(s, id, m.env), place: placeOf(s, id, m.env), load: load})
	}
	return nil
}

// Preload begins to read the caches.
func (m *Matcher) Preload() {
	for _, s := range m.sources() {
		m.wg.Go(func() { s.index(m) })
	}
}

// Close ends what is still being read. No method may be called after it.
func (m *Matcher) Close() {
	m.stop()
	m.wg.Wait()
}

func (m *Matcher) sources() []*source {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.all)
}

// index reads the cache. A failure is told once, and then it has nothing.
func (s *source) index(m *Matcher) *index {
	sink := m.env.Events
	s.once.Do(func() {
		v := digest.FromString("importing cache manifest from " + s.id + time.Now().String())
		sink.Emit(event.Event{Kind: event.Planned, Vertex: v, Name: "importing cache manifest from " + s.id})
		sink.Emit(event.Event{Kind: event.Started, Vertex: v, Time: time.Now()})
		ix, err := s.load(m.ctx)
		done := event.Event{Kind: event.Done, Vertex: v}
		if m.ctx.Err() != nil {
			done.Cached = true // it was not needed
		} else if err != nil {
			done.Error = err.Error()
			sink.Emit(event.Event{Kind: event.Message, Time: time.Now(), Text: "the cache " + s.id + " is not used: " + err.Error()})
		}
		sink.Emit(done)
		s.ix = ix
	})
	return s.ix
}

// Find implements solve.Remote.
func (m *Matcher) Find(ctx context.Context, v *graph.Vertex, wanted []int) (*solve.Found[tree.Tree], bool) {
	retry := false
	for _, s := range m.sources() {
		ix := s.index(m)
		if ix == nil {
			continue
		}
		l := m.look(ctx, s, ix)
		found := &solve.Found[tree.Tree]{Outputs: make([]tree.Tree, v.Op.Outputs()), Origin: s.origin}
		ok := true
		for _, out := range wanted {
			if ok = ok && m.output(l, v, out, found); !ok {
				break
			}
		}
		if ok {
			return found, false
		}
		for _, t := range found.Outputs {
			if t != nil {
				t.Release()
			}
		}
		retry = retry || l.blind
		if ctx.Err() != nil {
			return nil, false
		}
	}
	return nil, retry
}

// Has implements solve.Remote. It asks for the layers, too: a cache may have lost them.
func (m *Matcher) Has(ctx context.Context, e graph.Edge) bool {
	return slices.ContainsFunc(m.results(ctx, e), func(r result) bool {
		var g errgroup.Group
		for i := range r.chain {
			g.Go(func() error {
				if !r.chain[i].Exists(ctx) {
					return errGone
				}
				return nil
			})
		}
		return g.Wait() == nil
	})
}

var errGone = errors.New("the cache has lost a layer")

// output brings one output of a vertex into the store, if the cache has it.
func (m *Matcher) output(l *lookup, v *graph.Vertex, out int, into *solve.Found[tree.Tree]) bool {
	for _, r := range l.results(graph.Edge{V: v, Out: out}) {
		t, err := m.unpack(l.ctx, v, l.from.place, r.chain)
		if err == nil {
			into.Outputs[out], into.Created = t, r.created
			return true
		}
		if l.ctx.Err() != nil {
			return false
		}
		m.env.Events.Emit(event.Event{Kind: event.Message, Time: time.Now(), Text: v.Name + " is not taken from the cache: " + err.Error()})
	}
	return false
}

// results returns the results that the caches have of an output, without bringing them here.
func (m *Matcher) results(ctx context.Context, e graph.Edge) []result {
	var all []result
	for _, s := range m.sources() {
		if ix := s.index(m); ix != nil {
			all = append(all, m.look(ctx, s, ix).results(e)...)
		}
	}
	return all
}

// contentRecord returns the record of what an input holds, as far as that can be known without reading it.
func (m *Matcher) contentRecord(ctx context.Context, v *graph.Vertex, i int) graph.Digest {
	for _, s := range m.sources() {
		if ix := s.index(m); ix != nil {
			if d, ok := m.look(ctx, s, ix).linked(v, i); ok {
				return d
			}
		}
	}
	return ""
}

// Token implements solve.Remote. A cache that links the vertex to what the input holds gives the same token for all inputs
// that hold it; else there is none.
func (m *Matcher) Token(ctx context.Context, v *graph.Vertex, i int) (solve.Claim, bool) {
	cm := m.keys.of(ctx, v)
	if cm == nil {
		return solve.Claim{}, false
	}
	for _, s := range m.sources() {
		ix := s.index(m)
		if ix == nil {
			continue
		}
		d, ok := m.look(ctx, s, ix).linked(v, i)
		if d != "" {
			d = digest.FromString("content known to a cache: " + d.String())
		}
		if ok {
			return solve.Claim{Content: d, Origin: s.origin}, true
		}
	}
	return solve.Claim{}, false
}

// Origins implements solve.Remote. Who cannot read a cache gets nothing of what others have found in it.
func (m *Matcher) Origins(context.Context) []string {
	var all []string
	for _, s := range m.sources() {
		if s.origin != "" && (m.env.Owner || s.index(m) != nil) {
			all = append(all, s.origin)
		}
	}
	return all
}

// lookup is one search in one cache.
type lookup struct {
	m     *Matcher
	ctx   context.Context
	from  *source
	ix    *index
	seen  map[graph.Edge][]int
	blind bool // there are candidates that only the content of inputs would tell
}

func (m *Matcher) look(ctx context.Context, s *source, ix *index) *lookup {
	return &lookup{m: m, ctx: ctx, from: s, ix: ix, seen: map[graph.Edge][]int{}}
}

// results returns the results of the records of an output, newest first.
func (l *lookup) results(e graph.Edge) []result {
	var all []result
	for _, r := range l.records(e) {
		all = append(all, l.ix.records[r].results...)
	}
	slices.SortStableFunc(all, func(a, b result) int { return b.created.Compare(a.created) })
	return all
}

// records returns the records of an output: those of its op that are linked, for every input, to a record of that input or
// of what it holds.
func (l *lookup) records(e graph.Edge) []int {
	if e.V == nil || e.V.NoCache {
		return nil
	}
	if r, ok := l.seen[e]; ok {
		return r
	}
	r := l.match(e)
	l.seen[e] = r
	return r
}

func (l *lookup) match(e graph.Edge) []int {
	cm := l.m.keys.of(l.ctx, e.V)
	if cm == nil {
		return nil
	}
	var left []int
	for _, r := range l.ix.byDigest[llb.RecordDigest(cm.Digest, e.Out)] {
		if len(l.ix.records[r].inputs) == len(cm.Inputs) {
			left = append(left, r)
		}
	}
	for i, in := range cm.Inputs {
		if len(left) == 0 {
			return nil
		}
		byOrigin := l.records(e.V.In[in.In])
		match := func(r int) bool {
			return slices.ContainsFunc(l.ix.records[r].inputs[i], func(k ConfigInput) bool {
				return k.Selector == string(in.Selector) && slices.Contains(byOrigin, k.Link)
			})
		}
		if slices.ContainsFunc(left, match) || in.Content == nil {
			left = slices.DeleteFunc(left, func(r int) bool { return !match(r) })
			continue
		}
		content := l.m.keys.contentRecord(l.ctx, e.V, in)
		if content == "" {
			l.blind = true
			return nil
		}
		held := l.ix.byDigest[content]
		left = slices.DeleteFunc(left, func(r int) bool {
			return !slices.ContainsFunc(l.ix.records[r].inputs[i], func(k ConfigInput) bool {
				return k.Selector == "" && slices.Contains(held, k.Link)
			})
		})
	}
	return left
}

// linked reports whether a record of the vertex is linked to how its input i was made, and returns the record of what the
// input holds, if that is linked too.
func (l *lookup) linked(v *graph.Vertex, i int) (content graph.Digest, ok bool) {
	cm := l.m.keys.of(l.ctx, v)
	if cm == nil {
		return "", false
	}
	n := slices.IndexFunc(cm.Inputs, func(in llb.CacheInput) bool { return in.In == i })
	if n < 0 || cm.Inputs[n].Content == nil {
		return "", false
	}
	in := cm.Inputs[n]
	byOrigin := l.records(v.In[i])
	if len(byOrigin) == 0 {
		return "", false
	}
	for out := range v.Op.Outputs() {
		for _, r := range l.records(graph.Edge{V: v, Out: out}) {
			links := l.ix.records[r].inputs[n]
			if !slices.ContainsFunc(links, func(k ConfigInput) bool {
				return k.Selector == string(in.Selector) && slices.Contains(byOrigin, k.Link)
			}) {
				continue
			}
			ok = true
			for _, k := range links {
				if to := l.ix.records[k.Link]; k.Selector == "" && len(to.inputs) == 0 {
					l.m.keys.learn(l.ctx, v, in, to.digest, l.from.origin)
					return to.digest, true
				}
			}
		}
	}
	return "", ok
}
