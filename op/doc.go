// Package op does the work of the graph's vertices that make new trees of others: commands ([ExecRunner]), file actions
// ([FileRunner]), stacking ([Merge]) and comparing ([Diff]). It knows nothing of keys, caching or order: a runner gets the trees that a
// vertex takes and returns those that it makes.
//
// A tree is a stack of layers in the store (package tree). What a runner writes goes into a draft, a new layer on top
// of one of its inputs, which comes back pending: the caller commits it together with the result. A runner that fails leaves no draft,
// no mount and no process.
//
//	runner := &op.ExecRunner{Sandbox: sb, Store: st}
//	out, err := runner.Run(ctx, &graph.Exec{
//		Args:   []string{"/bin/sh", "-c", "make"},
//		Mounts: []graph.Mount{{Type: graph.MountBind, Target: "/", Input: 0, Output: 0}},
//	}, []tree.Tree{base}, op.ExecEnv{Session: client, Log: print})
//	draft, info := out[0].(*tree.Stack).Pending()
package op
