package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/span"
)

// Options configure a Sandbox.
type Options struct {
	Root    string // state directory, one process at a time; best on a file system in memory
	Binary  string // a name or a path of runc or something with its command line; "" = the built-in runtime, and runc for the rest
	Network NetworkConfig
	Devices Devices
	Parents []string // control groups that may be, or be above, the parent that a step names; "/" = any
	OldRunc bool     // a runc with known ways out of its containers may be used
	Guarded bool     // a process ends steps that outlive this one; the program calls Helper
	Steps   Steps
	Log     *slog.Logger
	Warn    func(string) // what a user should know, such as a missing network; nil = Log
}

// Sandbox is a Runtime that makes containers itself, or has an OCI runtime do it by its command line, made for runc.
type Sandbox struct {
	root    string
	owner   string
	log     *slog.Logger
	net     *network
	binary  string // of the OCI runtime
	forced  bool   // it runs all steps
	devices Devices
	confine Steps
	warn    func(string)
	ids     atomic.Int64
	started string // part of every id, so that none comes twice

	guarded        bool
	guardian       guardian
	allowedParents []string
	parents        parents
	mountPoints    mountPoints
	busy           busy
	oldRunc        bool

	mu     sync.Mutex // of prepare and outside
	host   *host
	native *native // nil = it cannot be used
	lacks  error   // why not; nil = it was not asked for
	runc   *runc   // nil = not found yet
}

var _ Runtime = (*Sandbox)(nil)

// New makes a sandbox. It does not need root or a runtime yet: Run says what is missing.
func New(opt Options) (*Sandbox, error) {
	root, err := filepath.Abs(opt.Root)
	if err != nil || opt.Root == "" {
		return nil, diag.Errorf(diag.Invalid, "the sandbox needs a state directory")
	}
	if root, err = realDir(root); err != nil {
		return nil, diag.Errorf(diag.Unavailable, "the sandbox's state directory: %w", err)
	}
	s := &Sandbox{
		root: root, owner: ownerOf(root), log: opt.Log, binary: opt.Binary, forced: opt.Binary != "", devices: opt.Devices, guarded: opt.Guarded, allowedParents: opt.Parents, oldRunc: opt.OldRunc,
		started: strconv.FormatInt(time.Now().UnixMilli(), 36),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.binary == "" {
		s.binary = "runc"
	}
	warn := opt.Warn
	if warn == nil {
		warn = func(msg string) { s.log.Warn(msg) }
	}
	s.warn = warn
	if s.confine, err = opt.Steps.normal(); err != nil {
		return nil, err
	}
	if s.net, err = newNetwork(opt.Network, s.owner, warn, s.log); err != nil {
		return nil, err
	}
	if s.net.cfg.Mode == CNI {
		s.net.cni, err = newCNI(opt.Network.CNI, s.cniDir(), "strata-"+s.owner+"-"+s.started, func() int64 { return s.ids.Add(1) })
		if err != nil {
			return nil, err
		}
		s.net.cni.refused = s.net.refused()
		s.net.plugs = &pool{max: s.net.cfg.Idle, create: func() (*slot, error) { return s.net.cni.newSlot("") }}
	}
	return s, err
}

// cniDir is where the attachments to networks of plugins are noted.
func (s *Sandbox) cniDir() string { return filepath.Join(s.root, "cni") }

// Network says what the default network of steps is.
func (s *Sandbox) Network() NetworkMode {
	if m := s.net.cfg.Mode; m != Auto {
		return m
	}
	return Bridge
}

// realDir makes a directory and returns its path without symbolic links, as runtimes want it.
func realDir(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(dir)
}

// ownerOf is the part of names that says whose they are.
func ownerOf(root string) string {
	sum := sha256.Sum256([]byte(root))
	return hex.EncodeToString(sum[:4])
}

// Close ends the networks and removes the control group of the steps' own, and directories that are empty. No step may be
// running.
func (s *Sandbox) Close() error {
	s.guardian.stop()
	s.net.close()
	for _, dir := range []string{filepath.Join(s.root, "run"), s.runtimeDir(), filepath.Join(s.cniDir(), "results"), s.cniDir(), s.root} {
		_ = os.Remove(dir) // what is in them is for Sweep
	}
	if s.native != nil {
		s.native.close()
	}
	if s.host == nil {
		return nil
	}
	return s.host.cgroups.remove(s.host.group(s.owner))
}

// prepare finds out what there is to work with. What is missing may be there the next time.
func (s *Sandbox) prepare() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.host != nil {
		return nil
	}
	return s.find()
}

