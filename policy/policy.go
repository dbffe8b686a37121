package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"net/url"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/llb"
	"github.com/strata-build/strata/strictjson"
)

// Check asks somebody else about a source. It returns another source to use instead, which is looked at then, or nil. asked
// counts the questions about one source; more than MaxQuestions are refused by [Question].
type Check func(ctx context.Context, src *pb.SourceOp, p graph.Platform, asked *int) (*pb.SourceOp, error)

// MaxQuestions bounds how often a Check may ask about one source and what it was converted to.
const MaxQuestions = 10

// Question counts a question.
func Question(asked *int) error {
	if *asked++; *asked > MaxQuestions {
		return diag.Errorf(diag.Invalid, "too many policy requests")
	}
	return nil
}

// Options are what a policy consists of besides rules.
type Options struct {
	Check Check // nil = there is nobody to ask
}

// Policy is what sources have to pass. The nil Policy lets all of them pass.
type Policy struct {
	rules [][]rule // per policy
	opt   Options
}

// New makes a policy. Policies without rules say nothing.
func New(opt Options, rules ...*spb.Policy) (*Policy, error) {
	return (*Policy)(nil).with(opt, rules)
}

// With adds policies, after those that there are.
func (p *Policy) With(rules ...*spb.Policy) (*Policy, error) {
	var opt Options
	if p != nil {
		opt = p.opt
	}
	return p.with(opt, rules)
}

func (p *Policy) with(opt Options, rules []*spb.Policy) (*Policy, error) {
	n := &Policy{opt: opt}
	if p != nil {
		n.rules = append(n.rules, p.rules...)
	}
	for _, r := range rules {
		c, err := compile(r)
		if err != nil {
			return nil, err
		}
		if len(c) > 0 {
			n.rules = append(n.rules, c)
		}
	}
	if len(n.rules) == 0 && opt.Check == nil {
		return nil, nil
	}
	return n, nil
}

// Unchecked is the policy without its Check: what a Check asks for is subject to the rules only.
func (p *Policy) Unchecked() *Policy {
	if p == nil || len(p.rules) == 0 {
		return nil
	}
	return &Policy{rules: p.rules}
}

// Read reads a policy's file: the JSON of sourcepolicy/pb.Policy, as BuildKit's clients have it.
func Read(data []byte) (*spb.Policy, error) {
	if err := (strictjson.Limits{}).Check(data); err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "the source policy cannot be read: %w", err)
	}
	var p spb.Policy
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return nil, diag.Errorf(diag.Invalid, "the source policy cannot be read: %w", err).WithHint(`it is JSON: {"rules": [{"action": "DENY", "selector": {"identifier": "docker-image://*"}}]}`)
	}
	_, err := compile(&p)
	return &p, err
}

// Source returns what is to be used for a source: the source in normal form (graph.Normalize), or what the policy makes of it.
// What is no source passes.
func (p *Policy) Source(ctx context.Context, op graph.Op, pf graph.Platform) (graph.Op, error) {
	if p == nil || !strings.HasPrefix(op.Kind(), "source.") {
		return op, nil
	}
	op, err := graph.Normalize(op)
	if err != nil {
		return nil, err
	}
	src, err := llb.EncodeSource(plain(op))
	if err != nil {
		return nil, err
	}
	c := &candidate{SourceOp: src}
	changed, err := p.decide(ctx, c, pf)
	if err != nil || !changed {
		return op, err
	}
	out, err := llb.DecodeSource(src)
	if err == nil {
		out, err = graph.Normalize(out)
	}
	if err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "source policy: %w", err)
	}
	return inherit(out, op, c.login), nil
}

// plain is a source as rules and clients see it: without a login, and without the time of a download, which has no form in a
// definition.
func plain(op graph.Op) graph.Op {
	switch o := op.(type) {
	case *graph.HTTP:
		c := *o
		c.ModTime, c.Login = nil, nil
		return &c
	case *graph.Git:
		c := *o
		c.Login = nil
		return &c
	}
	return op
}

