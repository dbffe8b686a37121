package solve

import (
	"fmt"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

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
	var g errgroup.Group
	for i, e := range v.In {
		if e.IsScratch() {
			p.Inputs[i] = Input{Name: "scratch"}
			continue
		}
		in := b.node(e.V)
		one := func() (err error) {
			p.Inputs[i], err = b.token(n, in, i)
			return err
		}
		if len(v.In) == 1 {
			if err := one(); err != nil {
				return err
			}
			continue
		}
		g.Go(one)
	}
	if err := g.Wait(); err != nil {
		return err
	}
	n.pre, n.key = p, p.Key()
	return nil
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
		if d, err := b.s.cache.Memo(user.ctx, memo); err == nil && !in.v.NoCache {
			return Input{Content: d, Name: in.v.Name}, nil
		}
		if r := b.remote.Load(); r != nil && !in.v.NoCache {
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
