package dockerfile

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"golang.org/x/sync/errgroup"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile/lint"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// Plan makes the graph and the configuration of every platform that was asked for. Only the stages that the target
// needs are looked at. Errors are diag errors with the place in the Dockerfile; the plan that comes with one has nothing but
// the warnings of what was read until then.
func Plan(ctx context.Context, req Request, r Resolver) (*image.Plan, error) {
	sh, err := newShared(ctx, &req, r)
	if err != nil {
		return nil, err
	}
	platforms := req.Platforms
	if len(platforms) == 0 {
		platforms = []graph.Platform{req.BuildPlatform}
	}
	planners := make([]*planner, len(platforms))
	plan := &image.Plan{Targets: make([]image.Target, len(platforms))}
	g, ctx := errgroup.WithContext(ctx)
	for i, pf := range platforms {
		// Findings of the second platform would repeat those of the first.
		var l *lint.Linter
		if i == 0 {
			l = lint.New(sh.check)
		}
		p := sh.planner(pf, l)
		planners[i] = p
		g.Go(func() error {
			s, err := p.plan(ctx)
			if err == nil {
				err = p.lint.Err()
			}
			if err != nil {
				return err
			}
			plan.Targets[i] = p.finish(s)
			plan.Targets[i].Scan, err = p.scans(s)
			return err
		})
	}
	err = g.Wait()
	plan.Warnings = planners[0].lint.Warnings()
	if err != nil {
		plan.Targets = nil
		return plan, err
	}
	plan.Warnings = append(plan.Warnings, planners[0].doubts...)
	plan.Warnings = append(plan.Warnings, planners[0].unusedArgs()...)
	return plan, nil
}

// shared is what the platforms of a request have in common.
type shared struct {
	req     *Request
	r       Resolver
	main    func() (graph.Edge, error) // the build context, made when it is first used
	exclude []string                   // .dockerignore
	ignore  *patternmatcher.PatternMatcher
	check   lint.Config
	proxy   *graph.ProxyEnv
	multi   bool // show platforms in the names of steps
}

func newShared(ctx context.Context, req *Request, r Resolver) (*shared, error) {
	sh := &shared{req: req, r: r, proxy: proxyFromArgs(req.BuildArgs)}
	if err := sh.defaults(); err != nil {
		return nil, err
	}
	err := checkSyntax(req)
	if err != nil {
		return nil, err
	}
	if sh.check, err = checkConfig(req); err != nil {
		return nil, err
	}
	if req.Ignore != nil && !req.remote() {
		if sh.exclude, err = ignorefile.ReadAll(strings.NewReader(string(req.Ignore.Data))); err != nil {
			return nil, invalidf("failed parsing %s: %w", req.Ignore.Name, err)
		}
		if len(sh.exclude) > 0 {
			if sh.ignore, err = patternmatcher.New(sh.exclude); err != nil {
				return nil, ignoreError(req.Ignore, sh.exclude, err)
			}
		}
	}
	sh.main = sync.OnceValues(func() (graph.Edge, error) { return sh.mainContext(ctx) })
	return sh, nil
}

// ignoreError points at the line of an ignore file that is no pattern.
func ignoreError(src *diag.Source, patterns []string, err error) error {
	for _, p := range patterns {
		if _, one := patternmatcher.New([]string{p}); one == nil {
			continue
		}
		for i, line := range strings.Split(string(src.Data), "\n") {
			if col := strings.Index(line, strings.TrimPrefix(p, "!")); col >= 0 {
				at := src.Lines(i+1, i+1)
				at.Col, at.Width = col+1, len(p)
				return invalidf("invalid pattern %q: %w", p, err).WithSpan(at)
			}
		}
	}
	return invalidf("%s: %w", src.Name, err)
}

