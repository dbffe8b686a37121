package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/export"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/op"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/solve"
	"github.com/strata-build/strata/source"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// build is the environment of one build: what its steps may use.
type build struct {
	e       *Engine
	fail    context.CancelCauseFunc // ends the build
	ctx     context.Context         // of the build: work that is shared has another one, and is part of this one's trace
	session session.Session         // nil = no client
	sink    event.Sink              // of the build: the user's, and who watches
	user    event.Sink
	request Request // what was asked for, if it was a whole build
	client  Client
	allow   []string
	web     *registry.Client // with the session's credentials
	hold    *store.Hold
	epoch   uint64 // of the store, when the build began
	images  *source.Images
	git     *source.Git
	http    *source.HTTP
	work    *solve.Build[tree.Tree, *build]
	proxied bool                  // steps have a proxy alone
	fetched fetched               // what it has recorded
	made    atomic.Pointer[early] // who is told of steps that ran
	renewed sync.Map              // the keys of cache mounts that have begun anew
	repeats bool                  // the build repeats another one, and leaves its cache mounts alone
	caches  *caches               // elsewhere
	policy  SourcePolicy          // nil = every source may be used
	policed policed
	nests   nestedBuilds
	charge  func(bytes int64) error // for nested builds and Dockerfiles; nil = nobody counts them

	keepFailed bool // steps that fail leave what they have written until the build ends
	mu         sync.Mutex
	kept       []*op.Remains
	id         string // unlike any other build's
	started    time.Time
}

// newBuild starts a build. close ends it.
func (e *Engine) newBuild(ctx context.Context, opt JobOptions) *build {
	s, sink := opt.Session, opt.Sink
	ctx, fail := context.WithCancelCause(store.WithOwner(ctx, opt.Client.Tenant))
	b := &build{
		e: e, ctx: ctx, fail: fail, client: opt.Client, session: s, user: sink, allow: opt.Allow, hold: e.store.Hold(), epoch: e.store.Epoch(),
		web: e.web,
		id:  rand.Text(), started: time.Now(),
	}
	b.sink = func(ev event.Event) {
		if w := b.made.Load(); w != nil {
			w.done(ev)
		}
		sink.Emit(ev)
	}
	if s != nil {
		b.web = e.web.For(s.Credential)
	}
	env := source.Env{Store: e.store, Hold: b.hold, Registry: b.web, Session: s, Progress: b.sink, Agent: e.opt.Agent, AllowMetadata: e.opt.AllowMetadata, Client: opt.Client}
	b.images = e.puller.Images(env)
	b.git = e.puller.NewGit(env)
	b.http = source.NewHTTP(env)
	b.work = e.solver.Build(ctx, b, solve.BuildOptions{Tenant: opt.Client.Tenant, Client: opt.Client.Name, Sink: b.sink})
	b.caches = newCaches(ctx, b)
	e.listen(b)
	e.watchSpace(opt.Client.Tenant)
	return b
}

func (b *build) close() {
	b.e.unlisten(b)
	b.work.Close()
	b.caches.close()
	for _, r := range b.kept {
		r.Release()
	}
	b.images.Close()
	b.hold.Release()
	b.fail(context.Canceled)
}

// keep takes over what is left of a step.
func (b *build) keep(r *op.Remains) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept = append(b.kept, r)
}

// renews says which cache mounts of a step begin anew: those of a step that runs without the cache, once in a build, since its
// steps may share a mount.
func (b *build) renews(v *graph.Vertex) func(key string) bool {
	if !v.NoCache || b.repeats {
		return nil
	}
	return func(key string) bool {
		_, done := b.renewed.LoadOrStore(key, true)
		return !done
	}
}

// Build builds what a Dockerfile says and exports it.
func (e *Engine) Build(ctx context.Context, req Request, s session.Session, sink event.Sink) (_ *Response, err error) {
	outs, err := exporters(&req)
	if err != nil {
		return nil, err
	}
	ctx, end := e.opt.Tracer.Begin(ctx, "build")
	defer func() { end(err) }()
	allowed, err := readPolicy(req.SourcePolicies)
	if err != nil {
		return nil, err
	}
	j := e.NewJob(ctx, JobOptions{Client: owner(), Session: s, Sink: sink, Allow: req.Allow, Policy: allowed})
	defer func() { j.Close() }()
	j.b.request = req
	to, err := j.CacheExports(req.CacheTo)
	if err == nil {
		err = j.ImportCaches(req.CacheFrom...)
	}
	if err != nil {
		return nil, err
	}
	resp, plan, opt, err := e.made(ctx, &j, &req)
	if f, ok := errors.AsType[*dockerfile.ForeignSyntax](err); ok && e.opt.Frontend != nil {
		resp, plan, opt, err = j.foreign(ctx, &req, f)
	}
	if err != nil || resp != nil {
		return resp, err
	}
	opt.Caches = to
	said, err := j.Export(ctx, plan, Outputs{outs}, opt)
	if err != nil {
		return nil, err
	}
	resp = response(said, len(plan.Targets))
	for k, v := range opt.Metadata {
		if strings.HasPrefix(k, "frontend.") || strings.HasPrefix(k, "result.") {
			resp.Metadata[k] = v
		}
	}
	return resp, nil
}

