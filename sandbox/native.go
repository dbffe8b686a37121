package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/sandbox/bpf"
	"github.com/strata-build/strata/sandbox/reexec"
	"github.com/strata-build/strata/sandbox/spawn"
)

// native runs containers with system calls of this process. It takes the same configuration as an OCI runtime, and does the
// same with it, or refuses it; see docs/adr/010-built-in-runtime.md.
type native struct {
	group   string   // control group above those of steps
	self    *os.File // this process, whose namespaces threads go back to
	devices devicePrograms
	groups  groupPool
	pids    int64 // limit of processes of a step that asks for none

	mu      sync.Mutex
	profile *specs.LinuxSeccomp // the last one that was compiled
	filter  []unix.SockFilter
}

// newNative makes the built-in runtime, or says what this machine lacks for it.
func newNative(group string) (*native, error) {
	if !spawn.Available() {
		return nil, errors.New("the kernel has no clone3")
	}
	// An empty change of nothing: the calls that came last of those that are needed, with Linux 5.12.
	if err := unix.MountSetattr(-1, "", 0, &unix.MountAttr{}); errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("the kernel has no mount_setattr: %w", err)
	}
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil || strings.Join(strings.Fields(string(ids)), " ") != "0 0 4294967295" {
		return nil, errors.New("this process is in a user namespace")
	}
	if err := reexec.Check(); err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return &native{group: group, self: os.NewFile(uintptr(fd), "self")}, nil
}

// BuiltIn reports, by an error, why this machine cannot use the built-in runtime.
func BuiltIn() error {
	n, err := newNative("")
	if err == nil {
		n.close()
	}
	return err
}

func (n *native) close() {
	n.self.Close()
	n.devices.close()
}

// accepts reports, by an error, what it does not know of a configuration.
func (n *native) accepts(s *specs.Spec) error {
	if err := acceptsFields(s); err != nil {
		return err
	}
	for _, m := range s.Mounts {
		if !slices.Contains(mountTypes, m.Type) || len(m.UIDMappings)+len(m.GIDMappings) > 0 {
			return fmt.Errorf("a mount of type %s", m.Type)
		}
		if at := m.Destination; below(at, "/proc") && m.Type != "proc" || below(at, "/sys") && m.Type != "sysfs" && m.Type != "cgroup" {
			return fmt.Errorf("a mount at %s", at)
		}
		if _, err := parseOptions(m); err != nil {
			return err
		}
	}
	for _, d := range s.Linux.Devices {
		if d.Type != "c" && d.Type != "b" || !below(d.Path, "/dev") {
			return fmt.Errorf("the device %s", d.Path)
		}
	}
	if err := bpf.CheckDevices(s.Linux.Resources.Devices); err != nil {
		return err
	}
	if s.Linux.Seccomp == nil {
		return nil
	}
	_, err := n.compile(s.Linux.Seccomp)
	return err
}

// acceptsFields looks for fields that nothing here reads, by clearing those that something does.
func acceptsFields(s *specs.Spec) error {
	if s.Process == nil || s.Root == nil || s.Linux == nil || s.Linux.Resources == nil || s.Process.Capabilities == nil {
		return errors.New("an incomplete configuration")
	}
	rest, process, linux, caps, res := *s, *s.Process, *s.Linux, *s.Process.Capabilities, *s.Linux.Resources
	var named []specs.LinuxNamespaceType
	for _, ns := range linux.Namespaces {
		if ns.Path != "" && ns.Type != specs.NetworkNamespace {
			return fmt.Errorf("a namespace of type %s that exists", ns.Type)
		}
		named = append(named, ns.Type)
	}
	for _, want := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace} {
		if !slices.Contains(named, want) {
			return fmt.Errorf("no namespace of type %s", want)
		}
	}
	if slices.Contains(named, specs.UserNamespace) || slices.Contains(named, specs.TimeNamespace) {
		return errors.New("a user or time namespace")
	}
	rest.Version, rest.Root, rest.Process, rest.Hostname, rest.Mounts, rest.Linux = "", nil, nil, "", nil, nil
	process.User.UID, process.User.GID, process.User.AdditionalGids = 0, 0, nil
	process.Args, process.Env, process.Cwd, process.Capabilities, process.Rlimits, process.NoNewPrivileges = nil, nil, "", nil, nil, false
	process.OOMScoreAdj, process.ApparmorProfile = nil, ""
	caps.Bounding, caps.Effective, caps.Permitted, caps.Inheritable = nil, nil, nil, nil
	linux.CgroupsPath, linux.Namespaces, linux.Devices, linux.Resources = "", nil, nil, nil
	linux.Seccomp, linux.MaskedPaths, linux.ReadonlyPaths = nil, nil, nil
	res.Devices, res.Memory, res.CPU, res.Pids = nil, nil, nil, nil
	var memory specs.LinuxMemory
	var cpu specs.LinuxCPU
	if m := s.Linux.Resources.Memory; m != nil {
		memory = *m
		memory.Limit, memory.Swap = nil, nil
	}
	if c := s.Linux.Resources.CPU; c != nil {
		cpu = *c
		cpu.Shares, cpu.Period, cpu.Quota, cpu.Cpus, cpu.Mems = nil, nil, nil, "", ""
	}
	for _, left := range []any{rest, process, caps, linux, res, memory, cpu} {
		if v := reflect.ValueOf(left); !v.IsZero() {
			for i := range v.NumField() {
				if !v.Field(i).IsZero() {
					return fmt.Errorf("%s.%s in the configuration", v.Type().Name(), v.Type().Field(i).Name)
				}
			}
		}
	}
	return nil
}

