package buildkit

import (
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/llb"
	"github.com/strata-build/strata/policy"
	"github.com/strata-build/strata/provenance"
	"github.com/strata-build/strata/session/remote"
)

// bridge is a build as a frontend sees it, wherever the frontend runs.
type bridge struct {
	s       *Server
	of      *tenant
	ctx     context.Context // of what the frontend makes: it ends with the bridge
	cancel  context.CancelFunc
	job     *engine.Job
	journal listener
	session *remote.Session           // nil = no client
	inputs  map[string]*pb.Definition // of the frontend
	policy  *policy.Policy            // of sources; nil = all may be used
	root    *provenance.Request       // what the user asked for
	top     *scope                    // of what the client's own code does
	depth   int                       // how many frontends call each other down to this one
	asked   *atomic.Int64             // requests to frontends in the whole build
	proxied bool                      // steps have a proxy alone

	mu       sync.Mutex
	refs     map[string]*ref
	vertices map[graph.Digest]graph.Digest // what clients call a vertex -> its ID
	left     map[string]engine.Tree        // what failed steps had and have left, for containers
	boxes    map[string]*box               // containers, by their ids
	making   sync.WaitGroup                // containers that are being made
	graph    int64                         // bytes of the definitions that count for the client
	ended    bool
	forget   []func() // ends what is remembered of the references
	returned chan returned
}

// ref is a tree that the build may make: it is made when somebody reads or exports it.
type ref struct {
	id     string
	target image.Target // Root; for what a Dockerfile makes, also the image around it
	scope  *scope       // that it was made in; nil = the top one
}

// listener is told what a build has to say: in the engine's terms, or in BuildKit's.
type listener interface {
	take(event.Event)
	say(*control.StatusResponse)
}

type returned struct {
	res *result
	err error
}

// maxRefs bounds how many references one build may hold.
const maxRefs = 100_000

// newBridge makes the bridge of a build, or, with the context of a request to a frontend, that of a frontend which runs elsewhere.
func newBridge(ctx context.Context, s *Server, job *engine.Job, j listener, sess *remote.Session) *bridge {
	b := &bridge{
		s: s, of: s.of(ctx), job: job, journal: j, session: sess, top: scopeOf(ctx), refs: map[string]*ref{}, vertices: map[graph.Digest]graph.Digest{},
		left: map[string]engine.Tree{}, boxes: map[string]*box{}, returned: make(chan returned, 1), asked: &atomic.Int64{},
	}
	b.ctx, b.cancel = context.WithCancel(ctx)
	return b
}

// who is the client that the bridge works for.
func (b *bridge) who() string { return peerOf(b.ctx).Identity }

// end refuses further calls and removes the containers.
func (b *bridge) end() {
	b.mu.Lock()
	b.ended = true
	for _, f := range b.forget {
		f()
	}
	b.forget = nil
	graph := b.graph
	b.graph = 0
	b.mu.Unlock()
	_ = b.s.quota.take(b.who(), share{graph: -graph})
	b.cancel()
	b.making.Wait()
	b.mu.Lock()
	boxes := slices.Collect(maps.Keys(b.boxes))
	b.mu.Unlock()
	for _, id := range boxes {
		if err := b.release(id); err != nil && diag.KindOf(err) != diag.Canceled {
			b.s.opt.Log.Warn("a container of a client", "error", err)
		}
	}
}

// add makes a reference.
func (b *bridge) add(t image.Target) (*ref, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return nil, errEnded
	}
	if len(b.refs) >= maxRefs {
		return nil, diag.Errorf(diag.Exhausted, "the build holds more than %d references", maxRefs)
	}
	r := &ref{id: rand.Text(), target: t}
	b.refs[r.id] = r
	return r, nil
}

// get finds a reference of this build. The empty name is the empty tree.
func (b *bridge) get(id string) (*ref, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return nil, errEnded
	}
	if id == "" {
		return &ref{}, nil
	}
	if r := b.refs[id]; r != nil {
		return r, nil
	}
	return nil, diag.Errorf(diag.NotFound, "no such ref: %.80q", id)
}

// edge decodes a definition to its first result, with the sources that a policy lets pass.
func (b *bridge) edge(ctx context.Context, def *pb.Definition, p *policy.Policy) (graph.Edge, error) {
	e, err := b.plainEdge(def)
	if err != nil {
		return graph.Edge{}, err
	}
	return b.job.Police(ctx, asPolicy(p), e)
}

