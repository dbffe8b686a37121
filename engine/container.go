package engine

import (
	"context"
	"errors"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/op"
	"github.com/strata-build/strata/sandbox"
	"github.com/strata-build/strata/solve"
	"github.com/strata-build/strata/tree"
)

// What containers are made of, by the names that frontends use.
type (
	Container = op.Container
	Process   = op.Process
	Exit      = sandbox.Exit
	TermSize  = sandbox.WinSize
	File      = sandbox.Mount
)

// MemoryFile is a file of a container that is on no disk.
func MemoryFile(target string, data []byte) File {
	return File{Type: sandbox.Data, Target: target, Data: data}
}

// Tree is a tree that a container can have: what an edge makes, which must not be scratch, or what a step has left that failed.
type Tree struct {
	Edge graph.Edge
	Left *tree.Stack // nil = the edge's
}

// Failure is why a vertex failed, for clients that look into it.
type Failure struct {
	V *graph.Vertex
	// Input is the index of the input whose files could not be read to compute the vertex's key; else graph.None.
	Input int
	// Left is what the vertex has written, by the index of the mount or the file action. It is there until the job is closed.
	Left map[int]*tree.Stack
	// Action is the file action that failed; it has no meaning for other vertices.
	Action int
}

// Failure explains an error of this job's solves, nil if it is not one of a vertex. If vertices are within another one, it is
// the innermost that failed.
func (j *Job) Failure(err error) *Failure {
	var f *Failure
	for at, ok := errors.AsType[*solve.Failure](err); ok; at, ok = errors.AsType[*solve.Failure](at.Err) {
		f = &Failure{V: at.V, Input: graph.None}
		if c, ok := errors.AsType[*solve.ContentError](at.Err); ok {
			f.Input = c.Index
		}
	}
	if f == nil {
		return nil
	}
	if r, ok := errors.AsType[*op.Remains](err); ok && r.Retain() {
		j.b.keep(r)
		f.Left, f.Action = r.Trees, r.Action
	}
	return f
}

// Container makes a container of a step without outputs, whose command does not matter, on trees, and with files in memory
// besides. The caller closes it before the job.
func (j *Job) Container(ctx context.Context, o *graph.Exec, in []Tree, files ...File) (*Container, error) {
	trees := make([]tree.Tree, len(in))
	for i, t := range in {
		switch {
		case t.Left != nil:
			trees[i] = t.Left
		default:
			made, err := j.b.trees(ctx, t.Edge)
			if err != nil {
				return nil, err
			}
			trees[i] = made[0]
		}
	}
	if j.b.proxied {
		o.Network = o.Network.Proxied()
	}
	via, err := j.b.newProxy(o.Network)
	if err != nil {
		return nil, err
	}
	env := op.ExecEnv{Session: j.b.session, Tenant: j.b.client.Tenant, Allowed: j.b.allowed, Proxy: via}
	c, err := j.b.e.execs.Container(ctx, o, trees, env, files)
	return c, j.b.e.store.Explain(err)
}
