package engine

import (
	"context"
	"strings"
	"sync"

	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"golang.org/x/sync/errgroup"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/policy"
	"github.com/strata-build/strata/tree"
)

// SourcePolicy looks at the sources of a build before they are used. It returns the source, another one to use instead, or an
// error if there must be none.
type SourcePolicy interface {
	Source(ctx context.Context, op graph.Op, p graph.Platform) (graph.Op, error)
}

// readPolicy makes a policy of files that were read. None is nil.
func readPolicy(files []string) (SourcePolicy, error) {
	var all []*spb.Policy
	for _, f := range files {
		p, err := policy.Read([]byte(f))
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	p, err := policy.New(policy.Options{}, all...)
	if err != nil || p == nil {
		return nil, err
	}
	return p, nil
}

// policed are the vertices that the policy of a build has looked at, and what became of them.
type policed struct {
	mu   sync.Mutex
	made map[*graph.Vertex]*graph.Vertex
}

// trees solves edges, after the policy has looked at their sources. All that is solved comes by here.
func (b *build) trees(ctx context.Context, edges ...graph.Edge) ([]tree.Tree, error) {
	edges, err := b.police(ctx, b.policy, edges)
	if err != nil {
		return nil, err
	}
	return b.work.Solve(edges...)
}

// police returns the edges of the graph that the policy makes of one.
func (b *build) police(ctx context.Context, by SourcePolicy, edges []graph.Edge) ([]graph.Edge, error) {
	if by == nil {
		return edges, nil
	}
	ops, err := b.askPolicy(ctx, by, edges)
	if err != nil {
		return nil, err
	}
	b.policed.mu.Lock()
	defer b.policed.mu.Unlock()
	r := replacer{made: b.policed.made, op: func(v *graph.Vertex) graph.Op {
		if op := ops[v]; op != nil {
			return op
		}
		return v.Op
	}}
	out := make([]graph.Edge, len(edges))
	for i, e := range edges {
		out[i] = r.edge(e)
	}
	graph.Walk(out, func(v *graph.Vertex) { b.policed.made[v] = v })
	return out, nil
}

// askPolicy asks for all sources that were not asked for yet, at the same time: an answer may need somebody's time.
func (b *build) askPolicy(ctx context.Context, by SourcePolicy, edges []graph.Edge) (map[*graph.Vertex]graph.Op, error) {
	var todo []*graph.Vertex
	b.policed.mu.Lock()
	if b.policed.made == nil {
		b.policed.made = map[*graph.Vertex]*graph.Vertex{}
	}
	graph.Walk(edges, func(v *graph.Vertex) {
		if b.policed.made[v] == nil && strings.HasPrefix(v.Op.Kind(), "source.") {
			todo = append(todo, v)
		}
	})
	b.policed.mu.Unlock()
	answers := make([]graph.Op, len(todo))
	g, ctx := errgroup.WithContext(ctx)
	for i, v := range todo {
		g.Go(func() (err error) {
			answers[i], err = by.Source(ctx, v.Op, v.Platform)
			return diag.At(err, v.At...)
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	ops := make(map[*graph.Vertex]graph.Op, len(todo))
	for i, v := range todo {
		ops[v] = answers[i]
	}
	return ops, nil
}

// unseen is an error for a source that came to be solved past the policy: it fails rather than being used.
func (b *build) unseen(v *graph.Vertex) error {
	if b.policy == nil || !strings.HasPrefix(v.Op.Kind(), "source.") {
		return nil
	}
	b.policed.mu.Lock()
	defer b.policed.mu.Unlock()
	if b.policed.made[v] != nil {
		return nil
	}
	return diag.Errorf(diag.Internal, "the source policy was not asked about %s", v.Name)
}

// policedPlan is a plan whose sources the policy lets pass.
func (b *build) policedPlan(ctx context.Context, plan *image.Plan) (*image.Plan, error) {
	if b.policy == nil {
		return plan, nil
	}
	out := *plan
	out.Targets = append([]image.Target(nil), plan.Targets...)
	for i := range out.Targets {
		t := &out.Targets[i]
		roots := []graph.Edge{t.Root}
		for _, a := range t.Attestations {
			roots = append(roots, a.Root)
		}
		roots, err := b.police(ctx, b.policy, roots)
		if err != nil {
			return nil, err
		}
		t.Root = roots[0]
		t.Attestations = append(t.Attestations[:0:0], t.Attestations...)
		for k := range t.Attestations {
			t.Attestations[k].Root = roots[k+1]
		}
	}
	return &out, nil
}

// Police looks at the sources of a graph, with a policy of its own where the graph has one (nil = the build's), and returns what
// is to be solved instead.
func (j *Job) Police(ctx context.Context, by SourcePolicy, e graph.Edge) (graph.Edge, error) {
	if by == nil {
		by = j.b.policy
	}
	out, err := j.b.police(ctx, by, []graph.Edge{e})
	if err != nil {
		return graph.Edge{}, err
	}
	return out[0], nil
}

// source is one source that is resolved without being built.
func (b *build) source(ctx context.Context, op graph.Op, p graph.Platform) (graph.Op, error) {
	if b.policy == nil {
		return op, nil
	}
	op, err := b.policy.Source(ctx, op, p)
	if err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "could not resolve image due to policy: %w", err)
	}
	return op, nil
}