// made is what a Dockerfile of the built-in language makes: the answer to a question, or a plan. The job may become another one.
func (e *Engine) made(ctx context.Context, j **Job, req *Request) (_ *Response, plan *image.Plan, opt ExportOptions, err error) {
	b := (*j).b
	dreq := b.dockerfile(req)
	if req.question() != "" {
		if dreq, err = dockerfile.ReadInputs(ctx, dreq, b); err != nil {
			return nil, nil, opt, err
		}
		resp, err := b.call(ctx, req, dreq)
		return resp, nil, opt, err
	}
	if len(req.NoCacheFilter) > 0 {
		if dreq, err = dockerfile.ReadInputs(ctx, dreq, b); err != nil {
			return nil, nil, opt, err
		}
		if err := b.checkStages(dreq); err != nil {
			return nil, nil, opt, err
		}
	}
	if *j, plan, err = e.planSealed(ctx, *j, dreq); err != nil {
		return nil, nil, opt, err
	}
	if req.VerifyOutput {
		if err := e.verifyOutput(ctx, (*j).b, dreq, plan); err != nil {
			return nil, nil, opt, err
		}
	}
	return nil, plan, req.attesting(plan), nil
}

// checkStages refuses names of stages that are to run and are not there: the stage that was meant would come from the cache.
func (b *build) checkStages(d dockerfile.Request) error {
	stages, err := dockerfile.Targets(d.Source)
	if err != nil {
		return nil // reading it says more of what is wrong
	}
	var names []string
	for _, s := range stages {
		if s.Name != "" {
			names = append(names, s.Name)
		}
	}
	for _, n := range d.NoCacheFilter {
		if slices.ContainsFunc(names, func(s string) bool { return strings.EqualFold(s, n) }) {
			continue
		}
		err := diag.Errorf(diag.NotFound, "--no-cache-filter %s: no stage has this name", n)
		if near := diag.Suggest(n, names); near != "" {
			return err.WithHint("did you mean %s?", near)
		}
		if len(names) == 0 {
			return err.WithHint("no stage has a name: write FROM IMAGE AS NAME, or use --no-cache")
		}
		return err.WithHint("the stages with a name are: %s", strings.Join(names, ", "))
	}
	return nil
}

// dockerfile is the request as the frontend takes it.
func (b *build) dockerfile(req *Request) dockerfile.Request {
	d := dockerfile.Request{
		Filename: req.Dockerfile, Target: req.Target, BuildArgs: req.BuildArgs, Labels: req.Labels, Platforms: req.Platforms,
		NoCache: req.NoCache, NoCacheFilter: req.NoCacheFilter, ContextURL: req.Context, LocalDocker: req.LocalFile,
		Contexts: req.BuildContexts, Network: req.Network, ExtraHosts: req.ExtraHosts, Limits: req.Limits, Epoch: req.Epoch,
		Squash: req.Squash, OutputLayers: req.OutputLayers, Relayer: req.Relayer,
	}
	if req.Pull {
		d.ResolveMode = graph.ResolvePull
	}
	return d
}

// solve makes the targets of a plan, and what their attestations are read from.
func (b *build) solve(ctx context.Context, plan *image.Plan) (*export.Set, error) {
	var edges []graph.Edge
	for _, t := range plan.Targets {
		edges = append(edges, t.Root)
		for _, a := range t.Attestations {
			edges = append(edges, a.Root)
		}
	}
	trees, err := b.trees(ctx, edges...)
	if err != nil {
		return nil, err
	}
	next := func() tree.Tree {
		t := trees[0]
		trees = trees[1:]
		if t == nil {
			t = tree.NewStack(b.e.store, nil)
		}
		return t
	}
	set := &export.Set{Multi: len(plan.Targets) > 1}
	for _, t := range plan.Targets {
		im := export.Image{
			ID: t.ID, Platform: t.Platform, Config: t.Config, Tree: next(), Base: t.Base, Epoch: t.Epoch, Annotations: t.Annotations,
		}
		b.base(ctx, &im, t.Root)
		for _, a := range t.Attestations {
			im.Attestation = append(im.Attestation, export.Attestation{Attestation: a, Tree: next()})
		}
		set.Images = append(set.Images, im)
	}
	return set, nil
}

// base says of an image which of its layers are its base image's, and what that is.
func (b *build) base(ctx context.Context, im *export.Image, root graph.Edge) {
	img := b.baseImage(ctx, root)
	if img == nil {
		im.Fetch = b.fromLayout(root)
		return
	}
	im.Fetch = b.images.Opener(img)
	im.BaseLayers = len(img.Config.RootFS.DiffIDs)
	im.BaseHistory = img.Config.History
	im.BaseBlobs = b.images.LayerBlobs(ctx, img)
	if im.Base == nil {
		im.Base = &image.Base{Name: img.Name, Digest: img.Digest}
	}
}