// outside is the OCI runtime, which is looked for when the first step needs it. Why says what for.
func (s *Sandbox) outside(why error) (*runc, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.runc != nil {
		return s.runc, nil
	}
	r, err := findRunc(s.binary, s.runtimeDir())
	if err != nil {
		if why != nil {
			err = diag.Errorf(diag.Unsupported, "the step needs what the built-in container runtime does not have (%w): %w", why, err)
		}
		return nil, err
	}
	if r.old() && !s.oldRunc {
		return nil, diag.Errorf(diag.Unsupported, "%s is runc %s, from which containers can escape (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881)", r.path, r.version).
			WithHint("install runc 1.2.8, 1.3.3 or later; if your distribution has fixed this one, or you trust all images, start the engine with STRATA_ALLOW_OLD_RUNC=1")
	}
	s.runc = r
	return r, nil
}

func (s *Sandbox) find() error {
	if os.Geteuid() != 0 {
		return diag.Errorf(diag.Denied, "build steps can only run as root").WithHint("run the builder as root, for example with sudo")
	}
	var err error
	h := &host{devices: s.devices, steps: s.confine, oom: oomScore()}
	if h.cgroups, err = findCgroups(); err != nil {
		return diag.Errorf(diag.Unavailable, "cannot read how control groups are mounted: %w", err)
	}
	own, err := ownGroup()
	if err == nil {
		h.base, err = h.cgroups.delegated(own)
	}
	if err != nil {
		return diag.Errorf(diag.Unavailable, "cannot use the control groups that are delegated to the builder: %w", err)
	}
	if h.caps, err = heldCaps(); err != nil {
		return diag.Errorf(diag.Unavailable, "cannot read this process's capabilities: %w", err)
	}
	if _, err := os.Stat("/proc/sys/kernel/seccomp"); err == nil {
		if h.seccomp, err = seccompProfile(intersect(s.confine.Capabilities, h.caps), s.confine.Only64Bit); err != nil {
			return diag.Errorf(diag.Internal, "the seccomp profile: %w", err)
		}
	}
	switch total := totalMemory(h.cgroups); {
	case s.confine.Memory > 0:
		h.memory = s.confine.Memory
	case s.confine.Memory == 0 && total > 0:
		h.memory = stepMemory(total)
	}
	if h.clientMemory = s.confine.ClientMemory; h.clientMemory == 0 {
		h.clientMemory = h.memory / 2
	}
	if s.confine.ClientMemory > 0 && !h.cgroups.has("memory") {
		return diag.Errorf(diag.Unsupported, "cannot limit the memory of a client's steps: the cgroup controller \"memory\" is not available")
	}
	if h.memory > 0 && !h.cgroups.has("memory") {
		if s.confine.Memory > 0 {
			return diag.Errorf(diag.Unsupported, "cannot limit the memory of steps: the cgroup controller \"memory\" is not available")
		}
		s.warn("the memory of steps is not limited: the cgroup controller \"memory\" is not available")
	}
	if !s.forced {
		if s.native, s.lacks = newNative(h.group(s.owner)); s.lacks != nil {
			s.log.Info("build steps cannot use the built-in container runtime", "reason", s.lacks)
		} else {
			s.native.pids = s.confine.PIDs
		}
	}
	s.host = h
	return nil
}

