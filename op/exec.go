package op

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/proxy"
	"github.com/strata-build/strata/sandbox"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// ExecRunner runs commands: the graph.Exec vertices.
type ExecRunner struct {
	Sandbox sandbox.Runtime
	Store   *store.Store
	Live    func(context.Context, *sandbox.Spec) *sandbox.Live // makes the containers of clients
}

// ExecEnv is what a build gives to one command.
type ExecEnv struct {
	Session  session.Secrets               // secrets and ssh agents; nil = there are none
	Log      func(stream int, data []byte) // takes output as it comes, stream 1 or 2, one call at a time; data is the callee's to keep. Nil drops it
	Platform graph.Platform                // that the command is for; zero = this machine's
	// Allowed says by an error whether the build may have a network and a confinement. Nil allows the defaults, and no network.
	Allowed func(graph.Network, graph.Security) error
	// Devices returns the devices that the step gets of those that it asks for, or why it cannot have them. Nil refuses all.
	Devices func([]graph.Device) ([]graph.Device, error)
	Tenant  string // whose cache mounts are used
	// Known finds layers that a step which makes layers need not make again. Nil finds none.
	Known func(context.Context, *graph.Previous) ([]Known, error)
	// Renew says whether the cache mounts of a key shall begin anew. Nil lets them be.
	Renew func(key string) bool
	// Source is called with the content that a cache mount begins with. Nil drops it.
	Source func(m graph.Mount, content graph.Digest)
	// Restore gives an empty cache mount the content that it has elsewhere, owner and mode of the directory included. False: there is
	// none, and the directory is as it was. Nil knows of none.
	Restore func(ctx context.Context, id, dir string) (bool, error)
	Keep    bool         // a step that fails leaves what it has written: its error is a *Remains
	Proxy   *proxy.Proxy // of a step whose network is one
}

// Run runs the command with the inputs mounted and returns what the mounts with an output hold afterwards, by output
// index. The trees are stacks whose top layer is pending (see tree.Stack.Pending). A command that fails is a diag.Failed error with
// the last lines that it printed.
func (r *ExecRunner) Run(ctx context.Context, op *graph.Exec, in []tree.Tree, env ExecEnv) ([]tree.Tree, error) {
	if err := checkExec(op, len(in), env); err != nil {
		return nil, err
	}
	s := &execStep{store: r.Store, op: op, in: in, env: env, began: time.Now().Add(-coarse), outputs: make([]output, op.Outputs()), dropped: map[int]output{}}
	err := s.prepare(ctx)
	if err == nil {
		err = s.command(ctx, r.Sandbox)
		s.tellRequests()
	}
	if undo := s.undo(); err == nil {
		err = undo
	}
	if err != nil {
		return nil, s.failed(err)
	}
	for _, o := range s.dropped {
		o.discard()
	}
	return s.results(ctx)
}

// failed discards what the step has written, or makes the error hold it. Nothing may be mounted any more.
func (s *execStep) failed(err error) error {
	if !s.env.Keep {
		for _, o := range s.outputs {
			o.discard()
		}
		for _, o := range s.dropped {
			o.discard()
		}
		return err
	}
	trees := map[int]*tree.Stack{}
	for i, m := range s.op.Mounts {
		o, ok := s.dropped[i]
		if m.Output != graph.None {
			o, ok = s.outputs[m.Output], true
		}
		switch {
		case !ok:
		case o.draft != nil:
			trees[i] = tree.NewDraftStack(s.store, o.base, o.draft, store.LayerInfo{})
		default:
			o.discard() // it is as it was
		}
	}
	return remains(err, trees)
}

// checkExec refuses what the graph's types do not: indexes that lead nowhere, and rights that the build does not have.
func checkExec(op *graph.Exec, inputs int, env ExecEnv) error {
	if err := checkMounts(op, inputs); err != nil {
		return err
	}
	return env.allowed(op.Network, op.Security)
}

func checkMounts(op *graph.Exec, inputs int) error {
	root := false
	made := make([]int, op.Outputs())
	for _, m := range op.Mounts {
		if m.Input < graph.None || m.Input >= inputs || m.Output < graph.None {
			return diag.Errorf(diag.Invalid, "the mount at %q has input %d and output %d; the step has %d inputs", m.Target, m.Input, m.Output, inputs)
		}
		if m.Output != graph.None {
			made[m.Output]++
			if m.Type != graph.MountBind {
				return diag.Errorf(diag.Invalid, "the mount at %q is of type %s and cannot be an output", m.Target, m.Type)
			}
		}
		if m.Target == "/" {
			if root || m.Type != graph.MountBind {
				return diag.Errorf(diag.Invalid, "a step has one root, and it is a bind mount")
			}
			root = true
		}
	}
	if !root {
		return diag.Errorf(diag.Invalid, "the step has no root file system")
	}
	if i := slices.IndexFunc(made, func(n int) bool { return n != 1 }); i >= 0 {
		return diag.Errorf(diag.Invalid, "output %d of the step is made by %d mounts", i, made[i])
	}
	return nil
}

func (env *ExecEnv) allowed(n graph.Network, s graph.Security) error {
	if env.Allowed != nil {
		return env.Allowed(n, s)
	}
	if n.Direct() == graph.NetworkHost || s == graph.SecurityInsecure {
		return diag.Errorf(diag.Denied, "the step asks for the host's network or for no confinement, and the build may have neither")
	}
	return nil
}

