package solve

import (
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// keyOf computes a node's key, and with it the keys below it.
func (b *Build[R, E]) keyOf(n *node[R]) error {
	n.keyOnce.Do(func() { n.keyErr = b.computeKey(n) })
	return n.keyErr
}

func (b *Build[R, E]) computeKey(n *node[R]) error {
	v := n.v
	pin, err := b.s.runner.Pin(n.ctx, v, b.env)
	if err != nil {
		return b.fail(n, err)
	}
	n.pin = pin
	if pin.Volatile {
		pin.Value = fmt.Sprintf("build %d", b.id)
	}
	p := &Preimage{Tenant: b.tenant, Kind: v.Op.Kind(), Platform: v.Platform, Pin: pin.Value, Inputs: make([]Input, len(v.In))}
	if !pin.Complete {
		p.Op = graph.Canonical(graph.Identity(v.Op))
	}
	for i := range p.Inputs {
		p.Inputs[i] = Input{Name: "scratch"}
	}
	in, claims := make([]*node[R], len(v.In)), make([][]string, len(v.In))
	if err := b.together(v.In, func(i int) (err error) {
		in[i] = b.node(v.In[i].V)
		p.Inputs[i], claims[i], err = b.token(n, in[i], i)
		return err
	}); err != nil {
		return err
	}
	n.pre, n.key, n.claims = p, p.Key(), Union(claims...)
	n.anew = b.anew(n, in)
	return nil
}

// anew says why no cached result may be used for a node: it was asked to run, or it is keyed by an input that must run first.
// A cached result was made from an earlier output of that input. An input that is keyed by its content does not count: it has
// run by now, and a result that was found was made from the same content.
func (b *Build[R, E]) anew(n *node[R], in []*node[R]) string {
	b.mu.Lock()
	asked := n.noCache
	b.mu.Unlock()
	if asked {
		return "--no-cache"
	}
	for i, from := range in {
		if from != nil && n.pre.Inputs[i].Key != "" && from.forced() {
			return fmt.Sprintf("%q runs again: --no-cache", from.v.Name)
		}
	}
	return ""
}

// ContentError is why a step has no key: what it reads of an input cannot be told, most often since it is not there.
type ContentError struct {
	Input graph.Digest // the input's key
	Index int          // of the input
	Err   error
}

func (e *ContentError) Error() string { return e.Err.Error() }
func (e *ContentError) Unwrap() error { return e.Err }

// token says what an input contributes to the key of the node that uses it, and which caches have said so.
func (b *Build[R, E]) token(user, in *node[R], i int) (Input, []string, error) {
	out, sel := user.v.In[i].Out, user.v.Op.Uses(i)
	if err := b.keyOf(in); err != nil {
		return Input{}, nil, err
	}
	if sel == nil {
		if !in.pin.Volatile {
			return Input{Key: in.key, Out: out, Name: in.v.Name}, in.claims, nil
		}
		sel = graph.All()
	}
	var memo graph.Digest
	if !in.pin.Volatile {
		memo = digest.FromBytes(graph.Canonical(struct {
			Key graph.Digest
			Out int
			Sel *graph.Selector
		}{in.key, out, sel}))
		if d, claims, ok := b.recall(user, in, i, memo); ok {
			return Input{Content: d, Name: in.v.Name}, claims, nil
		}
	}
	r, made, err := b.output(user.v.In[i])
	if err != nil {
		if in.pin.Volatile && diag.KindOf(err) == diag.NotFound {
			if known, ok := b.borrow(user, i); ok {
				return known, nil, nil
			}
		}
		return Input{}, nil, err
	}
	d, err := r.Content(user.ctx, *sel)
	if err != nil {
		return Input{}, nil, b.fail(user, &ContentError{Input: in.key, Index: i, Err: err})
	}
	// What the files are is a fact, but that they are the input's may be a cache's word.
	if memo != "" {
		if err := b.s.cache.SetMemo(user.ctx, OriginKey(memo, Union(in.claims, made.origins())), d); err != nil {
			return Input{}, nil, err
		}
	}
	return Input{Content: d, Name: in.v.Name}, nil, nil
}

// borrow returns what an input contributes to the key of the same vertex in another build of the tenant: its client may have the
// directory that this build's client lacks. The result is then found, or the build fails for want of the directory.
func (b *Build[R, E]) borrow(user *node[R], i int) (Input, bool) {
	for _, p := range b.peers(user.v.ID) {
		n := p.node(user.v)
		if p.keyOf(n) == nil && n.pre.Inputs[i].Content != "" {
			return n.pre.Inputs[i], true
		}
	}
	return Input{}, false
}

// recall finds the content of an input that need not be there: in a memo, or in what caches elsewhere say.
func (b *Build[R, E]) recall(user, in *node[R], i int, memo graph.Digest) (d graph.Digest, claims []string, ok bool) {
	if in.forced() {
		return "", nil, false
	}
	b.Trusted(user.ctx, func(origins []string) bool {
		m, err := b.s.cache.Memo(user.ctx, OriginKey(memo, origins))
		if ok = err == nil; ok {
			d, claims = m, Union(in.claims, origins)
		}
		return ok
	})
	r := b.remote.Load()
	if ok || r == nil {
		return d, claims, ok
	}
	c, ok := (*r).Token(user.ctx, user.v, i)
	if !ok {
		return "", nil, false
	}
	d, claims = c.Content, Union(in.claims, OriginOf(c.Origin))
	if d == "" {
		d = digest.FromString("as it was made: " + memo.String())
	}
	// A memo that is not kept is asked for again.
	return d, claims, b.s.cache.SetMemo(user.ctx, OriginKey(memo, claims), d) == nil
}
