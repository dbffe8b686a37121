package engine

import (
	"context"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/llb"
	"github.com/strata-build/strata/op"
	"github.com/strata-build/strata/solve"
	"github.com/strata-build/strata/tree"
)

// maxDefinition bounds the file of a nested build.
const maxDefinition = 16 << 20

// nested builds the graph that a file of the step's input holds. What it refers to may change without the file, so the step is
// run in every build, and the solver finds what is still good.
func (b *build) nested(ctx context.Context, s *solve.Step[tree.Tree, *build], o *graph.Build) ([]tree.Tree, error) {
	name := o.File
	if name == "" {
		name = "/" + pb.LLBDefaultDefinitionFile
	}
	if len(s.In) != 1 || s.In[0] == nil {
		return nil, diag.Errorf(diag.NotFound, "%q: not found: the nested build's definition would be in an empty tree", name)
	}
	t, ok := s.In[0].(filer)
	if !ok {
		return nil, diag.Errorf(diag.Internal, "%T cannot be read", s.In[0])
	}
	files, err := t.Files()
	if err != nil {
		return nil, err
	}
	data, err := files.ReadFile(ctx, name, maxDefinition)
	if err != nil {
		return nil, err
	}
	var def pb.Definition
	if err := llb.Unmarshal(data, &def); err != nil {
		return nil, diag.Errorf(diag.Invalid, "%q is not a build definition: %w", name, err)
	}
	roots, _, err := llb.Decode(&def, llb.Options{Platform: s.V.Platform, Proxied: b.proxied})
	if err != nil {
		return nil, err
	}
	if roots, err = b.police(ctx, b.policy, roots[:1]); err != nil {
		return nil, err
	}
	made, err := s.Solve(roots[0])
	if err != nil {
		return nil, err
	}
	return op.Pass(ctx, b.e.store, []int{0}, made)
}