// Run runs a command and waits for its end. It returns an Exit, whatever the exit code is, or why there is none. When ctx
// ends, all processes of the container are killed and the error is its cause. In every case no process, mount,
// control group or file of the run is left when Run returns.
func (s *Sandbox) Run(ctx context.Context, spec *Spec) (_ *Exit, err error) {
	ctx, end := span.Start(ctx, "sandbox")
	defer func() { end(err) }()
	hostname := spec.Hostname
	if spec, err = spec.normal(); err != nil {
		return nil, err
	}
	if err := s.prepare(); err != nil {
		return nil, err
	}
	if s.native == nil { // before anything is made for the step
		if _, err := s.outside(s.lacks); err != nil {
			return nil, err
		}
	}
	if err := s.guard(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	b, err := s.newBundle()
	if err != nil {
		return nil, diag.Errorf(diag.Unavailable, "cannot prepare the step: %w", err)
	}
	defer b.remove(s.log)
	p, err := s.plan(spec, b)
	if p != nil && p.release != nil {
		defer p.release()
	}
	if err != nil {
		return nil, err
	}
	net, err := s.leaseFor(spec, hostname)
	if err != nil {
		return nil, err
	}
	defer net.release(spec.Security == graph.SecurityInsecure)
	p.netns, p.Env = net.path, replaceEnv(p.Env, net.env)
	if err := b.writeFiles(p, net); err != nil {
		return nil, err
	}
	root, err := os.OpenFile(p.RootFS, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, diag.Errorf(diag.Unavailable, "cannot open the root file system: %w", err)
	}
	defer root.Close()
	stubs, err := s.makeStubs(root, p)
	defer s.mountPoints.remove(root, stubs)
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "cannot make a mount point: %w", err)
	}
	if err := makeCwd(root, p); err != nil {
		return nil, err
	}
	untrust, err := trustProxy(p.Spec)
	if err != nil {
		return nil, err
	}
	exit, err := s.start(ctx, b, p)
	if bad := untrust(); bad != nil && exit != nil {
		exit.Unclean = bad
	} else if bad != nil {
		err = errors.Join(err, bad)
	}
	return exit, err
}

// start runs the container of a step by the runtime that can.
func (s *Sandbox) start(ctx context.Context, b *bundle, p *plan) (*Exit, error) {
	oci, err := ociSpec(p, s.host)
	if err != nil {
		return nil, err
	}
	if err := s.host.ceilings(p); err != nil {
		return nil, diag.Errorf(diag.Unavailable, "cannot limit the memory of steps: %w", err)
	}
	defer s.busy.begin(p.Client, path.Dir(p.cgroup))()
	c := &container{bundle: b, cgroup: p.cgroup, cgroups: s.host.cgroups, spec: p.Spec, started: make(chan struct{}), log: b.file("log.json")}
	why := s.lacks
	if s.native != nil && p.live == nil {
		if why = s.native.accepts(oci); why == nil {
			return s.native.run(ctx, c, oci)
		}
		s.log.Debug("a step needs another runtime than the built-in one", "reason", why)
	}
	r, err := s.outside(why)
	if err != nil {
		return nil, err
	}
	if err := b.guardNull(oci, p); err != nil {
		return nil, diag.Errorf(diag.Unavailable, "cannot prepare the step: %w", err)
	}
	if err := b.writeConfig(oci); err != nil {
		return nil, err
	}
	if p.live != nil {
		return p.live(r, c, oci)
	}
	return r.run(ctx, c)
}

// leaseFor is the network of a step, and its proxy if it has one.
func (s *Sandbox) leaseFor(spec *Spec, hostname string) (*lease, error) {
	if spec.Network.Direct() != spec.Network {
		return s.net.behindProxy(spec.Network, spec.Proxy)
	}
	return s.net.acquire(spec.Network, hostname)
}

// trustProxy lets a step trust its proxy, if it has one, and returns what takes that back. A root that cannot be written has to
// do without.
func trustProxy(spec *Spec) (undo func() error, err error) {
	if spec.Network.Direct() == spec.Network || spec.ReadOnlyRoot {
		return func() error { return nil }, nil
	}
	clean, err := trust(spec.RootFS, spec.Proxy.CA())
	if err != nil {
		return nil, diag.Errorf(diag.Unavailable, "failed to add proxy CA: %w", err)
	}
	return func() error {
		if err := clean(); err != nil {
			return diag.Errorf(diag.Failed, "failed to clean up proxy CA: %w", err)
		}
		return nil
	}, nil
}

