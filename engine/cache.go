package engine

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/solve"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// results keeps the solver's results in the store.
type results struct{ s *store.Store }

func (c results) Lookup(_ context.Context, key graph.Digest) ([]tree.Tree, error) {
	hold := c.s.Hold()
	defer hold.Release()
	r, err := hold.Result(key)
	if err != nil {
		return nil, err
	}
	outs := make([]tree.Tree, len(r.Outputs))
	for i, layers := range r.Outputs {
		outs[i] = tree.NewStack(c.s, layers)
	}
	return outs, nil
}

// Store commits the layers of a result and the result itself at once.
func (c results) Store(ctx context.Context, e *solve.Entry[tree.Tree]) error {
	preimage, _, err := explaining(e.Preimage)
	if err != nil {
		return err
	}
	now := e.Created
	if now.IsZero() {
		now = time.Now()
	}
	r := store.Result{Label: e.Name, Cost: e.Cost, Created: now, Origins: e.Origins, Owner: e.Preimage.Tenant}
	var stacks []*tree.Stack
	err = c.s.Update(ctx, func(b *store.Batch) error {
		for _, out := range e.Outputs {
			t, ok := out.(*tree.Stack)
			if !ok {
				return errors.New("a result that is not in the store cannot be kept")
			}
			if draft, info := t.Pending(); draft != nil {
				info.ID = draft.ID
				if info.Created.IsZero() {
					info.Created = now
				}
				b.Layer(draft, info)
			}
			stacks = append(stacks, t)
			r.Outputs = append(r.Outputs, t.IDs())
		}
		if e.Preimage.Kind == (*graph.Layers)(nil).Kind() {
			if r.Blobs, err = c.blobs(r.Outputs); err != nil {
				return err
			}
		}
		b.Result(e.Key, r)
		b.Preimage(e.Key, preimage)
		b.Memo(latest(e.Name, e.Preimage), e.Key)
		return nil
	})
	if err != nil {
		for _, out := range e.Outputs {
			if t, ok := out.(*tree.Stack); ok {
				if draft, _ := t.Pending(); draft != nil {
					draft.Discard()
				}
			}
		}
		return err
	}
	for _, t := range stacks {
		t.Committed()
	}
	return nil
}

// blobs are the blobs of layers that only they can give exactly as the build made them.
func (c results) blobs(outs [][]store.LayerID) ([]graph.Digest, error) {
	var all []graph.Digest
	for _, id := range outs[0] {
		info, err := c.s.Layer(id)
		if err != nil {
			return nil, err
		}
		if _, ok := c.s.HasBlob(info.Blob); info.Blob != "" && ok {
			all = append(all, info.Blob)
		}
	}
	return all, nil
}

func (c results) Memo(_ context.Context, of graph.Digest) (graph.Digest, error) { return c.s.Memo(of) }

func (c results) SetMemo(ctx context.Context, of, is graph.Digest) error {
	return c.s.Update(ctx, func(b *store.Batch) error {
		b.Memo(of, is)
		return nil
	})
}

// Why compares a preimage with that of the last run of a step with the same name.
func (c results) Why(_ context.Context, name string, p *solve.Preimage) string {
	key, err := c.s.Memo(latest(name, p))
	if err != nil {
		return event.NeverRun
	}
	raw, err := c.s.Preimage(key)
	if err != nil {
		return ""
	}
	var old, now solve.Preimage
	text, hidden, err := explaining(p)
	if err != nil || json.Unmarshal(raw, &old) != nil || json.Unmarshal(text, &now) != nil {
		return ""
	}
	for i := range min(len(now.Inputs), len(p.Inputs)) {
		now.Inputs[i].Name = p.Inputs[i].Name
	}
	switch {
	case old.Key() != now.Key():
	case key != p.Key() && hidden:
		return "its definition changed"
	case key != p.Key():
		return "its result is from a cache that this build does not name"
	default:
		return "its result is no longer kept"
	}
	return solve.Explain(&old, &now)
}

// explaining is a preimage as it is kept to explain later misses: without the secrets of URLs. It says whether there were any.
func explaining(p *solve.Preimage) (text []byte, hidden bool, err error) {
	raw, err := json.Marshal(p)
	if err != nil {
		return nil, false, err
	}
	text = []byte(diag.Redact(string(raw)))
	return text, string(text) != string(raw), nil
}

// latest names the memo of the last key of a step.
func latest(name string, p *solve.Preimage) graph.Digest {
	return digest.FromString("latest\x00" + p.Tenant + "\x00" + p.Kind + "\x00" + name)
}
