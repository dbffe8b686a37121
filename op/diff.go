package op

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// Diff returns what changed from a lower tree to an upper one, as layers that can lie on any other tree: merged onto the
// lower tree they make the upper one. If the upper tree is the lower one with more layers, the result is those layers,
// each made again only where it means something else elsewhere (see tree.Diff). Otherwise it is one new layer of hard
// links and whiteouts, pending as those of the other runners.
func Diff(ctx context.Context, s *store.Store, in []tree.Tree) ([]tree.Tree, error) {
	if len(in) != 2 {
		return nil, diag.Errorf(diag.Invalid, "a diff has two inputs, not %d", len(in))
	}
	l := &layering{s: s, hold: s.Hold()}
	defer l.hold.Release()
	lower, err := l.ids(ctx, in[0])
	if err != nil {
		return nil, err
	}
	upper, err := l.ids(ctx, in[1])
	if err != nil {
		return nil, err
	}
	if len(lower) == 0 {
		return []tree.Tree{tree.NewStack(s, upper)}, nil
	}
	if added, ok := above(lower, upper); ok {
		rest := make([]store.LayerID, len(added))
		for i, id := range added {
			if rest[i], err = l.alone(ctx, lastOnly(slices.Concat(lower, added[:i])), id); err != nil {
				return nil, err
			}
		}
		return []tree.Tree{tree.NewStack(s, rest)}, nil
	}
	t, err := l.compare(ctx, lower, upper)
	if err != nil {
		return nil, err
	}
	return []tree.Tree{t}, nil
}

// above returns the layers that make upper of lower, if it is lower with more layers. A layer of lower may be further up in
// upper, where it has come again (see lastOnly).
func above(lower, upper []store.LayerID) ([]store.LayerID, bool) {
	for n := min(len(lower), len(upper)); n > 0; n-- {
		if slices.Equal(lastOnly(slices.Concat(lower, upper[n:])), upper) {
			return upper[n:], true
		}
	}
	return nil, false
}

// Merge stacks trees: the layers of a later one lie above those of the earlier ones. Nothing is copied. A layer that hides
// a directory of what it was made on (an opaque one) would hide that of any other tree below, too: it is made again, of
// hard links, so that it deletes only what it was made to delete.
func Merge(ctx context.Context, s *store.Store, in []tree.Tree) ([]tree.Tree, error) {
	l := &layering{s: s, hold: s.Hold()}
	defer l.hold.Release()
	var all []store.LayerID
	for _, t := range in {
		ids, err := l.ids(ctx, t)
		if err != nil {
			return nil, err
		}
		if len(all) == 0 {
			all = ids
			continue
		}
		for i, id := range ids {
			if id, err = l.movable(ctx, ids[:i], id); err != nil {
				return nil, err
			}
			all = append(all, id)
		}
	}
	return []tree.Tree{tree.NewStack(s, lastOnly(all))}, nil
}

// lastOnly keeps the topmost of the places where a layer lies: it does there all that it does further down. overlayfs
// takes no directory twice.
func lastOnly(ids []store.LayerID) []store.LayerID {
	seen := map[store.LayerID]bool{}
	var out []store.LayerID
	for _, id := range slices.Backward(ids) {
		if !seen[id] {
			seen[id] = true
			out = append(out, id)
		}
	}
	slices.Reverse(out)
	return out
}

// layering makes layers of layers. All that it makes is committed and held.
type layering struct {
	s    *store.Store
	hold *store.Hold
}

// ids returns the layers of a tree; the empty tree has none. A client's directory becomes a layer.
func (l *layering) ids(ctx context.Context, t tree.Tree) ([]store.LayerID, error) {
	local, ok := t.(*tree.Local)
	if !ok {
		return stacked(t)
	}
	copied, err := local.Materialize(ctx, l.s, graph.Selector{Paths: []graph.Select{{Path: "/"}}})
	if err != nil {
		return nil, err
	}
	draft, info := copied.Pending()
	l.hold.Layers(draft.ID)
	if err := l.s.Update(ctx, func(b *store.Batch) error { b.Layer(draft, info); return nil }); err != nil {
		copied.Discard()
		return nil, err
	}
	copied.Committed()
	copied.Release()
	return []store.LayerID{draft.ID}, nil
}