// compile makes the filter of a profile. One is enough to remember: steps have the same.
func (n *native) compile(p *specs.LinuxSeccomp) ([]unix.SockFilter, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.profile == p {
		return n.filter, nil
	}
	filter, err := bpf.Seccomp(p, runtime.GOARCH)
	if err == nil {
		n.profile, n.filter = p, filter
	}
	return filter, err
}

// run runs the container of a configuration that it accepts.
func (n *native) run(ctx context.Context, c *container, s *specs.Spec) (*Exit, error) {
	group, err := n.enter(c, s)
	if err != nil {
		_ = c.cgroups.remove(c.cgroup)
		return nil, diag.Errorf(diag.Unavailable, "cannot make the control group of the step: %w", err)
	}
	defer group.close()
	stdio, err := connect(c.spec, s.Process.User.UID)
	if err != nil {
		return nil, errors.Join(diag.Errorf(diag.Unavailable, "cannot connect the step's output: %w", err), c.cgroups.remove(c.cgroup))
	}
	j := &jail{native: n, spec: s, cgroups: c.cgroups, group: group, stdio: stdio, exit: make(chan ended, 1)}
	j.pidfd.Store(-1)
	onThread(j.run)
	end := j.wait(ctx, c)
	copied := stdio.finish()
	if fd := j.pidfd.Load(); fd >= 0 {
		unix.Close(int(fd))
	}
	group.close()
	oom := c.cgroups.oomKilled(c.cgroup)
	if err := n.leave(c, s, end.err == nil && !oom && ctx.Err() == nil); err != nil && ctx.Err() == nil {
		return nil, diag.Errorf(diag.Internal, "cannot clean up after the step: %w", err)
	}
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case end.err != nil:
		return nil, c.nativeError(end.err)
	case copied != nil:
		return nil, diag.Errorf(diag.Unavailable, "cannot pass on the output of the step: %w", copied)
	}
	return exitOf(end.status, oom), nil
}

// nativeError explains why a container did not start.
func (c *container) nativeError(err error) error {
	var e *spawn.Error
	if errors.As(err, &e) && strings.HasPrefix(e.What, "exec ") || errors.Is(err, errNoProgram) {
		return c.startError(err.Error())
	}
	return diag.Errorf(diag.Unavailable, "cannot start the step: %w", err)
}

func exitOf(ws unix.WaitStatus, oom bool) *Exit {
	code := ws.ExitStatus()
	if ws.Signaled() {
		code = 128 + int(ws.Signal())
	}
	if code == 0 {
		return &Exit{}
	}
	e := &Exit{Code: code, OOMKilled: oom}
	if code > 128 && code <= 128+64 {
		e.Signal = syscall.Signal(code - 128)
	}
	return e
}

// ended is how a container ended.
type ended struct {
	status unix.WaitStatus
	err    error // there was none
}

// jail is one container while it runs.
type jail struct {
	*native
	spec    *specs.Spec
	cgroups *cgroups
	group   *joinable
	stdio   *stdio
	null    *os.File // what masks are made of, while the container starts
	pidfd   atomic.Int32
	exit    chan ended
}

// run makes the container and waits for its end. It has a thread for itself, which ends with it: the kernel kills the container's
// first process with the thread, and so with this process.
func (j *jail) run() {
	pid, err := j.start()
	// The container's mounts must go with its last process, not with this thread.
	if back := unix.Setns(int(j.self.Fd()), unix.CLONE_NEWNS); err == nil && back != nil {
		err = os.NewSyscallError("setns", back)
		unix.PidfdSendSignal(int(j.pidfd.Load()), unix.SIGKILL, nil, 0)
	}
	j.stdio.started()
	if pid == 0 {
		j.exit <- ended{err: err}
		return
	}
	var ws unix.WaitStatus
	for {
		if _, werr := unix.Wait4(pid, &ws, 0, nil); !errors.Is(werr, unix.EINTR) {
			j.exit <- ended{status: ws, err: errors.Join(err, os.NewSyscallError("wait4", werr))}
			return
		}
	}
}

// wait waits for the end, and brings it about when ctx ends.
func (j *jail) wait(ctx context.Context, c *container) ended {
	select {
	case end := <-j.exit:
		return end
	case <-ctx.Done():
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if fd := j.pidfd.Load(); fd >= 0 {
			unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0)
		}
		c.cgroups.kill(c.cgroup)
		select {
		case end := <-j.exit:
			return end
		case <-time.After(pause):
		}
	}
}

// onThread runs f in a goroutine with a thread that nothing else runs on, before or after. The process's main thread is not
// given away: /proc/self is about it.
func onThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f() // a goroutine that ends while it is locked takes its thread along
			return
		}
		elsewhere := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(elsewhere)
			f()
		}()
		<-elsewhere
		runtime.UnlockOSThread()
	}()
}
