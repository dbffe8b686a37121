package engine

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/export"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/provenance"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/solve"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// Job is a build under way, for frontends that are not known beforehand: graphs are solved in it, what they make is read, and
// in the end exported. Everything that is solved in one job shares its directories of the client and runs once. Its methods
// may be called at the same time; none after Close.
//
//	j := e.NewJob(ctx, engine.JobOptions{Session: s, Sink: sink})
//	defer j.Close()
//	plan, err := j.Plan(ctx, dockerfile.Request{}, nil)
//	meta, err := j.Export(ctx, plan, outs, engine.ExportOptions{})
type Job struct{ b *build }

// JobOptions are what a build may use.
type JobOptions struct {
	Client  Client
	Session session.Session // nil = no client
	Sink    event.Sink
	Allow   []string     // network.host, security.insecure, device
	Policy  SourcePolicy // nil = every source may be used
	Proxied bool         // the build's steps have a proxy alone: what they fetch is recorded
	// Charge, if not nil, counts the bytes of a nested build's definition, which stays in memory until the job is closed. Its error
	// fails the nested build.
	Charge func(bytes int64) error
	// KeepFailed keeps what steps have written that fail, for Job.Failure.
	KeepFailed bool
}

// Files is the picture of a tree's files, and FileEntry one of them.
type (
	Files     = tree.Files
	FileEntry = tree.Entry
)

// ContentError is why a step has no key: what it reads of an input is not there.
type ContentError = solve.ContentError

// Input is a tree that a client passes to a Dockerfile under a name.
type Input struct {
	Edge   graph.Edge
	Config *image.Config // if it is an image
}

// Root is the state root.
func (e *Engine) Root() string { return e.store.Root() }

// OnDiskFailure registers a function that drops what is kept below the state root and may be damaged after a failed sync.
func (e *Engine) OnDiskFailure(f func()) { e.store.OnFailure(f) }

// OpenBlob reads a blob of the store, such as a manifest.
func (e *Engine) OpenBlob(ctx context.Context, d graph.Digest) (*store.Blob, error) {
	return e.store.OpenBlob(ctx, d)
}

// NewJob starts a build. It ends with ctx or with Close.
func (e *Engine) NewJob(ctx context.Context, opt JobOptions) *Job {
	b := e.newBuild(ctx, opt)
	b.policy, b.keepFailed = opt.Policy, opt.KeepFailed
	b.proxied, b.charge = opt.Proxied, opt.Charge
	return &Job{b: b}
}

// Close waits for what is still under way and gives up the results.
func (j *Job) Close() { j.b.close() }

// planner is a job as a Dockerfile sees it. It remembers what was read.
type planner struct {
	*build
	inputs map[string]Input
	mu     sync.Mutex
	read   []graph.Edge
}

func (p *planner) note(e graph.Edge) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.read = append(p.read, e)
}

// Image implements dockerfile.Resolver.
func (p *planner) Image(ctx context.Context, ref string, pf graph.Platform, mode graph.ResolveMode) (dockerfile.Resolved, error) {
	r, err := p.build.Image(ctx, ref, pf, mode)
	if err == nil {
		p.note(graph.Edge{V: graph.New(&graph.Image{Ref: ref, Mode: mode}, nil, graph.On(pf))})
	}
	return r, err
}

// ReadFile implements dockerfile.Resolver.
func (p *planner) ReadFile(ctx context.Context, from graph.Edge, path string, limit int64) ([]byte, error) {
	p.note(from)
	return p.build.ReadFile(ctx, from, path, limit)
}

// Input implements dockerfile.Resolver.
func (p *planner) Input(ctx context.Context, name string) (graph.Edge, *image.Config, error) {
	if in, ok := p.inputs[name]; ok {
		return in.Edge, in.Config, nil
	}
	return p.build.Input(ctx, name)
}

