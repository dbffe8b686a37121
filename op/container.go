package op

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/sandbox"
	"github.com/strata-build/strata/tree"
)

// Container is a container with the mounts of a step, in which a client runs processes of its own. What they write to trees is
// thrown away.
type Container struct {
	step *execStep
	once sandbox.Runtime
	live *sandbox.Live
}

// Process is a program for a container. The meaning of its fields is graph.Exec's and sandbox.Process's.
type Process struct {
	sandbox.Process
	SecretEnv []graph.SecretEnv
}

// Container makes a container of a step that has no outputs, whose command does not matter, and files in memory besides. It
// lives until Close or the end of ctx.
func (r *ExecRunner) Container(ctx context.Context, op *graph.Exec, in []tree.Tree, env ExecEnv, files []sandbox.Mount) (*Container, error) {
	if err := checkMounts(op, len(in)); err != nil {
		return nil, err
	}
	if op.Outputs() > 0 {
		return nil, diag.Errorf(diag.Invalid, "what is written in a container cannot be kept")
	}
	c := &Container{once: r.Sandbox, step: &execStep{store: r.Store, op: op, in: in, env: env, dropped: map[int]output{}}}
	if err := c.step.prepare(ctx); err != nil {
		_ = c.undo() // the first error says more
		return nil, err
	}
	c.step.spec.Mounts = append(c.step.spec.Mounts, files...)
	c.live = r.Live(ctx, &c.step.spec)
	return c, nil
}

// Close ends all processes and removes what the container was made of.
func (c *Container) Close() error {
	c.live.Close()
	return c.undo()
}

func (c *Container) undo() error {
	err := c.step.undo()
	for _, o := range c.step.dropped {
		o.discard()
	}
	return err
}

// Start begins a process, which may be refused as a step would be: then, as for all errors, wait tells why. A process that
// does not succeed is no error.
func (c *Container) Start(ctx context.Context, p Process) (wait func() (*sandbox.Exit, error)) {
	refuse := func(err error) func() (*sandbox.Exit, error) {
		if p.Started != nil {
			p.Started()
		}
		return func() (*sandbox.Exit, error) { return nil, err }
	}
	if err := c.fill(ctx, &p); err != nil {
		return refuse(err)
	}
	return c.live.Start(&p.Process)
}

// Run runs the only process of a container and waits for its end.
func (c *Container) Run(ctx context.Context, p Process) (*sandbox.Exit, error) {
	if err := c.fill(ctx, &p); err != nil {
		return nil, err
	}
	spec := c.step.spec
	spec.Args, spec.Env, spec.Cwd, spec.User, spec.Security = p.Args, p.Env, p.Cwd, p.User, p.Security
	spec.Stdin, spec.Stdout, spec.Stderr = p.Stdin, p.Stdout, p.Stderr
	return c.once.Run(ctx, &spec)
}

// fill completes a process' environment, unless the build may not have it.
func (c *Container) fill(ctx context.Context, p *Process) error {
	if err := c.step.env.allowed(c.step.op.Network, p.Security); err != nil {
		return err
	}
	secrets, err := c.step.secretVars(ctx, p.SecretEnv)
	if err != nil {
		return err
	}
	env := append(slices.Clone(p.Env), secrets...)
	for _, e := range c.step.spec.Env { // what mounts have set, and the search path
		name, value, _ := strings.Cut(e, "=")
		env = withDefault(env, name, value)
	}
	if p.TTY {
		env = withDefault(env, "TERM", "xterm")
	}
	p.Env = env
	return nil
}

// Open finds a file of a mount, by its index in the step, without opening it for anything (O_PATH). Links are followed within
// the mount, the last one only if follow is set.
func (c *Container) Open(mount int, name string, follow bool) (*os.File, error) {
	if mount < 0 || mount >= len(c.step.op.Mounts) {
		return nil, diag.Errorf(diag.Invalid, "mount index %d is out of bounds (%d available)", mount, len(c.step.op.Mounts))
	}
	root, err := c.live.OpenMount(c.step.op.Mounts[mount].Target)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	flags := unix.O_PATH
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	f, err := sandbox.OpenInRoot(fdName(root), cleanSource(name), flags)
	var cause syscall.Errno
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, diag.Errorf(diag.NotFound, "open %s: %w", name, syscall.ENOENT)
	case errors.As(err, &cause):
		return nil, diag.Errorf(diag.Invalid, "open %s: %w", name, cause)
	}
	return f, err
}

// OpenFile opens a regular file of a mount to read it. Nothing else is opened, not even for a moment: devices and FIFOs do
// things when they are.
func (c *Container) OpenFile(mount int, name string) (*os.File, error) {
	f, err := c.Open(mount, name, true)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, diag.Errorf(diag.Invalid, "open %s: not a regular file", name)
	}
	return os.Open(fdName(f))
}

// ReadDir lists a directory of a mount.
func (c *Container) ReadDir(mount int, name string) ([]fs.DirEntry, error) {
	f, err := c.Open(mount, name, true)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return os.ReadDir(fdName(f))
}

// fdName names an open file for calls that want a path.
func fdName(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
