package dockerfile

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// outlineInfo is what a stage takes from outside.
type outlineInfo struct {
	args    map[string]argInfo
	used    map[string]bool // names of arguments
	secrets map[string]needed
	ssh     map[string]needed
	caches  map[string][]diag.Span
}

type argInfo struct {
	def   instructions.KeyValuePairOptional
	value string
	deps  map[string]struct{} // arguments that the default is made of
	at    []diag.Span
}

type needed struct {
	required bool
	at       []diag.Span
}

func newOutlineInfo() outlineInfo {
	return outlineInfo{map[string]argInfo{}, map[string]bool{}, map[string]needed{}, map[string]needed{}, map[string][]diag.Span{}}
}

func (o *outlineInfo) use(names map[string]struct{}) {
	for n := range names {
		o.used[n] = true
	}
}

// Outline is what a build of a target can be given: `--call=outline`.
type Outline struct {
	Name        string        `json:"name,omitempty"`
	Description string        `json:"description,omitempty"`
	Args        []OutlineArg  `json:"args,omitempty"`
	Secrets     []OutlineNeed `json:"secrets,omitempty"`
	SSH         []OutlineNeed `json:"ssh,omitempty"`
	Cache       []OutlineNeed `json:"cache,omitempty"` // cache mounts, never required
	Source      *diag.Source  `json:"-"`               // the Dockerfile
}

// OutlineArg is a build argument; Description is the comment above it that starts with its name.
type OutlineArg struct {
	Name        string      `json:"name"`
	Description string      `json:"description,omitempty"`
	Value       string      `json:"value,omitempty"`
	At          []diag.Span `json:"-"`
}

// OutlineNeed is a secret, an ssh agent or a cache mount.
type OutlineNeed struct {
	Name     string      `json:"name"`
	Required bool        `json:"required,omitempty"`
	At       []diag.Span `json:"-"`
}

// NewOutline describes the target of a request. It resolves base images, since their ONBUILD triggers count.
func NewOutline(ctx context.Context, req Request, r Resolver) (*Outline, error) {
	sh, err := newShared(ctx, &req, r)
	if err != nil {
		return nil, err
	}
	p := sh.planner(req.firstPlatform(), nil)
	p.dry = true
	target, err := p.plan(ctx)
	if err != nil {
		return nil, err
	}
	out := &Outline{Name: target.inst.Name, Description: target.inst.DocComment, Source: req.Source}
	sum := newOutlineInfo()
	for n := range target.outline.used {
		p.useArg(&sum, target, n)
	}
	own := maps.Clone(sum.args) // what the target's stage declares is not replaced by another stage's
	for s := range p.reachable(target) {
		for n := range s.outline.used {
			p.useArg(&sum, s, n)
		}
		maps.Copy(sum.args, own)
		keep(sum.secrets, s.outline.secrets)
		keep(sum.ssh, s.outline.ssh)
		maps.Copy(sum.caches, s.outline.caches)
	}
	for n, a := range sum.args {
		out.Args = append(out.Args, OutlineArg{Name: n, Description: a.def.DocComment, Value: a.value, At: a.at})
	}
	slices.SortFunc(out.Args, func(a, b OutlineArg) int { return byPlace(a.At, b.At, a.Name, b.Name) })
	out.Secrets, out.SSH = needs(sum.secrets), needs(sum.ssh)
	caches := map[string]needed{}
	for id, at := range sum.caches {
		caches[id] = needed{false, at}
	}
	out.Cache = needs(caches)
	return out, nil
}

func (r *Request) firstPlatform() graph.Platform {
	if len(r.Platforms) > 0 {
		return r.Platforms[0]
	}
	return r.BuildPlatform
}

// useArg adds an argument and those that its default is made of. A stage's own declaration goes before the main scope's.
func (p *planner) useArg(sum *outlineInfo, s *stage, name string) {
	a, ok := s.outline.args[name]
	if !ok {
		if a, ok = p.mainArg[name]; !ok {
			return
		}
	}
	if old, ok := sum.args[name]; ok && firstAt(old.at) <= firstAt(a.at) {
		return
	}
	sum.args[name] = a
	for d := range a.deps {
		p.useArg(sum, s, d)
	}
}

func keep(sum, of map[string]needed) {
	for id, n := range of {
		if old, ok := sum[id]; ok {
			n.required = n.required || old.required
			if firstAt(old.at) < firstAt(n.at) {
				n.at = old.at
			}
		}
		sum[id] = n
	}
}

func needs(m map[string]needed) []OutlineNeed {
	var out []OutlineNeed
	for id, n := range m {
		out = append(out, OutlineNeed{Name: id, Required: n.required, At: n.at})
	}
	slices.SortFunc(out, func(a, b OutlineNeed) int { return byPlace(a.At, b.At, a.Name, b.Name) })
	return out
}

func byPlace(a, b []diag.Span, nameA, nameB string) int {
	return cmp.Or(cmp.Compare(firstAt(a), firstAt(b)), cmp.Compare(nameA, nameB))
}

func firstAt(at []diag.Span) int {
	if len(at) == 0 {
		return 0
	}
	return at[0].First
}
