package tree

import (
	"context"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/store"
)

// Materialize copies what sel selects of a client's directory, filters applied, into a layer of its own, each file at its
// own path. The layer is pending: see Stack.Pending. A RUN that mounts the build context gets this.
func (l *Local) Materialize(ctx context.Context, s *store.Store, sel graph.Selector) (*Stack, error) {
	return l.materializeAs(ctx, s, sel, "materialize\x00"+l.key+"\x00"+string(graph.Canonical(sel)))
}

// MaterializeToWrite is Materialize for a layer that a step writes to, in place. It shares no file with the layer of an earlier
// call, and no later call shares a file with it.
func (l *Local) MaterializeToWrite(ctx context.Context, s *store.Store, sel graph.Selector) (*Stack, error) {
	return l.materializeAs(ctx, s, sel, "")
}

// materializeAs copies into a layer whose lineage has this key; "" = none.
func (l *Local) materializeAs(ctx context.Context, s *store.Store, sel graph.Selector, key string) (*Stack, error) {
	if l.err != nil {
		return nil, l.err
	}
	draft, err := s.NewLayer(ctx)
	if err != nil {
		return nil, err
	}
	info, err := l.materialize(ctx, s, draft, sel, key)
	if err != nil {
		draft.Discard()
		return nil, err
	}
	return NewDraftStack(s, nil, draft, info), nil
}

func (l *Local) materialize(ctx context.Context, s *store.Store, draft *store.Draft, sel graph.Selector, key string) (info store.LayerInfo, err error) {
	scratch := NewStack(s, nil)
	defer scratch.Release()
	u, err := NewUpper(scratch, draft)
	if err != nil {
		return info, err
	}
	defer u.Close()
	var earlier *Lineage
	if key != "" {
		earlier = FindLineage(s, key)
		defer earlier.Close()
	}
	for _, p := range sel.Paths {
		matches, err := l.files.Pick(ctx, p, true)
		if err != nil {
			return info, err
		}
		for i := range matches {
			m := &matches[i]
			if err := u.mirror(ctx, l.files, m, earlier); err != nil {
				return info, err
			}
		}
	}
	if key != "" {
		_ = u.SaveLineage(s, key) // a cache
	}
	return u.Finish(ctx)
}

// mirror copies a match to its own path. If it was reached through symlinks, its named path becomes a symlink to it.
func (u *Upper) mirror(ctx context.Context, f *Files, m *Match, earlier *Lineage) error {
	if err := u.MkdirAll(parentOf(m.Rel), Meta{Mode: 0o755}); err != nil {
		return err
	}
	if err := u.Copy(ctx, f, m, m.Rel, CopyOptions{Earlier: earlier}); err != nil {
		return err
	}
	if m.Path == "/"+m.Rel {
		return nil
	}
	at, err := u.Stat(m.Path, false)
	if err != nil || at.Exists || at.Rel == m.Rel {
		return err
	}
	if err := u.MkdirAll(parentOf(m.Path), Meta{Mode: 0o755}); err != nil {
		return err
	}
	return u.Symlink("/"+m.Rel, m.Path, Meta{})
}