// plainEdge decodes a definition. The build's own policy looks at it when it is solved.
func (b *bridge) plainEdge(def *pb.Definition) (graph.Edge, error) {
	if err := b.charge(def); err != nil {
		return graph.Edge{}, err
	}
	roots, meta, err := llb.Decode(def, llb.Options{Platform: engine.Native(), Proxied: b.proxied})
	if err != nil {
		return graph.Edge{}, err
	}
	b.mu.Lock()
	for v, d := range meta.Digests {
		b.vertices[d] = v.ID
	}
	b.mu.Unlock()
	if len(roots) == 0 {
		return graph.Edge{}, nil
	}
	return roots[0], nil
}

// charge counts a definition for the client until the build ends: its graph is kept as long.
func (b *bridge) charge(def *pb.Definition) error {
	return b.chargeBytes(int64(def.SizeVT()))
}

func (b *bridge) chargeBytes(n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return errEnded
	}
	if err := b.s.quota.take(b.who(), share{graph: n}); err != nil {
		return err
	}
	b.graph += n
	return nil
}

// definition makes a result of a definition.
func (b *bridge) definition(ctx context.Context, def *pb.Definition, p *policy.Policy) (*result, error) {
	e, err := b.edge(ctx, def, p)
	if err != nil {
		return nil, err
	}
	r, err := b.add(image.Target{Root: e})
	if err != nil {
		return nil, err
	}
	return &result{single: r, meta: map[string][]byte{}}, nil
}

// solve answers a frontend's Solve.
func (b *bridge) solve(ctx context.Context, req *gateway.SolveRequest) (*result, error) {
	p, err := b.withPolicies(req.SourcePolicies)
	if err != nil {
		return nil, err
	}
	if err := b.importCaches(gatewayCaches(req)...); err != nil {
		return nil, err
	}
	var res *result
	switch {
	case req.Definition != nil && len(req.Definition.Def) > 0 && req.Frontend != "":
		return nil, diag.Errorf(diag.Invalid, "cannot solve with both Definition and Frontend specified")
	case req.Frontend != "":
		res, err = b.frontend(ctx, req.Frontend, req.FrontendOpt, req.FrontendInputs)
	case req.Definition != nil:
		res, err = b.definition(ctx, req.Definition, p)
	default:
		return &result{meta: map[string][]byte{}}, nil
	}
	if err != nil {
		return nil, err
	}
	b.scope(ctx).keep(res)
	if !req.Evaluate {
		return res, nil
	}
	var edges []graph.Edge
	for _, r := range res.all() {
		edges = append(edges, r.target.Root)
	}
	return res, b.job.Solve(ctx, edges...)
}

// maxAsked bounds the requests to frontends in one build: what each of them has made and read is remembered until its end.
const maxAsked = 10_000

// frontend runs a frontend: this program's, or one in an image.
func (b *bridge) frontend(ctx context.Context, name string, attrs map[string]string, inputs map[string]*pb.Definition) (*result, error) {
	if b.asked.Add(1) > maxAsked {
		return nil, diag.Errorf(diag.Exhausted, "the build has asked frontends more than %d times", maxAsked).
			WithHint("check that a frontend does not call itself without end")
	}
	ctx, sc := b.enter(ctx, name, attrs, inputs)
	res, err := b.run(name)(ctx, attrs, inputs)
	if err == nil {
		sc.keep(res)
	}
	return res, err
}

// run finds the function that runs a frontend. One that there is not, or that is disabled, fails.
func (b *bridge) run(name string) func(context.Context, map[string]string, map[string]*pb.Definition) (*result, error) {
	switch off := &b.s.opt.Frontends; {
	case name == dockerfileFrontend && !off.NoDockerfile:
		return b.dockerfile
	case name == gatewayFrontend && !off.NoGateway:
		return b.inImage
	}
	return func(context.Context, map[string]string, map[string]*pb.Definition) (*result, error) {
		return nil, diag.Errorf(diag.NotFound, "failed to find frontend: %.80q", name)
	}
}

// evaluate makes a reference now.
func (b *bridge) evaluate(ctx context.Context, id string) error {
	r, err := b.get(id)
	if err != nil {
		return err
	}
	return b.job.Solve(ctx, r.target.Root)
}

// finish takes the result of a frontend that runs elsewhere: only the first counts.
func (b *bridge) finish(res *gateway.Result, failure *spb.Status) error {
	var out returned
	if failure != nil {
		out.err = status.ErrorProto(failure)
	} else {
		out.res, out.err = b.decode(res)
	}
	select {
	case b.returned <- out:
		return nil
	default:
		return diag.Errorf(diag.Conflict, "the build has returned already")
	}
}

// wait waits for finish.
func (b *bridge) wait(ctx context.Context) (*result, error) {
	select {
	case r := <-b.returned:
		return r.res, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
