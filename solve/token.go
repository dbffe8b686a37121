package solve

import (
	"fmt"

	"github.com/opencontainers/go-digest"

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
	p := &Preimage{Tenant: b.s.tenant, Kind: v.Op.Kind(), Platform: v.Platform, Pin: pin.Value, Inputs: make([]Input, len(v.In))}
	if !pin.Complete {
		p.Op = graph.Canonical(graph.Identity(v.Op))
	}
	for i := range p.Inputs {
		p.Inputs[i] = Input{Name: "scratch"}
	}
	in := make([]*node[R], len(v.In))
	if err := b.together(v.In, func(i int) (err error) {
		in[i] = b.node(v.In[i].V)
		p.Inputs[i], err = b.token(n, in[i], i)
		return err
	}); err != nil {
		return err
	}
	n.pre, n.key = p, p.Key()
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

// token says what an input contributes to the key of the node that uses it.
func (b *Build[R, E]) token(user, in *node[R], i int) (Input, error) {
	out, sel := user.v.In[i].Out, user.v.Op.Uses(i)
	if err := b.keyOf(in); err != nil {
		return Input{}, err
	}
	if sel == nil {
		if !in.pin.Volatile {
			return Input{Key: in.key, Out: out, Name: in.v.Name}, nil
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
		if d, err := b.s.cache.Memo(user.ctx, memo); err == nil && !in.forced() {
			return Input{Content: d, Name: in.v.Name}, nil
		}
		if r := b.remote.Load(); r != nil && !in.forced() {
			if d, ok := (*r).Token(user.ctx, user.v, i); ok {
				if d == "" {
					d = digest.FromString("as it was made: " + memo.String())
				}
				return Input{Content: d, Name: in.v.Name}, b.s.cache.SetMemo(user.ctx, memo, d)
			}
		}
	}
	r, err := b.output(user.v.In[i])
	if err != nil {
		return Input{}, err
	}
	d, err := r.Content(user.ctx, *sel)
	if err != nil {
		return Input{}, b.fail(user, &ContentError{Input: in.key, Index: i, Err: err})
	}
	if memo != "" {
		if err := b.s.cache.SetMemo(user.ctx, memo, d); err != nil {
			return Input{}, err
		}
	}
	return Input{Content: d, Name: in.v.Name}, nil
}
