package dockerfile

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"golang.org/x/sync/errgroup"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile/lint"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// makeStages reads every FROM.
func (p *planner) makeStages() error {
	p.byName = map[string]*stage{}
	for i, inst := range p.file.stages {
		s, err := p.makeStage(i, inst)
		if err != nil {
			return located(p.req.Source, err, inst.Location)
		}
		p.addStage(s)
		s.total = s.countSteps()
		if err := p.nameSquashes(s); err != nil {
			return err
		}
	}
	return p.addOutputs()
}

func (p *planner) makeStage(i int, inst *instructions.Stage) (*stage, error) {
	s := &stage{p: p, inst: inst, name: inst.Name, noCache: p.isNoCache(inst.Name), outline: newOutlineInfo()}
	if s.name == "" {
		s.name = fmt.Sprintf("stage-%d", i)
	}
	l := p.lint.With(inst.Comments)
	base, err := p.expand(inst.BaseName, p.globals)
	if err != nil {
		return nil, err
	}
	known := slices.Concat(p.globals.Keys(), slices.Collect(maps.Keys(p.mainArg)))
	lint.UndefinedArgInFrom(l, s.at(), base.Unmatched, known)
	s.blank = p.blank(base)
	if base.Text == "" {
		return nil, s.blankError(invalidf("base name (%s) should not be blank", inst.BaseName), known)
	}
	s.ref = base.Text
	s.outline.use(base.Matched)
	if inst.Platform != "" {
		if err := s.setPlatform(l, known); err != nil {
			return nil, err
		}
	}
	if inst.Name != "" {
		if s.named, err = p.namedContext(inst.Name, s.platform); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// blank is the first variable of a word that has no value; "" = all have one.
func (p *planner) blank(w lint.Expanded) string {
	for _, name := range slices.Sorted(maps.Keys(w.Unmatched)) {
		return name
	}
	for _, name := range slices.Sorted(maps.Keys(w.Matched)) {
		if v, _ := p.globals.Get(name); v == "" {
			return name
		}
	}
	return ""
}

// blankError adds to an error of the base's name that a variable in it is empty.
func (s *stage) blankError(err *diag.Error, known []string) *diag.Error {
	if s.blank == "" {
		return err.WithHint("give an ARG above the first FROM a default value, or pass it with --build-arg")
	}
	if near := diag.Suggest(s.blank, known); near != "" && near != s.blank {
		return err.WithHint("%s is not set: did you mean %s?", s.blank, near)
	}
	return err.WithHint("%s is empty: pass --build-arg %s=…, or give ARG %s above the first FROM a default", s.blank, s.blank, s.blank)
}

func (s *stage) setPlatform(l *lint.Linter, known []string) error {
	flag := s.inst.Platform
	v, err := s.p.expand(flag, s.p.globals)
	if err != nil {
		return err
	}
	lint.UndefinedArgInFrom(l, s.at(), v.Unmatched, known)
	s.outline.use(v.Matched)
	if v.Text == "" {
		return nearest(invalidf("empty platform value from expression %s", flag), v.Unmatched, known)
	}
	pf, err := graph.ParsePlatform(v.Text)
	if err != nil {
		if slices.Contains(strings.Split(v.Text, "/"), "") { // as BuildKit's library has it
			err = invalidf("%q is an invalid component of %q: platform specifier component must match \"^[A-Za-z0-9_.-]+$\": invalid argument", "", v.Text)
		}
		err := invalidf("failed to parse platform %s: %w", flag, err).WithHint("write it as os/arch or os/arch/variant, such as linux/amd64 or linux/arm/v7")
		return nearest(err, v.Unmatched, known)
	}
	target, _ := s.p.globals.Get("TARGETPLATFORM")
	lint.RedundantTargetPlatform(l, s.at(), flag, v, v.Text == target)
	lint.FromPlatformFlagConstDisallowed(l, s.at(), v, pf, s.inst.Name)
	s.platform = &pf
	if arches := graph.Architectures(); !slices.Contains(arches, pf.Architecture) {
		msg := fmt.Sprintf("FROM --platform=%s: unknown architecture %q", flag, pf.Architecture)
		if near := diag.Suggest(pf.Architecture, arches); near != "" {
			msg += ", did you mean " + near + "?"
		}
		s.p.doubts = append(s.p.doubts, diag.Warning{Msg: msg, At: s.at(), Level: 1})
	}
	return nil
}

func (p *planner) isNoCache(name string) bool {
	return p.req.NoCache || slices.ContainsFunc(p.req.NoCacheFilter, func(n string) bool { return strings.EqualFold(n, name) })
}

// countSteps counts the steps that people see: the base image, and what can make a layer.
func (s *stage) countSteps() int {
	n := 0
	if s.ref != scratch && s.base == nil {
		n = 1
	}
	for _, c := range s.inst.Commands {
		switch c.(type) {
		case *instructions.AddCommand, *instructions.CopyCommand, *instructions.RunCommand, *instructions.WorkdirCommand, *squashCommand, *outputCommand:
			n++
		}
	}
	return n
}

// resolveBases finds the bases of the stages that the target needs, in parallel. Triggers of a base may need more stages.
func (p *planner) resolveBases(ctx context.Context, target *stage) (map[*stage]bool, error) {
	for {
		reach := p.reachable(target)
		g, ctx := errgroup.WithContext(ctx)
		for _, s := range p.stages {
			if s.base == nil && !s.resolved && reach[s] {
				s.resolved = true
				g.Go(func() error {
					err := s.resolve(ctx)
					if s.external || s.named != nil {
						s.done = true
					}
					return s.located(err)
				})
			}
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		before := len(p.stages)
		for _, s := range slices.Clone(p.stages) {
			if reach[s] {
				if err := s.addTriggers(); err != nil {
					return nil, s.located(err)
				}
			}
		}
		// A trigger may name a stage that nothing else reaches, or an image.
		if len(p.stages) == before && len(p.reachable(target)) == len(reach) {
			return reach, nil
		}
		if err := p.checkCycles(); err != nil {
			return nil, err
		}
	}
}

func (s *stage) resolve(ctx context.Context) error {
	p := s.p
	pf := p.target
	if s.platform != nil {
		pf = *s.platform
	}
	if s.named != nil {
		return s.replace(ctx, s.named, pf)
	}
	if s.ref == scratch {
		s.cfg, s.platform = empty(p.target), &p.target
		return nil
	}
	if isOCI(s.ref) {
		nc := &namedContext{p: p, key: s.ref, source: s.ref, title: s.stepName("FROM " + s.ref), at: s.at()}
		f, err := nc.load(ctx, pf)
		if err != nil {
			return err
		}
		s.take(f, pf)
		return nil
	}
	named, err := reference.ParseNormalizedNamed(s.ref)
	if err != nil {
		e := invalidf("failed to parse stage name %q: %w", s.ref, err)
		if s.blank != "" {
			return s.blankError(e, slices.Concat(p.globals.Keys(), slices.Collect(maps.Keys(p.mainArg))))
		}
		if lower, ok := p.byName[strings.ToLower(s.ref)]; ok {
			return e.WithHint("did you mean stage %s?", lower.inst.Name)
		}
		return didYouMean(e, s.ref, p.names())
	}
	full := reference.TagNameOnly(named)
	nc, err := p.namedContext(full.String(), &pf)
	if err != nil {
		return err
	}
	if nc != nil {
		f, err := nc.load(ctx, pf)
		if err != nil {
			return err
		}
		s.take(f, pf)
		return nil
	}
	return s.pull(ctx, full, pf)
}

// replace makes the stage what a named context says.
func (s *stage) replace(ctx context.Context, nc *namedContext, pf graph.Platform) error {
	f, err := nc.load(ctx, pf)
	if err != nil {
		return err
	}
	s.take(f, pf)
	s.env = newEnv()
	for _, kv := range s.cfg.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		s.env.set(k, v)
	}
	if f.cfg != nil && f.cfg.OS != "" && f.cfg.Architecture != "" {
		got := f.cfg.Platform()
		s.platform = &got
	}
	return nil
}

// take makes a tree the stage's base.
func (s *stage) take(f found, pf graph.Platform) {
	s.root, s.from, s.platform = f.edge, f.base, &pf
	if f.cfg == nil {
		s.cfg = empty(pf)
	} else {
		s.cfg = f.cfg.Clone()
		s.cfg.Created = nil
	}
	s.began = mark{s.root, len(s.cfg.History)}
}

// pull makes an image of a registry or of the store the stage's base.
func (s *stage) pull(ctx context.Context, ref reference.Named, pf graph.Platform) error {
	p := s.p
	res, err := p.r.Image(ctx, ref.String(), pf, p.req.ResolveMode)
	if err != nil {
		return s.pullError(err)
	}
	if res.Other != nil {
		return diag.Errorf(diag.Unsupported, "%s: a stage cannot begin with a %s, which is to be used instead", ref, res.Other.Kind())
	}
	if res.Config == nil {
		return diag.Errorf(diag.Internal, "%s: the image has no configuration", ref)
	}
	if s.platform == nil && p.implicit {
		pf = p.detect(res.Config, pf)
	}
	full, err := pinned(ref.String(), res)
	if err != nil {
		return err
	}
	written := s.ref
	s.ref = full
	f := found{cfg: res.Config, base: &image.Base{Name: full, Digest: res.Digest}}
	if hasLayers(res.Config) {
		op := &graph.Image{Ref: full, Mode: p.req.ResolveMode}
		f.edge = edge(graph.New(op, nil, graph.On(pf), graph.Named("%s", s.stepName("FROM "+full)), graph.From(s.at()...)))
		if got := res.Config.Platform(); got.OS != pf.OS || got.Architecture != pf.Architecture {
			lint.InvalidBaseImagePlatform(p.lint.With(s.inst.Comments), s.at(), written, graph.FormatPlatform(pf), graph.FormatPlatform(graph.NormalizePlatform(got)))
		}
	}
	s.take(f, pf)
	return nil
}

func (s *stage) pullError(err error) error {
	e := &diag.Error{Kind: diag.KindOf(err), Msg: err.Error(), Err: err}
	if named, perr := reference.ParseNormalizedNamed(s.ref); perr != nil || !strings.Contains(e.Msg, strings.TrimPrefix(reference.Path(named), "library/")) {
		e.Msg = s.ref + ": " + e.Msg
	}
	candidates := s.p.names()
	if near := diag.Suggest(s.ref, candidates); s.external && near != "" && near != s.ref {
		e.Msg = fmt.Sprintf("no stage %q, and it cannot be pulled as an image: %s", s.ref, e.Msg)
		e.Hint = fmt.Sprintf("did you mean %s?", near)
	}
	if e.Kind == diag.NotFound || e.Kind == diag.Denied {
		candidates = append(candidates, "alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora", "node", "python", "nginx")
	}
	name, _, _ := strings.Cut(s.ref, ":")
	if m := diag.Suggest(name, candidates); m != "" && m != name {
		e.Hint = "did you mean " + m + "?"
	}
	if e.Hint == "" && e.Kind == diag.NotFound && s.external {
		e.Hint = "no stage above has this name, so it was taken for an image"
	}
	return e.WithSpan(pointAt(span(s.p.req.Source, s.inst.Location), "'"+s.inst.BaseName+"'"))
}

// detect takes the platform of an image when none was asked for and this machine can run the image's.
func (p *planner) detect(c *image.Config, want graph.Platform) graph.Platform {
	got := graph.NormalizePlatform(c.Platform())
	if got.OS == want.OS && got.Architecture == want.Architecture {
		return want
	}
	for _, r := range p.req.Runnable {
		if r.OS == got.OS && r.Architecture == got.Architecture {
			return r
		}
	}
	return want
}

// pinned is a reference with the digest that the resolver found.
func pinned(ref string, res Resolved) (string, error) {
	if res.Ref != "" {
		ref = res.Ref
	}
	if res.Digest == "" {
		return ref, nil
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", diag.Errorf(diag.Internal, "the resolver's reference %q is invalid: %w", ref, err)
	}
	if named, err = reference.WithDigest(named, res.Digest); err != nil {
		return "", diag.Errorf(diag.Internal, "the resolver's digest %q is invalid: %w", res.Digest, err)
	}
	return named.String(), nil
}

func hasLayers(c *image.Config) bool {
	return len(c.RootFS.DiffIDs) > 0 || slices.ContainsFunc(c.History, func(h image.History) bool { return !h.EmptyLayer })
}

// isOCI tells a base that is in an OCI layout, as a directory or an archive.
func isOCI(ref string) bool {
	return strings.HasPrefix(ref, "oci-layout://") || strings.HasPrefix(ref, "oci-archive:")
}

func edge(v *graph.Vertex) graph.Edge { return graph.Edge{V: v} }
