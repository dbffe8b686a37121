package op

import (
	"context"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// Squash merges the layers of a tree that lie above those of a base, its second input, into one. The layers of the base stay
// shared. The result's top layer is pending.
func Squash(ctx context.Context, s *store.Store, in []tree.Tree) ([]tree.Tree, error) {
	if len(in) != 2 {
		return nil, diag.Errorf(diag.Invalid, "a squash has a tree and its base, not %d inputs", len(in))
	}
	all, err := stacked(in[0])
	if err != nil {
		return nil, err
	}
	base, err := stacked(in[1])
	if err != nil {
		return nil, err
	}
	if len(base) > len(all) {
		return nil, diag.Errorf(diag.Invalid, "the base of a squash has %d layers, the tree %d", len(base), len(all))
	}
	out, err := tree.Squash(ctx, s, all[:len(base)], all[len(base):])
	if err != nil {
		return nil, err
	}
	return []tree.Tree{out}, nil
}
