package sandbox

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// Live is a container in which a client starts processes one after another. The first is its process 1: when that ends, all
// of them end, and no other can be started. Its methods may be called at the same time.
//
//	l := sb.NewLive(ctx, &sandbox.Spec{RootFS: "/mnt/debian"})
//	defer l.Close()
//	exit, err := l.Start(&sandbox.Process{Args: []string{"sh"}, TTY: true, Stdin: in, Stdout: out})()
type Live struct {
	s      *Sandbox
	base   Spec
	ctx    context.Context
	cancel context.CancelCauseFunc
	runs   sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	begun   bool          // the first process has been asked for
	running chan struct{} // closed when it runs, or cannot
	runtime *runc
	box     *container // of the first process; nil = it does not run
	process *specs.Process
	execs   int
	others  sync.WaitGroup // processes that are not the first
}

// Process is a program to run in a live container. The meaning of its fields is Spec's.
type Process struct {
	Args []string
	Env  []string
	Cwd  string
	User string
	// Security is that of the container if the process is the first one, and has no meaning for the others.
	Security graph.Security

	Stdin          io.Reader
	Stdout, Stderr io.Writer
	TTY            bool
	Resize         <-chan WinSize
	Signals        <-chan syscall.Signal // sent to the process as they come
	// Started, if set, is called once: when the container runs, in which the process is about to be started, or when it is known
	// that the process never will. For the first process it is when that runs itself.
	Started func()
}

// NewLive returns a container that lives until Close or the end of ctx. Of the spec, what concerns a process is given by
// each Process instead. Nothing is made before the first one.
func (s *Sandbox) NewLive(ctx context.Context, spec *Spec) *Live {
	l := &Live{s: s, base: *spec, running: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancelCause(ctx)
	return l
}

// Close ends all processes and waits until nothing is left of the container.
func (l *Live) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.cancel(context.Canceled)
	l.runs.Wait()
}