// coarse is how much the clock of file systems may run behind: more than a tick of any kernel.
const coarse = 20 * time.Millisecond

// execStep is one run of a command.
type execStep struct {
	store *store.Store
	op    *graph.Exec
	in    []tree.Tree
	env   ExecEnv
	began time.Time // by the clock of file systems, which runs a little behind

	spec    sandbox.Spec
	dir     string // temporary
	mounted int
	outputs []output
	dropped map[int]output // of mounts that can be written and have no output, by the mounts' index
	absent  []string       // optional secrets that the client does not have
	undos   []func() error // in reverse order
}

// later remembers how to undo something.
func (s *execStep) later(f func() error) { s.undos = append(s.undos, f) }

func (s *execStep) undo() error {
	var errs []error
	for _, f := range slices.Backward(s.undos) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// prepare makes everything that the container is made of.
func (s *execStep) prepare(ctx context.Context) error {
	dir, cleanup, err := s.store.TempDir("exec-")
	if err != nil {
		return err
	}
	s.dir = dir
	s.later(func() error { cleanup(); return nil })
	devices, err := s.devices()
	if err != nil {
		return err
	}
	s.spec = sandbox.Spec{
		Args: s.op.Args, Env: withProxy(slices.Clone(s.op.Env), s.op.Proxy), Cwd: s.op.Cwd, User: s.op.User, Hostname: s.op.Hostname, Network: s.op.Network, Security: s.op.Security,
		ExtraHosts: s.op.ExtraHosts, Devices: devices, Limits: s.op.Limits, Client: s.env.Tenant,
	}
	if s.env.Proxy != nil {
		s.spec.Proxy = s.env.Proxy
	}
	caches, err := s.cacheMounts(ctx)
	if err != nil {
		return err
	}
	for i, m := range s.op.Mounts {
		if err := s.mount(ctx, i, m, caches[i]); err != nil {
			return err
		}
	}
	secrets, err := s.secretVars(ctx, s.op.SecretEnv)
	if err != nil {
		return err
	}
	s.spec.Env = append(s.spec.Env, secrets...)
	s.spec.Env = withDefault(s.spec.Env, "PATH", strings.TrimPrefix(DefaultPath, "PATH="))
	return nil
}

func (s *execStep) devices() ([]graph.Device, error) {
	switch {
	case len(s.op.Devices) == 0:
		return nil, nil
	case s.env.Devices == nil:
		return nil, diag.Errorf(diag.Denied, "the step asks for devices, and the build may have none")
	}
	return s.env.Devices(s.op.Devices)
}

// DefaultPath is for commands whose environment has no PATH.
const DefaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// mount adds mount i to the spec. Cache is the directory of a cache mount.
func (s *execStep) mount(ctx context.Context, i int, m graph.Mount, cache string) error {
	add := func(x sandbox.Mount) {
		x.Target, x.ReadOnly = m.Target, m.ReadOnly
		s.spec.Mounts = append(s.spec.Mounts, x)
	}
	switch m.Type {
	case graph.MountBind:
		return s.bind(ctx, i, m)
	case graph.MountCache:
		add(sandbox.Mount{Type: sandbox.Bind, Source: cache})
		return nil
	case graph.MountTmpfs:
		add(sandbox.Mount{Type: sandbox.Tmpfs, Size: m.Size, Options: []string{"nosuid", "nodev"}})
		return nil
	case graph.MountInput:
		return s.inputMount(ctx, m)
	case graph.MountSecret:
		data, ok, err := s.secret(ctx, m.ID, m.Optional)
		if ok {
			add(sandbox.Mount{Type: sandbox.Data, Data: data, UID: m.UID, GID: m.GID, Mode: m.Mode})
		}
		return err
	case graph.MountSSH:
		socket, err := s.agent(ctx, m)
		if socket != "" {
			add(sandbox.Mount{Type: sandbox.Bind, Source: socket})
			s.spec.Env = withDefault(s.spec.Env, "SSH_AUTH_SOCK", m.Target)
		}
		return err
	}
	return diag.Errorf(diag.Invalid, "unknown mount type %q", m.Type)
}

// tempDir makes a directory below the step's own.
func (s *execStep) tempDir() (string, error) {
	s.mounted++
	dir := filepath.Join(s.dir, strconv.Itoa(s.mounted))
	return dir, os.Mkdir(dir, 0o755)
}

// withDefault adds a variable that is not set.
func withDefault(env []string, name, value string) []string {
	if slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") }) {
		return env
	}
	return append(env, name+"="+value)
}

// withProxy adds the proxy's variables, in both cases, where the step does not set them itself.
func withProxy(env []string, p *graph.ProxyEnv) []string {
	if p == nil {
		return env
	}
	for _, v := range []struct{ name, value string }{{"HTTP_PROXY", p.HTTP}, {"HTTPS_PROXY", p.HTTPS}, {"FTP_PROXY", p.FTP}, {"NO_PROXY", p.No}, {"ALL_PROXY", p.All}} {
		if v.value != "" {
			env = withDefault(env, v.name, v.value)
			env = withDefault(env, strings.ToLower(v.name), v.value)
		}
	}
	return env
}
