package solve

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
)

// Result is one output of a vertex.
type Result interface {
	// Content returns the digest of the files that a selector names.
	Content(context.Context, graph.Selector) (graph.Digest, error)
	// Release gives up what the result holds. The solver calls it once, when no build uses the result any more.
	Release()
}

// Pin is what a vertex stands for at this moment.
type Pin struct {
	Value    string // the digest or commit behind a name; "" = nothing to pin
	Complete bool   // Value says all about the content: two ops with this value are equal, however they are spelt
	Volatile bool   // the vertex's key says nothing about its content: it is run in every build and never stored
	Light    bool   // its run takes no slot: it waits for a network or does next to nothing
}

// Step is one run of a vertex. Emit reports to every build that waits for it.
type Step[R Result, E any] struct {
	V    *graph.Vertex
	Pin  Pin
	Key  graph.Digest
	In   []R // the zero R for scratch
	Env  E
	Emit event.Sink
	// Peers are other builds of the tenant whose graphs have the vertex at this moment: a run that several wait for may use what
	// any of them has.
	Peers func() []E
	// Lacked notes that the run does without something, such as a secret. A build that waits for the run too, and has it by what
	// has says, does not take the result but runs the vertex itself.
	Lacked func(has func(E) bool)
	// Solve solves another graph as part of the same build, for nested builds.
	Solve func(...graph.Edge) ([]R, error)
}

// Runner pins and runs vertices.
type Runner[R Result, E any] interface {
	Pin(ctx context.Context, v *graph.Vertex, env E) (Pin, error)
	// Run returns the outputs. When ctx ends it cleans up, then returns.
	Run(ctx context.Context, s *Step[R, E]) ([]R, error)
}

// Entry is what a cache keeps under a key.
type Entry[R Result] struct {
	Key      graph.Digest
	Preimage *Preimage
	Name     string
	Outputs  []R
	Origins  []string // see OriginKey; Key contains them
	Cost     time.Duration
	Created  time.Time // zero = now
}

// Cache keeps results between builds. Errors of Lookup and Memo are misses: their text says why.
type Cache[R Result] interface {
	Lookup(ctx context.Context, key graph.Digest) ([]R, error)
	Store(ctx context.Context, e *Entry[R]) error
	Memo(ctx context.Context, of graph.Digest) (graph.Digest, error)
	SetMemo(ctx context.Context, of, is graph.Digest) error
	// Why explains, if it can, why nothing is kept for a preimage, from an earlier one of the same step.
	Why(ctx context.Context, name string, p *Preimage) string
}

// Remote finds results in caches elsewhere, which know vertices by keys of their own. It is asked when the cache has nothing.
type Remote[R Result] interface {
	// Token returns what stands for the content of input i in v's key, if such a cache knows v by how that input is made: then
	// the input need not be there. An empty digest stands for how it is made.
	Token(ctx context.Context, v *graph.Vertex, i int) (Claim, bool)
	// Find returns the wanted outputs of a vertex. Others are the zero R. With more inputs at hand (see Build.At) it may find
	// more: then it is asked again, and retry is true.
	Find(ctx context.Context, v *graph.Vertex, wanted []int) (found *Found[R], retry bool)
	// Has reports whether Find would find an output, without bringing it here.
	Has(ctx context.Context, e graph.Edge) bool
	// Origins returns the names of the caches whose earlier results this build may use.
	Origins(ctx context.Context) []string
}

// Claim is what a cache says of the content of an input. Nobody has seen the input.
type Claim struct {
	Content graph.Digest
	Origin  string // the cache; "" = one that the operator trusts
}

// Found is a result from elsewhere.
type Found[R Result] struct {
	Outputs []R
	Created time.Time
	Origin  string // the cache; "" = one that the operator trusts
}

// Options bound a solver.
type Options struct {
	Parallel int // steps at once; 0 = 4. Clients share them: see slots
}

// Solver runs the vertices of many builds.
type Solver[R Result, E any] struct {
	runner Runner[R, E]
	cache  Cache[R]
	slots  *slots
	builds atomic.Int64

	mu      sync.Mutex
	flights map[string]*flight[R, E]
	live    map[*Build[R, E]]struct{}
}

// New returns a solver.
func New[R Result, E any](r Runner[R, E], c Cache[R], o Options) *Solver[R, E] {
	if o.Parallel <= 0 {
		o.Parallel = 4
	}
	return &Solver[R, E]{
		runner: r, cache: c, slots: newSlots(o.Parallel),
		flights: map[string]*flight[R, E]{}, live: map[*Build[R, E]]struct{}{},
	}
}

// shared counts the users of a vertex's outputs.
type shared[R Result] struct {
	outs    []R
	origins []string // see OriginKey
	n       atomic.Int32
}

func newShared[R Result](outs []R, origins []string) *shared[R] {
	s := &shared[R]{outs: outs, origins: origins}
	s.n.Store(1)
	return s
}

func (s *shared[R]) retain() *shared[R] {
	s.n.Add(1)
	return s
}

func (s *shared[R]) release() {
	if s.n.Add(-1) == 0 {
		for _, r := range s.outs {
			if !absent(r) {
				r.Release()
			}
		}
	}
}