// plan resolves what the spec names and writes what mounts hold. What it returns must be released, also with an error.
func (s *Sandbox) plan(spec *Spec, b *bundle) (*plan, error) {
	p := &plan{Spec: spec, hosts: b.file("hosts"), resolv: b.file("resolv.conf")}
	var err error
	if p.user, err = ResolveUser(spec.RootFS, spec.User); err != nil {
		return nil, err
	}
	p.cgroup = filepath.Join(s.host.group(s.owner), clientGroup(spec.Client), b.id)
	if parent := spec.Limits.CgroupParent; parent != "" {
		if err := s.allowedParent(parent); err != nil {
			return nil, err
		}
		p.cgroup = filepath.Join("/", parent, cgroupName(s.owner), clientGroup(spec.Client), b.id)
		var above []string
		p.release, above = s.parents.acquire(s.host.cgroups, p.cgroup)
		err = b.recordGroup(recordedGroup{p.cgroup, above})
	} else if s.host.group(s.owner) != filepath.Join("/", cgroupName(s.owner)) {
		err = b.recordGroup(recordedGroup{group: p.cgroup}) // the next engine's may be elsewhere
	}
	if err != nil {
		return p, diag.Errorf(diag.Unavailable, "cannot prepare the step: %w", err)
	}
	for _, m := range spec.Mounts {
		source := m.Source
		switch {
		case m.Type == Data:
			source, err = b.writeData(m)
		case m.File != nil:
			source, err = b.bindFile(m.File)
		}
		if err != nil {
			return p, diag.Errorf(diag.Unavailable, "cannot prepare the mount at %s: %w", m.Target, err)
		}
		p.mounts = append(p.mounts, ownMount(m, source))
	}
	sortMounts(p.mounts)
	return p, p.checkTargets()
}

func cgroupName(owner string) string { return "strata-" + owner }

// clientPrefix begins the names of the groups of clients, and of no container.
const clientPrefix = "client-"

// clientGroup names the group of a client's steps below that of all steps; "" = none.
func clientGroup(client string) string {
	if client == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(client))
	return clientPrefix + hex.EncodeToString(sum[:8])
}

// group is the control group of the steps that have no parent of their own.
func (h *host) group(owner string) string { return filepath.Join("/", h.base, cgroupName(owner)) }

// idPrefix begins the ids of this sandbox's containers, and no others.
func (s *Sandbox) idPrefix() string { return cgroupName(s.owner) + "-" + s.started + "-" }

// kernelDirs are where every container has file systems of the kernel.
var kernelDirs = []string{"/proc", "/dev", "/sys"}

// makeStubs makes the mount points that are missing in the root file system itself. Those within other mounts are left to
// the runtime, and so are /proc, /dev and /sys, which images are expected to have.
func (s *Sandbox) makeStubs(root *os.File, p *plan) ([]made, error) {
	var out []made
	covered := slices.Clone(kernelDirs)
	all := sortMounts(append([]specs.Mount{fileMount(p.resolv, "/etc/resolv.conf"), fileMount(p.hosts, "/etc/hosts")}, p.mounts...))
	for _, m := range all {
		at, err := resolve(p.RootFS, m.Destination)
		if err != nil {
			return out, err
		}
		if slices.ContainsFunc(covered, func(c string) bool { return below(at, c) }) {
			continue
		}
		covered = append(covered, at)
		file := false
		if m.Type == "bind" {
			st, err := os.Stat(m.Source)
			if err != nil {
				return out, err
			}
			file = !st.IsDir()
		}
		nodes, err := s.mountPoints.make(root, at, newNode{file: file})
		out = append(out, nodes...)
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

// makeCwd makes the working directory, unless it is within a mount, where the runtime makes it.
func makeCwd(root *os.File, p *plan) error {
	at, err := resolve(p.RootFS, p.Cwd)
	if err != nil {
		return diag.Errorf(diag.Invalid, "the working directory %s: %w", p.Cwd, err)
	}
	inMount := func(dir string) bool { return below(at, dir) }
	if slices.ContainsFunc(kernelDirs, inMount) {
		return nil
	}
	for _, m := range p.mounts {
		if target, err := resolve(p.RootFS, m.Destination); err == nil && inMount(target) {
			return nil
		}
	}
	if _, err := makePath(root, at, newNode{uid: int(p.user.UID), gid: int(p.user.GID)}, nil); err != nil {
		return diag.Errorf(diag.Invalid, "cannot make the working directory %s: %w", p.Cwd, err)
	}
	return nil
}

func (s *Sandbox) runtimeDir() string { return filepath.Join(s.root, "runtime") }