// baseImage is the image that a result is stacked on, nil if there is none.
func (b *build) baseImage(ctx context.Context, root graph.Edge) *source.Image {
	v := rootSource(root)
	if v == nil {
		return nil
	}
	o, ok := v.Op.(*graph.Image)
	if !ok {
		return nil
	}
	img, err := b.images.Resolve(ctx, o, v.Platform)
	if err != nil {
		return nil // it was resolved for the plan; if it is gone now, no layer is the base's for sure
	}
	return img
}

// fromLayout reads blobs of a base that is in a layout of the client; nil if it is not.
func (b *build) fromLayout(root graph.Edge) func(context.Context, image.Descriptor) (io.ReadCloser, error) {
	v := rootSource(root)
	if v == nil {
		return nil
	}
	o, ok := v.Op.(*graph.OCILayout)
	if !ok {
		return nil
	}
	return func(ctx context.Context, d image.Descriptor) (io.ReadCloser, error) {
		img, err := b.images.ResolveLayout(ctx, o, v.Platform)
		if err != nil {
			return nil, err
		}
		return b.images.Opener(img)(ctx, d)
	}
}

// exporters makes the exporters that a request asks for, before anything is built.
func exporters(req *Request) ([]export.Exporter, error) {
	var all []export.Exporter
	for _, o := range req.Outputs {
		attrs := map[string]string{}
		for k, v := range o.Attrs {
			attrs[k] = v
		}
		named := o.Type == "image" || o.Type == "registry" || o.Type == "oci" || o.Type == "docker"
		if named && attrs["name"] == "" && len(req.Tags) > 0 {
			attrs["name"] = strings.Join(req.Tags, ",")
		}
		if named {
			for _, a := range req.Annotations {
				if err := annotate(attrs, a); err != nil {
					return nil, err
				}
			}
		}
		if _, ok := attrs["source-date-epoch"]; !ok && req.Epoch != nil && o.Type != "cacheonly" {
			attrs["source-date-epoch"] = formatUnix(*req.Epoch)
		}
		x, err := export.New(export.Output{Type: o.Type, Attrs: attrs, Dest: o.Dest})
		if err != nil {
			return nil, err
		}
		all = append(all, x)
	}
	return all, nil
}

// annotate adds "[TYPE[,TYPE]:]NAME=VALUE", as --annotation has it, to an output's attributes.
func annotate(attrs map[string]string, a string) error {
	name, value, ok := strings.Cut(a, "=")
	if !ok || name == "" {
		return diag.Errorf(diag.Invalid, "annotation %q: it must be [TYPE:]NAME=VALUE", a)
	}
	types := []string{"manifest"}
	if t, rest, ok := strings.Cut(name, ":"); ok && !strings.Contains(t, ".") {
		types, name = strings.Split(t, ","), rest
	}
	for _, t := range types {
		t = strings.TrimSpace(t)
		if t == "manifest" {
			attrs["annotation."+name] = value
			continue
		}
		attrs["annotation-"+t+"."+name] = value
	}
	return nil
}

// response tells what was made of a number of targets. Of two values for one key the first output's stays, as a client that
// wrote one file would expect of the output it named first.
func response(said []map[string]string, targets int) *Response {
	meta := map[string]string{}
	for _, m := range slices.Backward(said) {
		maps.Copy(meta, m)
	}
	resp := &Response{Metadata: map[string]any{}}
	for k, v := range meta {
		resp.Metadata[k] = readable(k, v)
	}
	resp.ID = meta["containerimage.config.digest"]
	if targets > 1 || resp.ID == "" {
		resp.ID = meta["containerimage.digest"]
	}
	return resp
}

// allowed refuses what a step asks for and the user has not allowed.
func (b *build) allowed(n graph.Network, s graph.Security) error {
	refuse := func(what string) error {
		return diag.Errorf(diag.Denied, "entitlement %s is not allowed", what).WithHint("if you trust this build, add --allow %s", what)
	}
	if n.Direct() == graph.NetworkHost && !slices.Contains(b.allow, "network.host") {
		return refuse("network.host")
	}
	if s == graph.SecurityInsecure && !slices.Contains(b.allow, "security.insecure") {
		return refuse("security.insecure")
	}
	return nil
}

// listeners are the builds that are told what concerns all of them.
type listeners struct {
	mu  sync.Mutex
	all map[*build]bool
}

func (e *Engine) listen(b *build) {
	e.now.mu.Lock()
	defer e.now.mu.Unlock()
	if e.now.all == nil {
		e.now.all = map[*build]bool{}
	}
	e.now.all[b] = true
	e.idle.wake()
}

func (e *Engine) unlisten(b *build) {
	e.now.mu.Lock()
	defer e.now.mu.Unlock()
	delete(e.now.all, b)
	if len(e.now.all) == 0 {
		e.idle.rest(e.hashLayers)
	}
}

// tellAll sends a message to the user of every build.
func (e *Engine) tellAll(text string) {
	e.log.Warn(text)
	e.now.mu.Lock()
	defer e.now.mu.Unlock()
	for b := range e.now.all {
		b.sink.Emit(event.Event{Kind: event.Message, Text: text})
	}
}