// Plan reads a Dockerfile, unless the request has it, and makes a graph of it. Warnings go to the job's sink too.
func (j *Job) Plan(ctx context.Context, req dockerfile.Request, inputs map[string]Input) (*image.Plan, error) {
	p := &planner{build: j.b, inputs: inputs}
	req, err := dockerfile.ReadInputs(ctx, req, p)
	if err != nil {
		return nil, err
	}
	plan, err := dockerfile.Plan(ctx, req, p)
	if plan != nil {
		for _, w := range plan.Warnings {
			j.b.sink.Emit(event.Event{Kind: event.Warn, Warning: &w})
		}
	}
	if err != nil {
		return nil, err
	}
	j.b.narrow(plan)
	plan.Read = p.read
	return plan, nil
}

// Context makes the tree of a named context; nil = the request has none of the name.
func (j *Job) Context(ctx context.Context, req dockerfile.Request, inputs map[string]Input, name string) (*dockerfile.Found, error) {
	return dockerfile.NamedContext(ctx, req, &planner{build: j.b, inputs: inputs}, name)
}

// Outline, Targets and Check answer questions about a Dockerfile instead of building it.
func (j *Job) Outline(ctx context.Context, req dockerfile.Request, inputs map[string]Input) (*dockerfile.Outline, error) {
	p := &planner{build: j.b, inputs: inputs}
	req, err := dockerfile.ReadInputs(ctx, req, p)
	if err != nil {
		return nil, err
	}
	return dockerfile.NewOutline(ctx, req, p)
}

// Targets lists the stages. See Outline.
func (j *Job) Targets(ctx context.Context, req dockerfile.Request, inputs map[string]Input) ([]dockerfile.TargetInfo, *diag.Source, error) {
	req, err := dockerfile.ReadInputs(ctx, req, &planner{build: j.b, inputs: inputs})
	if err != nil {
		return nil, nil, err
	}
	ts, err := dockerfile.Targets(req.Source)
	return ts, req.Source, err
}

// Check returns the warnings, and the error if there is one. See Outline.
func (j *Job) Check(ctx context.Context, req dockerfile.Request, inputs map[string]Input) (*dockerfile.Checked, error) {
	p := &planner{build: j.b, inputs: inputs}
	req, err := dockerfile.ReadInputs(ctx, req, p)
	if err != nil {
		return nil, err
	}
	return dockerfile.Check(ctx, req, p)
}

// Solve makes trees and keeps them until the job is closed.
func (j *Job) Solve(ctx context.Context, edges ...graph.Edge) error {
	_, err := j.b.trees(ctx, edges...)
	return err
}

// Files solves an edge and returns the picture of its files.
func (j *Job) Files(ctx context.Context, e graph.Edge) (*tree.Files, error) {
	trees, err := j.b.trees(ctx, e)
	if err != nil {
		return nil, err
	}
	t := trees[0]
	if t == nil {
		t = tree.NewStack(j.b.e.store, nil)
	}
	f, ok := t.(filer)
	if !ok {
		return nil, diag.Errorf(diag.Internal, "the files of %T cannot be read", t)
	}
	return f.Files()
}

// FullReference is an image's name, as short as the user likes, in full.
func FullReference(ref string) (string, error) {
	full, err := registry.ParseRef(ref)
	if err != nil {
		return "", err
	}
	return full.String(), nil
}

// Outputs are exporters that are known to make sense.
type Outputs struct{ x []export.Exporter }

// NewOutputs checks what is to be exported before anything is built.
func NewOutputs(outs []Output, epoch *time.Time) (Outputs, error) {
	x, err := exporters(&Request{Outputs: outs, Epoch: epoch})
	return Outputs{x}, err
}

// CompatibilityError says that outputs of a version that a client asks for do not have a feature.
type CompatibilityError = export.CompatibilityError

