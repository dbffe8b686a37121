package engine

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/op"
	"github.com/strata-build/strata/sandbox"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/tree"
)

// Native is the platform of this machine.
func Native() graph.Platform { return graph.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH} }

// Run runs a command in a container of an image and returns its exit code. What the command writes is thrown away.
func (e *Engine) Run(ctx context.Context, r RunRequest, s session.Session, sink event.Sink) (code int, err error) {
	b := e.newBuild(ctx, JobOptions{Client: owner(), Session: s, Sink: sink})
	defer b.close()
	p := r.Platform
	if p.OS == "" {
		p = Native()
	}
	ref, err := e.runRef(r.Image)
	if err != nil {
		return 0, err
	}
	op := &graph.Image{Ref: ref}
	img, err := b.images.Resolve(ctx, op, p)
	if err != nil {
		return 0, err
	}
	trees, err := b.work.Solve(graph.Edge{V: graph.New(op, nil, graph.On(p), graph.Named("pull %s", familiar(ref)))})
	if err != nil {
		return 0, err
	}
	spec, err := runSpec(&r, img.Config)
	if err != nil {
		return 0, err
	}
	ids, _ := trees[0].Layers()
	root, unmount, err := e.scratchRoot(ctx, tree.NewStack(e.store, ids))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	spec.RootFS = root
	closeVolumes, err := addVolumes(spec, img.Config.Config.Volumes)
	defer closeVolumes()
	if err != nil {
		return 0, err
	}
	exit, err := e.steps.Run(ctx, spec)
	if code, ok := sandbox.StartCode(err); ok && r.Stderr != nil {
		var text bytes.Buffer
		diag.Render(&text, err)
		out, to := text.Bytes(), r.Stderr
		if r.TTY {
			out, to = bytes.ReplaceAll(out, []byte("\n"), []byte("\r\n")), r.Stdout
		}
		_, err := to.Write(out)
		return code, err
	}
	if err != nil {
		return 0, err
	}
	return exit.Code, nil
}

// runRef completes an image's name, or finds the name of an image given by its ID.
func (e *Engine) runRef(name string) (string, error) {
	im, err := e.image(name)
	if err == nil {
		return im.Name, nil
	}
	return name, nil // the source asks the registry, and says what is wrong with the name
}

// scratchRoot mounts a tree with a layer on top that is thrown away.
func (e *Engine) scratchRoot(ctx context.Context, t *tree.Stack) (dir string, unmount func() error, err error) {
	draft, err := e.store.NewLayer(ctx)
	if err != nil {
		t.Release()
		return "", nil, err
	}
	dir, cleanup, err := e.store.TempDir("run-")
	if err != nil {
		draft.Discard()
		t.Release()
		return "", nil, err
	}
	undo, err := t.Mount(ctx, dir, draft)
	end := func() {
		cleanup()
		draft.Discard()
		t.Release()
	}
	if err != nil {
		end()
		return "", nil, err
	}
	return dir, func() error {
		err := undo()
		end()
		return err
	}, nil
}

// runSpec says how a container of an image runs.
func runSpec(r *RunRequest, c *image.Config) (*sandbox.Spec, error) {
	entry, args := c.Config.Entrypoint, r.Args
	if r.Entrypoint != nil {
		entry = r.Entrypoint
	} else if len(args) == 0 {
		args = c.Config.Cmd
	}
	argv := append(append([]string(nil), entry...), args...)
	if len(argv) == 0 || argv[0] == "" {
		return nil, diag.Errorf(diag.Invalid, "%s has neither a command nor an entrypoint", r.Image).WithHint("say what to run: strata run %s COMMAND", r.Image)
	}
	spec := &sandbox.Spec{
		Args: argv, Env: image.MergeEnv(image.MergeEnv([]string{op.DefaultPath}, c.Config.Env), r.Env), Cwd: cmp.Or(r.Cwd, c.Config.WorkingDir), User: cmp.Or(r.User, c.Config.User),
		Hostname: cmp.Or(r.Hostname, "strata"), Network: r.Network, ExtraHosts: r.ExtraHosts, Limits: r.Limits, ReadOnlyRoot: r.ReadOnly,
		Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, TTY: r.TTY, Resize: r.Resize,
	}
	if r.TTY {
		spec.Env = image.MergeEnv([]string{"TERM=xterm"}, spec.Env)
	}
	for _, m := range r.Binds {
		spec.Mounts = append(spec.Mounts, sandbox.Mount{Type: sandbox.Bind, Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly})
	}
	return spec, nil
}

// addVolumes makes the directories that the image declares as volumes, and lets the command write to them even if the root
// file system is read-only. What is in them goes with the container.
func addVolumes(spec *sandbox.Spec, volumes map[string]struct{}) (closeAll func(), err error) {
	var open []*os.File
	closeAll = func() {
		for _, f := range open {
			_ = f.Close()
		}
	}
	for _, at := range slices.Sorted(maps.Keys(volumes)) {
		if slices.ContainsFunc(spec.Mounts, func(m sandbox.Mount) bool { return path.Clean(m.Target) == path.Clean(at) }) {
			continue
		}
		f, err := sandbox.OpenInRoot(spec.RootFS, at, unix.O_PATH|unix.O_DIRECTORY)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			spec.Mounts = append(spec.Mounts, sandbox.Mount{Type: sandbox.Tmpfs, Target: at, Mode: 0o755})
		case err != nil:
			return closeAll, diag.Errorf(diag.Invalid, "the volume %s: %w", at, err)
		default:
			open = append(open, f)
			if spec.ReadOnlyRoot {
				spec.Mounts = append(spec.Mounts, sandbox.Mount{Type: sandbox.Bind, File: f, Target: at})
			}
		}
	}
	return closeAll, nil
}
