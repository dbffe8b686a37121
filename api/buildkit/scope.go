package buildkit

import (
	"context"
	"sync"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/llb"
	"github.com/strata-build/strata/provenance"
)

// scope is one request to a frontend, or what the client's own code does: provenance tells of a tree what was asked for and read
// in the scope that it was made in.
type scope struct {
	request *provenance.Request // nil: the client's own code

	mu   sync.Mutex
	refs []*ref
	read []graph.Edge // Dockerfiles, images that were looked at
	subs []*scope     // of frontends that were asked within
}

type scopeKey struct{}

// within makes calls with the returned context belong to a scope.
func within(ctx context.Context, s *scope) context.Context {
	return context.WithValue(ctx, scopeKey{}, s)
}

// scopeOf is the scope of a context, or a new one.
func scopeOf(ctx context.Context) *scope {
	if s, ok := ctx.Value(scopeKey{}).(*scope); ok {
		return s
	}
	return &scope{}
}

// scope returns the scope that a call belongs to.
func (b *bridge) scope(ctx context.Context) *scope {
	if s, ok := ctx.Value(scopeKey{}).(*scope); ok {
		return s
	}
	return b.top
}

// enter begins a scope for a request to a frontend.
func (b *bridge) enter(ctx context.Context, frontend string, attrs map[string]string, inputs map[string]*pb.Definition) (context.Context, *scope) {
	r := b.of.producers.asked(frontend, attrs, inputs)
	r.Root = b.root
	s, up := &scope{request: r}, b.scope(ctx)
	up.mu.Lock()
	up.subs = append(up.subs, s)
	up.mu.Unlock()
	return within(ctx, s), s
}

// note remembers that something was read.
func (s *scope) note(edges ...graph.Edge) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read = append(s.read, edges...)
}

// keep gives references that belong to no scope yet to this one.
func (s *scope) keep(r *result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range r.all() {
		if x != nil && x.scope == nil {
			x.scope = s
			s.refs = append(s.refs, x)
		}
	}
}

// all returns what was read in the scope and in those within, but for the references of a result.
func (s *scope) all(but map[*ref]bool) []graph.Edge {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := append([]graph.Edge(nil), s.read...)
	for _, r := range s.refs {
		if !but[r] {
			out = append(out, r.target.Root)
		}
	}
	for _, sub := range s.subs {
		out = append(out, sub.all(but)...)
	}
	return out
}

// told is what provenance needs to know of a reference of a result.
func (b *bridge) told(r *ref, res *result) engine.Told {
	s := r.scope
	if s == nil {
		s = b.top
	}
	but := map[*ref]bool{}
	for _, x := range res.all() {
		but[x] = true
	}
	for _, list := range res.proofs {
		for _, p := range list {
			but[p.ref] = true
		}
	}
	return engine.Told{Request: s.request, Read: s.all(but)}
}

// producers remember which request made a tree, by what definitions of it call it: a build that gets the tree as an input tells
// that in its provenance, as long as the build that made it goes on.
type producers struct {
	mu   sync.Mutex
	made map[string]map[*ref]*provenance.Request
}

// head is what a definition calls its result; "" if it has none.
func head(def *pb.Definition) string {
	if len(def.GetDef()) == 0 {
		return ""
	}
	var last pb.Op
	if llb.Unmarshal(def.Def[len(def.Def)-1], &last) != nil || len(last.Inputs) == 0 {
		return ""
	}
	return last.Inputs[0].Digest
}

// add remembers a reference that a client gets. What forgets it is returned.
func (p *producers) add(r *ref, def *pb.Definition) (forget func()) {
	h := head(def)
	if h == "" || r.scope == nil || r.scope.request == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.made == nil {
		p.made = map[string]map[*ref]*provenance.Request{}
	}
	if p.made[h] == nil {
		p.made[h] = map[*ref]*provenance.Request{}
	}
	p.made[h][r] = r.scope.request
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if delete(p.made[h], r); len(p.made[h]) == 0 {
			delete(p.made, h)
		}
	}
}

// asked is a request as provenance tells it.
func (p *producers) asked(frontend string, attrs map[string]string, inputs map[string]*pb.Definition) *provenance.Request {
	r := provenance.NewRequest(frontend, attrs)
	r.Inputs = p.of(inputs)
	return r
}

// of finds the requests that made some inputs. An input that different requests have made is nobody's.
func (p *producers) of(inputs map[string]*pb.Definition) map[string]*provenance.Request {
	var out map[string]*provenance.Request
	for name, def := range inputs {
		h := head(def)
		p.mu.Lock()
		var found *provenance.Request
		ambiguous := false
		for _, r := range p.made[h] {
			ambiguous = ambiguous || found != nil && !found.Same(r)
			found = r
		}
		p.mu.Unlock()
		if found == nil || ambiguous {
			continue
		}
		if out == nil {
			out = map[string]*provenance.Request{}
		}
		out[name] = found.WithoutRoot()
	}
	return out
}
