package op

import (
	"context"
	"slices"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// Merge stacks trees: the layers of a later one lie above those of the earlier ones. Nothing is copied, and no layer is
// made.
func Merge(_ context.Context, s *store.Store, in []tree.Tree) ([]tree.Tree, error) {
	var all []store.LayerID
	for _, t := range in {
		ids, err := stacked(t)
		if err != nil {
			return nil, err
		}
		all = append(all, ids...)
	}
	return []tree.Tree{tree.NewStack(s, all)}, nil
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