func (sh *shared) defaults() error {
	req := sh.req
	if req.BuildPlatform.OS == "" {
		req.BuildPlatform = hostPlatform()
	}
	req.BuildPlatform = graph.NormalizePlatform(req.BuildPlatform)
	pfs := make([]graph.Platform, len(req.Platforms))
	for i, p := range req.Platforms {
		pfs[i] = graph.NormalizePlatform(p)
	}
	req.Platforms = pfs
	sh.multi = req.MultiPlatform || len(pfs) > 1
	if v := req.BuildArgs["BUILDKIT_MULTI_PLATFORM"]; v != "" {
		b, err := parseBool("BUILDKIT_MULTI_PLATFORM", v)
		if err != nil {
			return err
		}
		if !b && len(pfs) > 1 {
			return invalidf("BUILDKIT_MULTI_PLATFORM=%s, but %d platforms are asked for", v, len(pfs))
		}
		sh.multi = b
	}
	if v := req.BuildArgs["BUILDKIT_SANDBOX_HOSTNAME"]; v != "" {
		req.Hostname = v
	}
	if v, ok := req.BuildArgs["BUILDKIT_CACHE_MOUNT_NS"]; ok {
		req.CacheMountNS = v
	}
	return nil
}

// planner plans for one platform.
type planner struct {
	*shared
	target   graph.Platform
	implicit bool // the platform was not asked for: a base image may change it
	all      bool // plan all stages, for lint
	dry      bool // nothing is built: what only a result says is not known
	lint     *lint.Linter

	file    *file
	lex     *shell.Lex
	given   map[string]string // build arguments; SOURCE_DATE_EPOCH in seconds
	globals *env              // main scope
	mainArg map[string]argInfo
	epoch   *time.Time
	stages  []*stage // in the order of the file, then the images that COPY --from and RUN --mount name
	byName  map[string]*stage
	doubts  []diag.Warning // of what is valid, and probably not meant
}

func (sh *shared) planner(pf graph.Platform, l *lint.Linter) *planner {
	given := map[string]string{}
	if t := sh.req.Epoch; t != nil { // the client's own time is an argument, unless it is given otherwise
		given[epochArg] = strconv.FormatInt(t.Unix(), 10)
	}
	maps.Copy(given, sh.req.BuildArgs)
	return &planner{shared: sh, target: pf, implicit: len(sh.req.Platforms) == 0, lint: l, given: given}
}

func (p *planner) plan(ctx context.Context) (*stage, error) {
	var err error
	if p.file, err = parse(p.req.Source, p.lint); err != nil {
		return nil, err
	}
	p.lex = shell.NewLex(p.file.escape)
	if err := p.mainScope(ctx); err != nil {
		return nil, err
	}
	if err := p.makeStages(); err != nil {
		return nil, err
	}
	target, err := p.findTarget()
	if err != nil {
		return nil, err
	}
	if err := p.link(); err != nil {
		return nil, err
	}
	reach, err := p.resolveBases(ctx, target)
	if err != nil {
		return nil, err
	}
	for _, s := range p.stages {
		if reach[s] && !s.done {
			if err := s.run(ctx); err != nil {
				return nil, err
			}
		}
	}
	return target, target.complete(ctx)
}

// finish makes the target of a stage's result.
func (p *planner) finish(s *stage) image.Target {
	if p.req.Squash {
		s.squashTarget()
	}
	cfg := s.cfg.Clone()
	cfg.Created = nil
	for k, v := range p.req.Labels {
		if cfg.Config.Labels == nil {
			cfg.Config.Labels = map[string]string{}
		}
		cfg.Config.Labels[k] = v
	}
	if !p.implicit {
		same := cfg.OS == p.target.OS && cfg.Architecture == p.target.Architecture
		cfg.OS, cfg.Architecture = p.target.OS, p.target.Architecture
		if p.target.Variant != "" || !same {
			cfg.Variant = p.target.Variant
		}
		if p.target.OSVersion != "" || !same {
			cfg.OSVersion = p.target.OSVersion
		}
		if p.target.OSFeatures != nil {
			cfg.OSFeatures = slices.Clone(p.target.OSFeatures)
		}
	}
	n := graph.NormalizePlatform(cfg.Platform())
	cfg.OS, cfg.Architecture, cfg.Variant = n.OS, n.Architecture, n.Variant
	pf := p.target
	if p.implicit {
		pf = n
	}
	t := image.Target{ID: graph.FormatPlatform(pf), Root: s.root, Platform: pf, Config: cfg, Base: s.from, Epoch: p.epoch}
	t.Seal(s.sealed)
	return t
}