// Start begins a process. The function that it returns waits for its end; the errors are those of Sandbox.Run.
func (l *Live) Start(p *Process) (wait func() (*Exit, error)) {
	started := sync.OnceFunc(func() {
		if p.Started != nil {
			p.Started()
		}
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.ctx.Err() != nil {
		started()
		return func() (*Exit, error) { return nil, errClosed }
	}
	run := l.exec
	if !l.begun {
		run, l.begun = l.first, true
	}
	var exit *Exit
	var err error
	done := make(chan struct{})
	l.runs.Go(func() {
		defer close(done)
		defer started()
		exit, err = run(p, started)
	})
	return func() (*Exit, error) {
		<-done
		return exit, err
	}
}

var errClosed = diag.Errorf(diag.Canceled, "the container is closed: %w", context.Canceled)

// first runs process 1, and with it the container.
func (l *Live) first(p *Process, started func()) (*Exit, error) {
	opened := sync.OnceFunc(func() { close(l.running) })
	defer opened()
	spec := l.base
	spec.Args, spec.Env, spec.Cwd, spec.User, spec.Security = p.Args, p.Env, p.Cwd, p.User, p.Security
	spec.Stdin, spec.Stdout, spec.Stderr, spec.TTY, spec.Resize = p.Stdin, p.Stdout, p.Stderr, p.TTY, p.Resize
	spec.live = func(r *runc, c *container, oci *specs.Spec) (*Exit, error) {
		c.pidFile = c.bundle.file("pid")
		ended := make(chan struct{})
		defer close(ended)
		go c.follow(p.Signals, ended, func() {
			l.mu.Lock()
			l.runtime, l.box, l.process = r, c, oci.Process
			l.mu.Unlock()
			opened()
			started()
		})
		exit, err := r.run(l.ctx, c)
		l.mu.Lock()
		l.box = nil
		l.mu.Unlock()
		l.others.Wait() // they have ended with the first one, and are about to tell so
		return exit, err
	}
	return l.s.Run(l.ctx, &spec)
}

// exec runs another process in the running container.
func (l *Live) exec(p *Process, started func()) (*Exit, error) {
	select {
	case <-l.running:
	case <-l.ctx.Done():
		return nil, context.Cause(l.ctx)
	}
	l.mu.Lock()
	box, proc := l.box, l.process
	l.execs++
	n := strconv.Itoa(l.execs)
	if box != nil {
		l.others.Add(1)
	}
	l.mu.Unlock()
	if box == nil {
		return nil, diag.Errorf(diag.Failed, "the container does not run any more: its first process has ended")
	}
	defer l.others.Done()
	spec := *box.spec
	spec.Args, spec.Env, spec.Cwd, spec.User = p.Args, p.Env, p.Cwd, p.User
	if spec.Network.Direct() != spec.Network {
		spec.Env = replaceEnv(p.Env, proxyVars(box.spec.Env))
	}
	spec.Stdin, spec.Stdout, spec.Stderr, spec.TTY, spec.Resize = p.Stdin, p.Stdout, p.Stderr, p.TTY, p.Resize
	normal, err := spec.normal()
	if err != nil {
		return nil, err
	}
	c := &container{
		bundle: box.bundle, cgroup: box.cgroup, cgroups: box.cgroups, spec: normal, started: make(chan struct{}),
		log: box.bundle.file("exec-" + n + ".json"), pidFile: box.bundle.file("pid-" + n),
	}
	user, err := ResolveUser(normal.RootFS, normal.User)
	if err != nil {
		return nil, err
	}
	file, err := c.writeProcess("process-"+n+".json", proc, user)
	if err != nil {
		return nil, diag.Errorf(diag.Unavailable, "cannot prepare the process: %w", err)
	}
	ended := make(chan struct{})
	defer close(ended)
	started()
	go c.follow(p.Signals, ended, func() {})
	return l.runtime.exec(l.ctx, c, file)
}

// writeProcess writes what the runtime is to run: the rights of the container's first process, the rest of this one's.
func (c *container) writeProcess(name string, first *specs.Process, user User) (string, error) {
	p := *first
	p.Terminal, p.ConsoleSize, p.Args, p.Cwd = c.spec.TTY, nil, c.spec.Args, c.spec.Cwd
	p.Env = environment(c.spec.Env, user.Home)
	p.User = specs.User{UID: user.UID, GID: user.GID, AdditionalGids: withGroup(user.Groups, user.GID)}
	data, err := json.Marshal(&p)
	if err != nil {
		return "", err
	}
	file := c.bundle.file(name)
	return file, c.bundle.writeSecret(name, data)
}

// follow waits for the process to run, tells it, and passes signals on until it has ended. Runtimes tell the id of a process in
// a file, which appears when the process runs.
func (c *container) follow(signals <-chan syscall.Signal, ended <-chan struct{}, runs func()) {
	pid := 0
	for pause := time.Millisecond; pid == 0; pause = min(2*pause, 20*time.Millisecond) {
		select {
		case <-ended:
			return
		case <-time.After(pause):
		}
		data, _ := os.ReadFile(c.pidFile)
		pid, _ = strconv.Atoi(string(data))
	}
	// The descriptor stands for this process alone, should it end and its id be given to another one.
	fd, err := unix.PidfdOpen(pid, 0)
	runs()
	if err != nil {
		return
	}
	defer unix.Close(fd)
	for {
		select {
		case sig, ok := <-signals:
			if !ok {
				signals = nil
				continue
			}
			_ = unix.PidfdSendSignal(fd, sig, nil, 0) // it may have ended
		case <-ended:
			return
		}
	}
}

// exec runs a process in a container that runs.
func (r *runc) exec(ctx context.Context, c *container, process string) (*Exit, error) {
	cmd := r.command(c, "exec", "--process", process)
	finish, err := c.attach(cmd)
	if err != nil {
		return nil, err
	}
	err = r.wait(ctx, cmd, c)
	finish()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return c.result(err, false)
}

// hostPath returns where on this machine something of the container is: what a mount shows.
func (m *Mount) hostPath() (string, bool) {
	switch {
	case m.Type != Bind:
		return "", false
	case m.File != nil:
		return fdPath(m.File.Fd()), true
	}
	return m.Source, true
}

// OpenMount opens what a live container shows at a mount target, "/" being its root file system; what is mounted below it
// is not there. It works as long as the container is not closed.
func (l *Live) OpenMount(target string) (*os.File, error) {
	at := l.base.RootFS
	if cleanPath(target) != "/" {
		i := slices.IndexFunc(l.base.Mounts, func(m Mount) bool { return cleanPath(m.Target) == cleanPath(target) })
		ok := false
		if i >= 0 {
			at, ok = l.base.Mounts[i].hostPath()
		}
		if !ok {
			return nil, diag.Errorf(diag.Invalid, "the mount at %s has no files that can be read from outside", target)
		}
	}
	f, err := os.OpenFile(filepath.Clean(at), unix.O_PATH, 0)
	if err != nil {
		return nil, diag.Errorf(diag.Unavailable, "cannot open the mount at %s: %w", target, err)
	}
	return f, nil
}
