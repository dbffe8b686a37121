package sandbox

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/strata-build/strata/graph"
)

// host is what a spec depends on besides the step: what this machine and this process can do. It is found out once.
type host struct {
	cgroups *cgroups
	base    string              // control group that this process may make others in
	caps    []string            // held by this process
	seccomp *specs.LinuxSeccomp // for the capabilities of steps; nil = the kernel has no seccomp
	devices Devices
	steps   Steps // with defaults filled in
	memory  int64 // bytes of all steps together; 0 = no limit

	clientMemory int64 // bytes of all steps of one client; 0 or less = no limit
	oom          int   // oom_score_adj of steps
}

// plan is a step as it will be run, every name resolved.
type plan struct {
	*Spec
	user   User
	cgroup string // path of its control group
	// release gives up the groups above it that are not this process's own; nil = there are none.
	release func()
	netns   string // path of its network namespace; "" = the host's
	hosts   string // host paths of the generated files
	resolv  string
	mounts  []specs.Mount // the step's own, parents first

	targets []string // where each of them will be, with no symbolic links
}

// defaultMounts are the kernel's file systems that every container gets, as Docker mounts them.
func defaultMounts(shm int64, sysAccess string) []specs.Mount {
	if shm == 0 {
		shm = 64 << 20
	}
	noAccess := []string{"nosuid", "noexec", "nodev"}
	with := func(more ...string) []string { return append(slices.Clone(noAccess), more...) }
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: noAccess},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: with("mode=1777", fmt.Sprintf("size=%d", shm))},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: noAccess},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: with(sysAccess)},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: with(sysAccess)},
	}
}

// ociSpec makes the runtime's configuration. It is a pure function of its arguments, but for the devices of an insecure step.
func ociSpec(p *plan, h *host) (*specs.Spec, error) {
	res, err := resources(p.Limits, h.cgroups, h.steps.PIDs)
	if err != nil {
		return nil, err
	}
	limits, err := rlimits(p.Limits.Ulimits, slices.Contains(h.caps, "CAP_SYS_RESOURCE"))
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: p.RootFS, Readonly: p.ReadOnlyRoot},
		Process: &specs.Process{
			Terminal: p.TTY, Args: p.Args, Env: environment(p.Env, p.user.Home), Cwd: p.Cwd, Rlimits: noCore(limits), OOMScoreAdj: &h.oom,
			User: specs.User{UID: p.user.UID, GID: p.user.GID, AdditionalGids: withGroup(p.user.Groups, p.user.GID)},
		},
		Hostname: p.Hostname,
		Linux: &specs.Linux{
			CgroupsPath: p.cgroup, Resources: res,
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.CgroupNamespace}},
		},
	}
	if p.netns != "" {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: p.netns})
	}
	sysAccess := "ro"
	if p.Security == graph.SecurityInsecure {
		sysAccess = "rw"
		s.Process.Capabilities = capabilities(h.caps)
		s.Linux.Devices = hostDevices()
		res.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	} else {
		if err := h.confinable(); err != nil {
			return nil, err
		}
		s.Process.Capabilities = capabilities(intersect(h.steps.Capabilities, h.caps))
		s.Process.NoNewPrivileges, s.Process.ApparmorProfile = h.steps.NoNewPrivileges, h.steps.AppArmor
		s.Linux.Seccomp = h.seccomp
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = maskedPaths, readonlyPaths
		res.Devices = allowedDevices()
	}
	if err := injectDevices(s, p.Devices, h.devices); err != nil {
		return nil, err
	}
	s.Mounts = mergeMounts(append(defaultMounts(p.Limits.ShmSize, sysAccess), fileMount(p.resolv, "/etc/resolv.conf"), fileMount(p.hosts, "/etc/hosts")), append(s.Mounts, p.mounts...))
	return s, nil
}

func fileMount(source, target string) specs.Mount {
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"rbind", "ro", "nosuid", "noexec", "nodev"}}
}

// environment adds HOME, which login programs set and shells expand ~ with.
func environment(env []string, home string) []string {
	if slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		return env
	}
	return append(slices.Clone(env), "HOME="+home)
}

// withGroup puts the primary group first of the supplementary ones, where login programs put it: processes that drop
// their primary group keep its rights otherwise.
func withGroup(groups []uint32, gid uint32) []uint32 {
	if slices.Contains(groups, gid) {
		return groups
	}
	return append([]uint32{gid}, groups...)
}

// mergeMounts lets mounts of the step take the place of default ones with the same target.
func mergeMounts(defaults, own []specs.Mount) []specs.Mount {
	out := slices.DeleteFunc(defaults, func(d specs.Mount) bool {
		return slices.ContainsFunc(own, func(m specs.Mount) bool { return m.Destination == d.Destination })
	})
	return sortMounts(append(out, own...))
}

// sortMounts puts parents before children and keeps the order otherwise.
func sortMounts(mounts []specs.Mount) []specs.Mount {
	depth := func(m specs.Mount) int { return strings.Count(path.Clean(m.Destination), "/") }
	slices.SortStableFunc(mounts, func(a, b specs.Mount) int { return cmp.Compare(depth(a), depth(b)) })
	return mounts
}

// ownMount translates a mount of the step. Source is where a Data mount has been written.
func ownMount(m Mount, source string) specs.Mount {
	out := specs.Mount{Destination: cleanPath(m.Target), Source: source}
	if m.Type == Tmpfs {
		out.Type, out.Source = "tmpfs", "tmpfs"
		mode := m.Mode
		if mode == 0 {
			mode = 0o1777
		}
		out.Options = append(out.Options, fmt.Sprintf("mode=%o", mode))
		if m.Size > 0 {
			out.Options = append(out.Options, fmt.Sprintf("size=%d", m.Size))
		}
	} else {
		out.Type, out.Options = "bind", []string{"rbind"}
	}
	if m.ReadOnly || m.Type == Data {
		out.Options = append(out.Options, "ro")
	}
	if m.Type == Data {
		out.Options = append(out.Options, "nosuid", "nodev", "noexec")
	}
	out.Options = append(out.Options, m.Options...)
	return out
}
