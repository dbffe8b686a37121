package op

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// FileRunner runs file actions: the graph.File vertices. They behave as BuildKit's, but for times: a directory that gets
// content without being named keeps the time that it had.
type FileRunner struct {
	Store *store.Store
	// Finished, if set, is called with each output before Run returns it. It must not block: it is where the layer's
	// diff_id can begin to be computed, while the result is being stored.
	Finished func(*tree.Stack)
}

// FileEnv is what a build wants of a file step.
type FileEnv struct {
	// Changed, if set, is told in a few words which files differ from those of an earlier run of the same copy.
	Changed func(files string)
	Keep    bool // a step that fails leaves what it has written: its error is a *Remains
}

// Run does op's actions on the inputs and returns its outputs. Each is a stack whose top layer is pending (see
// tree.Stack.Pending) and holds all that the actions on the way to it wrote. If it fails, nothing is left, unless env says so.
func (r *FileRunner) Run(ctx context.Context, op *graph.File, in []tree.Tree, env FileEnv) ([]tree.Tree, error) {
	if err := checkFile(op, len(in)); err != nil {
		return nil, err
	}
	run := &fileRun{store: r.Store, op: op, in: in, env: env, done: map[int]*tree.Stack{}}
	out := make([]tree.Tree, op.Outputs())
	err := run.outputs(ctx, func(i int, st *tree.Stack) { out[i] = st })
	if err != nil && run.failed != nil {
		return nil, run.remains(err)
	}
	for i, st := range run.done {
		if err != nil || op.Actions[i-len(in)].Out < 0 {
			st.Discard()
		}
	}
	if err != nil {
		return nil, err
	}
	if r.Finished != nil {
		for _, t := range out {
			r.Finished(t.(*tree.Stack))
		}
	}
	return out, nil
}

// checkFile refuses an op that does not make sense: it may come from anyone.
func checkFile(op *graph.File, inputs int) error {
	if len(op.Actions) == 0 {
		return diag.Errorf(diag.Invalid, "a file step without actions")
	}
	outs := map[int]bool{}
	for i, a := range op.Actions {
		set := 0
		for _, is := range []bool{a.Copy != nil, a.Mkfile != nil, a.Mkdir != nil, a.Rm != nil, a.Symlink != nil} {
			if is {
				set++
			}
		}
		if set != 1 {
			return diag.Errorf(diag.Invalid, "file action %d is none of copy, mkfile, mkdir, rm and symlink, or several", i)
		}
		refs := []int{a.In}
		if a.Copy != nil {
			refs = append(refs, a.From)
		}
		if o := a.Owner(); o != nil && o.User != "" {
			refs = append(refs, o.UserIn)
		}
		if o := a.Owner(); o != nil && o.Group != "" {
			refs = append(refs, o.GroupIn)
		}
		for _, ref := range refs {
			if ref < graph.None || ref >= inputs+i {
				return diag.Errorf(diag.Invalid, "file action %d refers to tree %d, which does not exist", i, ref)
			}
		}
		if a.Out < graph.None || a.Out >= 0 && outs[a.Out] {
			return diag.Errorf(diag.Invalid, "file action %d has the output %d, which is another's or none", i, a.Out)
		}
		if a.Out >= 0 {
			outs[a.Out] = true
		}
	}
	for i := range op.Outputs() {
		if !outs[i] {
			return diag.Errorf(diag.Invalid, "no file action makes output %d", i)
		}
	}
	if len(outs) == 0 {
		return diag.Errorf(diag.Invalid, "a file step without outputs")
	}
	return nil
}

// fileRun is one run. Trees are counted as in graph.Action: inputs first, then results.
type fileRun struct {
	store *store.Store
	op    *graph.File
	in    []tree.Tree
	env   FileEnv
	done  map[int]*tree.Stack // results that were needed as trees

	failed *tree.Stack // with keep: what the action that failed was writing to
	at     int         // the index of that action
}

// remains is the error with what was made.
func (r *fileRun) remains(err error) error {
	trees := map[int]*tree.Stack{r.at: r.failed}
	for i, st := range r.done {
		trees[i-len(r.in)] = st
	}
	rem := remains(err, trees)
	rem.Action = r.at
	return rem
}

func (r *fileRun) outputs(ctx context.Context, emit func(int, *tree.Stack)) error {
	for i, a := range r.op.Actions {
		if a.Out < 0 {
			continue
		}
		st, err := r.result(ctx, len(r.in)+i)
		if err != nil {
			return err
		}
		emit(a.Out, st)
	}
	return nil
}

// result makes the tree that an action's result is: one layer, with all that the actions up to it wrote on top of the
// input that the first of them changes. Actions that lead to several results run for each.
func (r *fileRun) result(ctx context.Context, at int) (*tree.Stack, error) {
	if st := r.done[at]; st != nil {
		return st, nil
	}
	var chain []int
	base := at
	for ; base >= len(r.in); base = r.op.Actions[chain[0]].In {
		chain = append([]int{base - len(r.in)}, chain...)
	}
	draft, err := r.store.NewLayer(ctx)
	if err != nil {
		return nil, err
	}
	st, err := r.layer(ctx, base, chain, draft)
	if err != nil {
		if r.failed == nil || !slices.Contains(r.failed.IDs(), draft.ID) {
			draft.Discard()
		}
		return nil, err
	}
	r.done[at] = st
	return st, nil
}

