package sandbox

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultCaps are Docker's: what package managers need as root, and nothing that reaches beyond the container.
// https://docs.docker.com/engine/containers/run/#runtime-privilege-and-linux-capabilities
var defaultCaps = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW",
	"CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// maskedPaths and readonlyPaths are parts of /proc and /sys that are about the machine, as Docker hides them.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// heldCaps are the capabilities that this process can give away.
func heldCaps() ([]string, error) {
	c, err := capability.NewPid2(0)
	if err == nil {
		err = c.Load()
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, which := range capability.ListKnown() {
		if c.Get(capability.PERMITTED, which) && c.Get(capability.BOUNDING, which) {
			out = append(out, "CAP_"+strings.ToUpper(which.String()))
		}
	}
	slices.Sort(out)
	return out, nil
}

// capabilities gives a set of names to a process. The inheritable set stays empty: what a user's own program gains by
// file capabilities must come from the file alone.
func capabilities(names []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names}
}

// intersect keeps of want what is in have.
func intersect(want, have []string) []string {
	return slices.DeleteFunc(slices.Clone(want), func(c string) bool { return !slices.Contains(have, c) })
}

// seccompProfile is Docker's default filter for a set of capabilities, on this kernel, but for one thing: system calls of the
// x32 ABI are not in it, and kill who makes them. Kernels come with x32 turned off, and the runtime, which builds the filter anew for
// each container, needs a fourth more time for the step if it is in. Only64 leaves the 32-bit ABI out too: by socketcall(2) its programs
// make sockets of every family, with arguments that no filter sees, AF_ALG included.
func seccompProfile(caps []string, only64 bool) (*specs.LinuxSeccomp, error) {
	p, err := seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: capabilities(caps)}})
	if err != nil {
		return nil, err
	}
	p.Architectures = slices.DeleteFunc(p.Architectures, func(a specs.Arch) bool {
		return a == specs.ArchX32 || only64 && (a == specs.ArchX86 || a == specs.ArchARM)
	})
	return p, nil
}

// allowedDevices is what a device cgroup lets through: making any node, and using the standard ones and terminals.
func allowedDevices() []specs.LinuxDeviceCgroup {
	rule := func(kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
		d := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access, Major: &major}
		if minor >= 0 {
			d.Minor = &minor
		}
		return d
	}
	return []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "b", Access: "m"},
		rule("c", 1, 3, "rwm"),    // null
		rule("c", 1, 5, "rwm"),    // zero
		rule("c", 1, 7, "rwm"),    // full
		rule("c", 1, 8, "rwm"),    // random
		rule("c", 1, 9, "rwm"),    // urandom
		rule("c", 5, 0, "rwm"),    // tty
		rule("c", 5, 1, "rwm"),    // console
		rule("c", 5, 2, "rwm"),    // ptmx
		rule("c", 136, -1, "rwm"), // pts/*
	}
}

// hostDevices lists the device nodes of the host's /dev that a container does not have anyway.
func hostDevices() []specs.LinuxDevice {
	var out []specs.LinuxDevice
	var walk func(dir string)
	walk = func(dir string) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			p := filepath.Join(dir, e.Name())
			switch {
			case e.IsDir():
				if n := e.Name(); n != "pts" && n != "shm" && n != "fd" && n != "mqueue" {
					walk(p)
				}
			case e.Type()&os.ModeDevice != 0:
				if d, ok := deviceNode(p); ok {
					out = append(out, d)
				}
			}
		}
	}
	walk("/dev")
	return out
}

// standardDevices are made by every OCI runtime.
var standardDevices = []string{"/dev/console", "/dev/full", "/dev/null", "/dev/ptmx", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"}

// deviceNode describes a device node of the host.
func deviceNode(p string) (specs.LinuxDevice, bool) {
	var st unix.Stat_t
	if slices.Contains(standardDevices, p) || unix.Lstat(p, &st) != nil {
		return specs.LinuxDevice{}, false
	}
	kind := map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b"}[st.Mode&unix.S_IFMT]
	mode := os.FileMode(st.Mode & 0o7777)
	return specs.LinuxDevice{
		Path: p, Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)), FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}, kind != ""
}
