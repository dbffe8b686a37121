package op

import (
	"context"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// Pass returns some of the trees again, each as a tree of its own: the i-th output is the input outs[i].
func Pass(ctx context.Context, s *store.Store, outs []int, in []tree.Tree) ([]tree.Tree, error) {
	l := &layering{s: s, hold: s.Hold()}
	defer l.hold.Release()
	made := make([]tree.Tree, len(outs))
	for i, n := range outs {
		if n < 0 || n >= len(in) {
			return nil, diag.Errorf(diag.Invalid, "output %d is input %d, but there are %d inputs", i, n, len(in))
		}
		ids, err := l.ids(ctx, in[n])
		if err != nil {
			return nil, err
		}
		made[i] = tree.NewStack(s, ids)
	}
	return made, nil
}