func (r *fileRun) layer(ctx context.Context, base int, chain []int, draft *store.Draft) (*tree.Stack, error) {
	ids, local, err := r.base(base)
	if err != nil {
		return nil, err
	}
	below := tree.NewStack(r.store, ids)
	defer below.Release()
	u, err := tree.NewUpper(below, draft)
	if err != nil {
		return nil, err
	}
	defer u.Close()
	key := r.lineage(base, chain)
	earlier := tree.FindLineage(r.store, key)
	defer earlier.Close()
	l := &fileLayer{run: r, u: u, earlier: earlier}
	if local != nil {
		if err := l.fill(ctx, local); err != nil {
			return nil, err
		}
	}
	for _, a := range chain {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		if err := l.do(ctx, &r.op.Actions[a]); err != nil {
			if r.env.Keep && r.failed == nil {
				r.failed, r.at = tree.NewDraftStack(r.store, ids, draft, store.LayerInfo{}), a
			}
			return nil, err
		}
	}
	r.tell(u, earlier)
	_ = u.SaveLineage(r.store, key) // a cache: without it the next copy copies everything
	info, err := u.Finish(ctx)
	if err != nil {
		return nil, err
	}
	return tree.NewDraftStack(r.store, ids, draft, info), nil
}

// tellFiles is how many changed files are named.
const tellFiles = 4

// tell says what the copy has otherwise than the time before.
func (r *fileRun) tell(u *tree.Upper, earlier *tree.Lineage) {
	first, n := u.Changes(earlier, tellFiles)
	if n == 0 || r.env.Changed == nil {
		return
	}
	var parts []string
	for _, c := range first {
		parts = append(parts, fmt.Sprintf("%s (%s)", c.Path, c.What))
	}
	if n > len(first) {
		parts = append(parts, fmt.Sprintf("%d more", n-len(first)))
	}
	r.env.Changed(strings.Join(parts, ", "))
}

// base returns the layers of the tree that is changed. A client's directory has none: it is copied first.
func (r *fileRun) base(i int) ([]store.LayerID, *tree.Local, error) {
	if i == graph.None || r.in[i] == nil {
		return nil, nil, nil
	}
	if l, ok := r.in[i].(*tree.Local); ok {
		return nil, l, nil
	}
	ids, err := stacked(r.in[i])
	return ids, nil, err
}

// lineage names what is the same for two runs of one step whose inputs changed in between.
func (r *fileRun) lineage(base int, chain []int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "file 1\n%d\n", base)
	for _, a := range chain {
		b.Write(graph.Canonical(&r.op.Actions[a]))
		b.WriteByte('\n')
	}
	for i, t := range r.in {
		if l, ok := t.(*tree.Local); ok {
			fmt.Fprintf(&b, "%d %s\n", i, l.Key())
		}
	}
	return b.String()
}

// picture returns the files of a tree to copy from.
func (r *fileRun) picture(ctx context.Context, i int) (files *tree.Files, local bool, err error) {
	var t tree.Tree
	switch {
	case i == graph.None || i < len(r.in) && r.in[i] == nil:
		t = tree.NewStack(r.store, nil)
	case i < len(r.in):
		t = r.in[i]
	default:
		if t, err = r.result(ctx, i); err != nil {
			return nil, false, err
		}
	}
	p, ok := t.(interface{ Files() (*tree.Files, error) })
	if !ok {
		return nil, false, diag.Errorf(diag.Internal, "%T cannot be copied from", t)
	}
	files, err = p.Files()
	_, local = t.(*tree.Local)
	return files, local, err
}

// fileLayer is a layer that actions write.
type fileLayer struct {
	run     *fileRun
	u       *tree.Upper
	earlier *tree.Lineage
}

func (l *fileLayer) fill(ctx context.Context, from *tree.Local) error {
	f, err := from.Files()
	if err != nil {
		return err
	}
	m, err := f.Pick(ctx, graph.Select{Path: "/"}, true)
	if err != nil {
		return err
	}
	return l.u.Copy(ctx, f, &m[0], "", tree.CopyOptions{Earlier: l.earlier})
}

func (l *fileLayer) do(ctx context.Context, a *graph.Action) error {
	own, err := l.owner(ctx, a)
	if err != nil {
		return err
	}
	switch {
	case a.Copy != nil:
		return l.copy(ctx, a, own)
	case a.Mkfile != nil:
		f := a.Mkfile
		return l.u.WriteFile(f.Path, f.Data, own.meta(f.Mode&0o777, f.Time))
	case a.Mkdir != nil:
		d := a.Mkdir
		if d.Parents {
			return l.u.MkdirAll(d.Path, own.meta(d.Mode&0o777, d.Time))
		}
		return l.u.Mkdir(d.Path, own.meta(d.Mode&0o777, d.Time))
	case a.Symlink != nil:
		return l.u.Symlink(a.Symlink.Target, a.Symlink.Path, own.meta(0o777, a.Symlink.Time))
	}
	return l.remove(a.Rm)
}

func (l *fileLayer) remove(rm *graph.Rm) error {
	if !rm.Wildcard {
		return l.u.Remove(rm.Path, rm.AllowNotFound)
	}
	names, err := l.u.Glob(path.Join("/", rm.Path))
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := l.u.Remove(n, rm.AllowNotFound); err != nil {
			return err
		}
	}
	return nil
}
