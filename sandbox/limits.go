package sandbox

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// defaultPIDs bounds the processes of a step that asks for no limit.
const defaultPIDs = 4096

// resources translates limits; pids is the operator's limit of processes for steps that ask for none, -1 being no limit. A limit
// that this machine cannot keep is an error, because a build must not run without it unnoticed.
func resources(l graph.Limits, c *cgroups, pids int64) (*specs.LinuxResources, error) {
	if err := checkLimits(l); err != nil {
		return nil, err
	}
	r := &specs.LinuxResources{}
	need := func(controller, what string, asked bool) error {
		if asked && !c.has(controller) {
			return diag.Errorf(diag.Unsupported, "cannot limit %s of the step: the cgroup controller %q is not available", what, controller).
				WithHint("enable the controller on this machine, or do not ask for the limit")
		}
		return nil
	}
	for _, n := range []struct {
		controller, what string
		asked            bool
	}{
		{"memory", "the memory", l.Memory != 0 || l.MemorySwap != 0},
		{"cpu", "the CPU time", l.CPUShares != 0 || l.CPUPeriod != 0 || l.CPUQuota != 0},
		{"cpuset", "the CPUs", l.CPUSet != "" || l.Mems != ""},
		{"pids", "the processes", l.PIDs > 0},
	} {
		if err := need(n.controller, n.what, n.asked); err != nil {
			return nil, err
		}
	}
	if l.Memory != 0 || l.MemorySwap != 0 {
		r.Memory = &specs.LinuxMemory{Limit: some(l.Memory), Swap: some(l.MemorySwap)}
		if l.MemorySwap != 0 && !c.unified {
			if _, err := os.Stat(filepath.Join(c.controllers["memory"], "memory.memsw.limit_in_bytes")); err != nil {
				return nil, diag.Errorf(diag.Unsupported, "cannot limit the swap of the step: the kernel does not account for it").
					WithHint("start the kernel with swapaccount=1, or do not ask for the limit")
			}
		}
	}
	if l.CPUShares != 0 || l.CPUPeriod != 0 || l.CPUQuota != 0 || l.CPUSet != "" || l.Mems != "" {
		r.CPU = &specs.LinuxCPU{Shares: some(l.CPUShares), Period: some(l.CPUPeriod), Quota: some(l.CPUQuota), Cpus: l.CPUSet, Mems: l.Mems}
	}
	switch {
	case l.PIDs != 0 && c.has("pids"):
		r.Pids = &specs.LinuxPids{Limit: &l.PIDs}
	case l.PIDs != 0 || pids < 0: // no limit
	case !c.has("pids"):
		return nil, diag.Errorf(diag.Unsupported, "cannot limit the processes of the step: the cgroup controller \"pids\" is not available").
			WithHint("enable the controller on this machine, or run steps without that limit: set pids = -1 below [steps] in the configuration file")
	default:
		r.Pids = &specs.LinuxPids{Limit: &pids}
	}
	return r, nil
}

// confinable refuses to run a confined step on a machine that lacks what confines it.
func (h *host) confinable() error {
	switch {
	case !h.cgroups.has("devices"):
		return diag.Errorf(diag.Unsupported, "cannot keep the step from this machine's devices: the cgroup controller \"devices\" is not available").
			WithHint("mount it: mkdir -p /sys/fs/cgroup/devices && mount -t cgroup -o devices cgroup /sys/fs/cgroup/devices")
	case h.seccomp == nil:
		return diag.Errorf(diag.Unsupported, "cannot filter the system calls of the step: this kernel has no seccomp").
			WithHint("use a kernel with CONFIG_SECCOMP_FILTER")
	}
	return nil
}

func checkLimits(l graph.Limits) error {
	bad := func(format string, args ...any) error { return diag.Errorf(diag.Invalid, format, args...) }
	switch {
	case l.Memory < 0 || l.ShmSize < 0:
		return bad("a memory limit cannot be negative")
	case l.MemorySwap < -1:
		return bad("the limit of memory and swap is %d, which is neither a size nor -1", l.MemorySwap)
	case l.MemorySwap > 0 && l.MemorySwap < l.Memory:
		return bad("the limit of memory and swap (%d) is below that of memory (%d)", l.MemorySwap, l.Memory)
	case l.PIDs < -1:
		return bad("the limit of processes is %d", l.PIDs)
	case strings.Trim(l.CPUSet+l.Mems, "0123456789,-") != "":
		return bad("invalid CPU set %q or memory nodes %q", l.CPUSet, l.Mems)
	case l.CgroupParent != "" && (strings.ContainsAny(l.CgroupParent, ":\x00") || slices.Contains(strings.Split(l.CgroupParent, "/"), "..")):
		return bad("invalid cgroup parent %q", l.CgroupParent).(*diag.Error).WithHint("give a path of the cgroup file system, such as /builds")
	}
	return nil
}

// some is the address of a number, or nil for zero.
func some[T int64 | uint64](n T) *T {
	if n == 0 {
		return nil
	}
	return &n
}

// rlimitNames are the limits of setrlimit(2), by Docker's names.
var rlimitNames = map[string]int{
	"core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA, "fsize": unix.RLIMIT_FSIZE, "locks": unix.RLIMIT_LOCKS,
	"memlock": unix.RLIMIT_MEMLOCK, "msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE, "nofile": unix.RLIMIT_NOFILE,
	"nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO, "rttime": unix.RLIMIT_RTTIME,
	"sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

// rlimits translates ulimits; mayRaise says whether this process may give more than it has itself.
func rlimits(list []graph.Ulimit, mayRaise bool) ([]specs.POSIXRlimit, error) {
	var out []specs.POSIXRlimit
	for _, u := range list {
		name := strings.ToLower(u.Name)
		which, ok := rlimitNames[name]
		if !ok {
			err := diag.Errorf(diag.Invalid, "unknown ulimit %q", u.Name)
			if s := diag.Suggest(name, keys(rlimitNames)); s != "" {
				err = err.WithHint("did you mean %s?", s)
			}
			return nil, err
		}
		soft, hard := rlimitValue(u.Soft), rlimitValue(u.Hard)
		if soft > hard {
			return nil, diag.Errorf(diag.Invalid, "ulimit %s: the soft limit %d is above the hard limit %d", name, u.Soft, u.Hard)
		}
		var own unix.Rlimit
		if err := unix.Getrlimit(which, &own); err == nil && hard > own.Max && !mayRaise {
			return nil, diag.Errorf(diag.Denied, "cannot set ulimit %s to %d: this process may give at most %d", name, u.Hard, own.Max).
				WithHint("run the builder with CAP_SYS_RESOURCE or with a higher limit")
		}
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(name), Soft: soft, Hard: hard})
	}
	return out, nil
}

// noCore lets processes that crash leave no image of their memory, which may hold secrets, unless the step asks for that.
func noCore(limits []specs.POSIXRlimit) []specs.POSIXRlimit {
	const core = "RLIMIT_CORE"
	if slices.ContainsFunc(limits, func(l specs.POSIXRlimit) bool { return l.Type == core }) {
		return limits
	}
	return append(limits, specs.POSIXRlimit{Type: core})
}

// rlimitValue reads -1 as no limit.
func rlimitValue(n int64) uint64 {
	if n < 0 {
		return math.MaxUint64
	}
	return uint64(n)
}

func keys(m map[string]int) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