// ExportOptions say how targets become one result.
type ExportOptions struct {
	Multi bool   // an index, or a directory per platform, is wanted even for one target
	Name  string // the frontend's name for the image, for name=*

	Metadata map[string]string // of the frontend, for the outputs: annotations

	Caches []*CacheExport // to be written, too

	Provenance *provenance.Options // nil = none
	Told       []Told              // by target; may be shorter
	SBOM       *SBOM               // nil = none

	Compatibility int // the version of BuildKit's outputs that is asked for; 0 = the current one
}

// Export solves the targets of a plan and exports them as one result. What exporters will need is made as early as possible.
// It returns what each of them says, under BuildKit's keys.
func (j *Job) Export(ctx context.Context, plan *image.Plan, outs Outputs, opt ExportOptions) (_ []map[string]string, err error) {
	ctx, end := j.b.during(ctx)
	defer func() {
		if cause := context.Cause(j.b.ctx); err != nil && cause != nil && !errors.Is(cause, context.Canceled) {
			err = cause
		}
		end()
	}()
	if plan, err = j.b.scan(ctx, plan, opt.SBOM); err != nil {
		return nil, err
	}
	if plan, err = j.b.policedPlan(ctx, plan); err != nil {
		return nil, err
	}
	if j.b.caches.matcher != nil && !slices.ContainsFunc(outs.x, func(x export.Exporter) bool { return !export.Idle(x) }) {
		return j.reach(ctx, plan, outs, opt.Caches)
	}
	stop := j.b.packEarly(ctx, plan, outs.x, opt.Caches)
	defer stop()
	set, err := j.b.solve(ctx, plan)
	if err != nil {
		return nil, err
	}
	if opt.Provenance != nil {
		if err := j.b.addProvenance(ctx, set, plan, &opt); err != nil {
			return nil, err
		}
	}
	if err := set.Annotate(opt.Metadata); err != nil {
		return nil, err
	}
	set.Multi, set.Name = set.Multi || opt.Multi, opt.Name
	env := &export.Env{Store: j.b.e.store, Packer: j.b.e.packer, Registry: j.b.web, Session: j.b.session, Client: j.b.client, Events: j.b.sink, Compatibility: opt.Compatibility}
	j.b.caches.solved()
	if slices.ContainsFunc(opt.Caches, func(x *CacheExport) bool { return x.Inline }) {
		j.b.caches.inline(set, plan)
	}
	var receipts []*export.Receipt
	var cached map[string]string
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		receipts, err = export.Run(gctx, env, set, outs.x)
		return err
	})
	g.Go(func() (err error) {
		cached, err = j.b.caches.export(gctx, plan, opt.Caches)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	said := make([]map[string]string, len(receipts))
	for i, r := range receipts {
		said[i] = r.Metadata
	}
	if len(cached) > 0 {
		said = append(said, cached)
	}
	return said, nil
}

// reach is Export where nobody reads the result: what caches elsewhere have of it stays there.
func (j *Job) reach(ctx context.Context, plan *image.Plan, outs Outputs, to []*CacheExport) ([]map[string]string, error) {
	var edges []graph.Edge
	for _, t := range plan.Targets {
		edges = append(edges, t.Root)
	}
	if err := j.b.work.Reach(edges...); err != nil {
		return nil, err
	}
	j.b.caches.solved()
	cached, err := j.b.caches.export(ctx, plan, to)
	said := make([]map[string]string, len(outs.x), len(outs.x)+1)
	for i := range said {
		said[i] = map[string]string{}
	}
	return append(said, cached), err
}

// localDir brings a directory of the client here, and says what of it the tree is.
func (b *build) localDir(ctx context.Context, o *graph.Local, progress func(int64, bool)) (session.Dir, *graph.Local, error) {
	s, ok := b.session.(session.Syncer)
	if !ok {
		dir, err := b.session.Dir(ctx, o.Name)
		return dir, o, err
	}
	dir, err := s.Sync(ctx, o, progress)
	return dir, &graph.Local{Name: o.Name}, err // it holds what was selected, and nothing else
}