// inherit gives a converted source what the policy did not see of the one before: the login only if it is for the same server. A
// rule may have a login of its own.
func inherit(out, before graph.Op, login *url.Userinfo) graph.Op {
	switch n := out.(type) {
	case *graph.HTTP:
		n.Login = login
		if o, ok := before.(*graph.HTTP); ok {
			n.ModTime = o.ModTime
			if n.Login == nil && sameServer(n.URL, o.URL) {
				n.Login = o.Login
			}
		}
	case *graph.Git:
		n.Login = login
		if o, ok := before.(*graph.Git); ok && n.Login == nil && sameServer(n.Remote, o.Remote) {
			n.Login = o.Login
		}
	}
	return out
}

func sameServer(a, b string) bool {
	u, err := url.Parse(a)
	v, verr := url.Parse(b)
	return err == nil && verr == nil && u.Scheme == v.Scheme && u.Host == v.Host
}

// decide looks at a source, and at the bundle that a git source is taken from.
func (p *Policy) decide(ctx context.Context, src *candidate, pf graph.Platform) (bool, error) {
	asked := 0
	changed, err := p.evaluate(ctx, src, pf, &asked)
	if err != nil {
		return false, err
	}
	bundle, implicit := bundleOf(src.SourceOp)
	if bundle == nil {
		return changed, nil
	}
	asked = 0
	other, err := p.evaluate(ctx, &candidate{SourceOp: bundle}, pf, &asked)
	if err != nil {
		return false, diag.Errorf(diag.KindOf(err), "error evaluating git bundle source policy: %w", err)
	}
	if !other {
		return changed, nil
	}
	src.Attrs[pb.AttrGitBundle] = bundle.Identifier
	for _, k := range []string{pb.AttrOCILayoutSessionID, pb.AttrOCILayoutStoreID} {
		delete(src.Attrs, k)
		if v, ok := bundle.Attrs[k]; ok && (k != pb.AttrOCILayoutStoreID || v != implicit) {
			src.Attrs[k] = v
		}
	}
	return true, nil
}

// evaluate runs a source through the rules and the check, and again what either makes of it.
func (p *Policy) evaluate(ctx context.Context, src *candidate, pf graph.Platform, asked *int) (changed bool, err error) {
	for {
		c, err := p.apply(src)
		if err != nil {
			return false, err
		}
		changed = changed || c
		if p.opt.Check == nil {
			return changed, nil
		}
		other, err := p.opt.Check(ctx, src.SourceOp, pf, asked)
		if err != nil || other == nil {
			return changed, err
		}
		src.Identifier, src.Attrs, changed = other.Identifier, maps.Clone(other.Attrs), true
		src.normalize()
	}
}

// bundleOf is the blob that a git source's commits come from, as a source of its own. implicit is the layout that its name
// stands for, where the source does not name one.
func bundleOf(src *pb.SourceOp) (bundle *pb.SourceOp, implicit string) {
	id := src.Attrs[pb.AttrGitBundle]
	if id == "" || !strings.HasPrefix(src.Identifier, "git://") {
		return nil, ""
	}
	bundle = &pb.SourceOp{Identifier: id, Attrs: map[string]string{}}
	scheme, ref, _ := strings.Cut(id, "://")
	if scheme != "oci-layout+blob" {
		return bundle, ""
	}
	if v, ok := src.Attrs[pb.AttrOCILayoutSessionID]; ok {
		bundle.Attrs[pb.AttrOCILayoutSessionID] = v
	}
	store := src.Attrs[pb.AttrOCILayoutStoreID]
	if store == "" {
		store, _, _ = strings.Cut(ref, "@")
		if i := strings.LastIndexByte(store, ':'); i > strings.LastIndexByte(store, '/') {
			store = store[:i]
		}
		implicit = store
	}
	bundle.Attrs[pb.AttrOCILayoutStoreID] = store
	return bundle, implicit
}
