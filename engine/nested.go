package engine

import (
	"context"
	"sync"

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

// Bounds of all nested builds of one build together. A step can write a definition that has a step that writes the next one,
// without end, and each stays in memory while those below it run.
const (
	maxNestedBuilds = 1000
	maxNestedOps    = llb.DefaultMaxOps
	maxNestedBytes  = llb.DefaultMaxBytes
)

// nestedBuilds counts the nested builds of a build, at all depths.
type nestedBuilds struct {
	mu                 sync.Mutex
	builds, ops, bytes int
}

// add counts a nested build, unless the build has too many then.
func (n *nestedBuilds) add(bytes, ops int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var err *diag.Error
	switch {
	case n.builds+1 > maxNestedBuilds:
		err = diag.Errorf(diag.Exhausted, "the build has more than %d nested builds", maxNestedBuilds)
	case n.bytes+bytes > maxNestedBytes:
		err = diag.Errorf(diag.Exhausted, "the definitions of nested builds have more than %d bytes together", maxNestedBytes)
	case n.ops+ops > maxNestedOps:
		err = diag.Errorf(diag.Exhausted, "the definitions of nested builds have more than %d ops together", maxNestedOps)
	default:
		n.builds, n.bytes, n.ops = n.builds+1, n.bytes+bytes, n.ops+ops
		return nil
	}
	return err.WithHint("check that the definition does not build itself again, or split the build")
}

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
	if err := b.nests.add(len(data), len(def.Def)); err != nil {
		return nil, err
	}
	if b.charge != nil {
		if err := b.charge(int64(len(data))); err != nil {
			return nil, err
		}
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
