package buildkit

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/llb"
)

// located says which vertex an error is of, and what a container can have of it: its inputs and what it has written.
func (b *bridge) located(err error) error {
	if err == nil || diag.KindOf(err) == diag.Canceled {
		return err
	}
	f := b.job.Failure(err)
	if f == nil {
		return err
	}
	o, exec := f.V.Op.(*graph.Exec)
	if e, ok := errors.AsType[*diag.Error](err); ok && exec && e.Kind == diag.Failed && !strings.HasPrefix(e.Msg, "process ") {
		// A command that could not be started has failed in the words of the others.
		c := *e
		c.Msg, c.Err = fmt.Sprintf("process %q did not complete successfully: %s", strings.Join(o.Args, " "), err), err
		err = &c
	}
	d, derr := b.describe(f)
	if derr != nil {
		return vertexError{err, f.V.ID} // what failed is more important than what is left
	}
	return detailed{vertexError{err, f.V.ID}, "Solve", d}
}

// maxOp bounds the op that an error carries, in bytes: errors travel in headers.
const maxOp = 64 << 10

func (b *bridge) describe(f *engine.Failure) (*errdefs.Solve, error) {
	d := &errdefs.Solve{}
	op, err := opOf(f.V)
	if err != nil {
		return nil, err
	}
	if op.SizeVT() <= maxOp {
		d.Op = op
	}
	if f.Input != graph.None {
		d.Subject = &errdefs.Solve_Cache{Cache: &errdefs.ContentCache{Index: int64(f.Input)}}
		id, err := b.keep(engine.Tree{Edge: f.V.In[f.Input]})
		d.InputIDs = []string{id}
		return d, err
	}
	in := make([]string, len(f.V.In))
	for i, e := range f.V.In {
		if in[i], err = b.keep(engine.Tree{Edge: e}); err != nil {
			return nil, err
		}
	}
	switch o := f.V.Op.(type) {
	case *graph.Exec:
		d.InputIDs = make([]string, len(o.Mounts))
		for i, m := range o.Mounts {
			if m.Input != graph.None {
				d.InputIDs[i] = in[m.Input]
			}
		}
		d.MountIDs = append(d.MountIDs, d.InputIDs...)
	case *graph.File:
		d.InputIDs, d.MountIDs = in, make([]string, len(o.Actions))
		d.Subject = &errdefs.Solve_File{File: &errdefs.FileAction{Index: int64(f.Action)}}
	}
	for i, t := range f.Left {
		if d.MountIDs[i], err = b.keep(engine.Tree{Left: t}); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// keep makes a name under which containers of this build can have a tree; that of scratch is empty.
func (b *bridge) keep(t engine.Tree) (string, error) {
	if t.Left == nil && t.Edge.IsScratch() {
		return "", nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return "", errEnded
	}
	if len(b.left) >= maxRefs {
		return "", diag.Errorf(diag.Exhausted, "the build holds more than %d trees of failed steps", maxRefs)
	}
	id := rand.Text()
	b.left[id] = t
	return id, nil
}

// opOf is a vertex as clients know it.
func opOf(v *graph.Vertex) (*pb.Op, error) {
	def, _, err := llb.EncodeNamed(graph.Edge{V: v})
	if err != nil {
		return nil, err
	}
	// The last op names the result, and the one before it makes it.
	op := &pb.Op{}
	if len(def.Def) < 2 || op.UnmarshalVT(def.Def[len(def.Def)-2]) != nil {
		return nil, diag.Errorf(diag.Internal, "the encoded definition of %q has no op", v.Name)
	}
	return op, nil
}