// movable returns a layer that does the same as id on top of below, and hides nothing else on top of other trees.
func (l *layering) movable(ctx context.Context, below []store.LayerID, id store.LayerID) (store.LayerID, error) {
	plain := digest.FromString("layer without opaque directories\x00" + id.String())
	if _, err := l.s.Memo(plain); err == nil {
		return id, nil
	}
	shape, err := tree.LayerShape(ctx, l.s.LayerDir(id))
	if err != nil {
		return 0, err
	}
	if shape.Opaque {
		return l.alone(ctx, below, id)
	}
	return id, l.s.Update(ctx, func(b *store.Batch) error { b.Memo(plain, plain); return nil })
}

// alone returns a layer that holds exactly what changed from below to below with the layer id on top: id itself, if it does.
// What it found is kept, so that equal layers of several diffs and merges stay one layer.
func (l *layering) alone(ctx context.Context, below []store.LayerID, id store.LayerID) (store.LayerID, error) {
	upper := lastOnly(append(slices.Clone(below), id))
	key := digest.FromBytes(append([]byte("layer alone\x00"), graph.Canonical(upper)...))
	if r, err := l.hold.Result(key); err == nil && len(r.Outputs) == 1 && len(r.Outputs[0]) == 1 {
		return r.Outputs[0][0], nil
	}
	lo, up := tree.NewStack(l.s, below), tree.NewStack(l.s, upper)
	defer lo.Release()
	defer up.Release()
	start := time.Now()
	c, err := tree.Diff(ctx, lo, up)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	shape, err := tree.LayerShape(ctx, l.s.LayerDir(id))
	if err != nil {
		return 0, err
	}
	made := id
	var draft *store.Draft
	var info store.LayerInfo
	if shape.Opaque || shape.N != c.N {
		if draft, info, err = l.write(ctx, c); err != nil {
			return 0, err
		}
		made = draft.ID
		l.hold.Layers(made)
		defer draft.Discard()
	} else if err := tree.Support(l.s.LayerDir(id), c.Gone); err != nil {
		return 0, err
	}
	return made, l.s.Update(ctx, func(b *store.Batch) error {
		if draft != nil {
			b.Layer(draft, info)
		}
		b.Result(key, store.Result{Outputs: [][]store.LayerID{{made}}, Label: "diff of one layer", Cost: time.Since(start), Created: time.Now()})
		return nil
	})
}

// compare makes one layer of what differs between two trees.
func (l *layering) compare(ctx context.Context, lower, upper []store.LayerID) (*tree.Stack, error) {
	lo, up := tree.NewStack(l.s, lower), tree.NewStack(l.s, upper)
	defer lo.Release()
	defer up.Release()
	c, err := tree.Diff(ctx, lo, up)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if c.N == 0 {
		return tree.NewStack(l.s, nil), nil
	}
	draft, info, err := l.write(ctx, c)
	if err != nil {
		return nil, err
	}
	return tree.NewDraftStack(l.s, nil, draft, info), nil
}

// write writes changes into a new layer.
func (l *layering) write(ctx context.Context, c *tree.Changes) (*store.Draft, store.LayerInfo, error) {
	draft, err := l.s.NewLayer(ctx)
	if err != nil {
		return nil, store.LayerInfo{}, err
	}
	info, err := l.fill(ctx, draft, c)
	if err != nil {
		draft.Discard()
		return nil, info, err
	}
	return draft, info, nil
}

func (l *layering) fill(ctx context.Context, draft *store.Draft, c *tree.Changes) (store.LayerInfo, error) {
	scratch := tree.NewStack(l.s, nil)
	defer scratch.Release()
	u, err := tree.NewUpper(scratch, draft)
	if err != nil {
		return store.LayerInfo{}, err
	}
	defer u.Close()
	if err := c.Write(ctx, u); err != nil {
		return store.LayerInfo{}, err
	}
	if err := tree.Support(draft.Dir, c.Gone); err != nil {
		return store.LayerInfo{}, err
	}
	return u.Finish(ctx)
}

// stacked returns the layers of a tree of the store; the empty tree has none.
func stacked(t tree.Tree) ([]store.LayerID, error) {
	if t == nil {
		return nil, nil
	}
	ids, ok := t.Layers()
	if !ok {
		return nil, diag.Errorf(diag.Invalid, "a client's directory cannot be a layer").WithHint("copy it onto scratch first")
	}
	return slices.Clone(ids), nil
}
