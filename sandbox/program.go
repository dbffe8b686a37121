package sandbox

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/sandbox/spawn"
)

// errNoProgram says what runc says.
var errNoProgram = errors.New("executable file not found in $PATH")

// program is what the container's first process does before it runs the command: all that is about a process, and /proc,
// which belongs to its process namespace. This thread has the container's root by now.
func (j *jail) program(fds [3]int) (*spawn.Program, error) {
	p := &spawn.Program{}
	deathSignal(p)
	p.DefaultSignals()
	p.Call("start a session", unix.SYS_SETSID)
	zero := p.String("0")
	for _, f := range j.group.tasks {
		p.Call("join a control group", unix.SYS_WRITE, f.Fd(), zero, 1)
	}
	for i, fd := range fds {
		p.Call("connect the output", unix.SYS_DUP3, uintptr(fd), uintptr(i), 0)
	}
	p.Call("make a control group namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	if err := j.kernelFiles(p); err != nil {
		return nil, err
	}
	// Closed, not only marked: the working directory below must not be one of them (CVE-2024-21626).
	p.Call("close all files", unix.SYS_CLOSE_RANGE, 3, uintptr(^uint32(0)), 0)
	j.kernelSettings(p)
	if err := j.limits(p); err != nil {
		return nil, err
	}
	workingDirectory(p, j.spec.Process.Cwd)
	if err := j.rights(p); err != nil {
		return nil, err
	}
	deathSignal(p)                     // changing users forgets it
	for n := uintptr(1); n < 32; n++ { // one that this process ignores, as under nohup, would stay ignored
		if n != uintptr(unix.SIGKILL) && n != uintptr(unix.SIGSTOP) {
			p.Call("reset a signal", unix.SYS_RT_SIGACTION, n, spawn.Value(p, new([4]uint64)), 0, 8)
		}
	}
	p.Call("let signals through", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, spawn.Value(p, new(uint64)), 0, 8)
	return p, j.command(p)
}

func deathSignal(p *spawn.Program) {
	p.Call("follow the builder into death", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL))
}

// kernelFiles mounts /proc and hides what is about the machine in it and in /sys.
func (j *jail) kernelFiles(p *spawn.Program) error {
	for _, m := range j.spec.Mounts {
		if m.Type != "proc" {
			continue
		}
		o, err := parseOptions(m)
		if err != nil {
			return err
		}
		kind := p.String(m.Type)
		p.Call("mount "+m.Destination, unix.SYS_MOUNT, kind, p.String(m.Destination), kind, o.flags, p.String(o.data))
	}
	const locked = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC // as /proc and /sys are, and stay
	for _, name := range j.spec.Linux.ReadonlyPaths {
		at := p.String(name)
		p.Call("bind "+name, unix.SYS_MOUNT, at, at, 0, unix.MS_BIND|unix.MS_REC).On(unix.ENOENT, 2)
		p.Call("make "+name+" read-only", unix.SYS_MOUNT, at, at, 0, unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|locked)
	}
	j.hide(p, j.spec.Linux.MaskedPaths)
	return nil
}

// limits sets resource limits, which a process may raise only while it has rights.
func (j *jail) limits(p *spawn.Program) error {
	for _, l := range j.spec.Process.Rlimits {
		which, ok := rlimitNames[strings.ToLower(strings.TrimPrefix(l.Type, "RLIMIT_"))]
		if !ok {
			return fmt.Errorf("unknown limit %s", l.Type)
		}
		p.Call("set the limit "+l.Type, unix.SYS_PRLIMIT64, 0, uintptr(which), spawn.Value(p, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}), 0)
	}
	return nil
}

// workingDirectory makes the directory if it is in a mount, where nobody has yet, and enters it.
func workingDirectory(p *spawn.Program, cwd string) {
	clean := cleanPath(cwd)
	for i := 1; i <= len(clean) && clean != "/"; i++ {
		if i == len(clean) || clean[i] == '/' {
			p.Call("make the working directory", unix.SYS_MKDIRAT, atCwd, p.String(clean[:i]), 0o755).OnAny(1)
		}
	}
	p.Call("enter the working directory "+cwd, unix.SYS_CHDIR, p.String(cwd))
}

// atCwd is AT_FDCWD as system calls take it.
const atCwd = ^uintptr(99)

// rights gives up what the process does not need. The filter of system calls comes first where only rights allow to set
// one, else last.
func (j *jail) rights(p *spawn.Program) error {
	s := j.spec.Process
	bounding, err := capBits(s.Capabilities.Bounding)
	if err != nil {
		return err
	}
	var sets [3]uint64
	for i, names := range [][]string{s.Capabilities.Effective, s.Capabilities.Permitted, s.Capabilities.Inheritable} {
		if sets[i], err = capBits(names); err != nil {
			return err
		}
	}
	last, err := capability.LastCap()
	if err != nil {
		return err
	}
	p.Call("leave the session's keys", unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0).On(unix.ENOSYS, 1)
	if s.NoNewPrivileges {
		p.Call("refuse new privileges", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	} else if err := j.confine(p); err != nil {
		return err
	}
	for c := range uint64(last) + 1 {
		if bounding&(1<<c) == 0 {
			p.Call("drop capabilities", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		}
	}
	uid, gid := uintptr(s.User.UID), uintptr(s.User.GID)
	p.Call("keep capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	groups := append(slices.Clone(s.User.AdditionalGids), 0) // never of length 0, for its address
	p.Call("set the groups", unix.SYS_SETGROUPS, uintptr(len(groups)-1), spawn.Value(p, &groups[0]))
	p.Call("set the group", unix.SYS_SETRESGID, gid, gid, gid)
	p.Call("set the user", unix.SYS_SETRESUID, uid, uid, uid)
	p.Call("keep no capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0, 0, 0, 0)
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := &[2]unix.CapUserData{}
	for i := range data {
		shift := 32 * i
		data[i] = unix.CapUserData{Effective: uint32(sets[0] >> shift), Permitted: uint32(sets[1] >> shift), Inheritable: uint32(sets[2] >> shift)}
	}
	p.Call("set the capabilities", unix.SYS_CAPSET, spawn.Value(p, header), spawn.Value(p, data))
	if s.NoNewPrivileges {
		return j.confine(p)
	}
	return nil
}

// confine sets the filter of system calls.
func (j *jail) confine(p *spawn.Program) error {
	profile := j.spec.Linux.Seccomp
	if profile == nil {
		return nil
	}
	filter, err := j.compile(profile)
	if err != nil {
		return err
	}
	fprog := &unix.SockFprog{Len: uint16(len(filter)), Filter: unsafe.SliceData(filter)}
	p.Call("set the system call filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, spawn.Value(p, fprog))
	return nil
}

// capBits is a set of capabilities as a number.
func capBits(names []string) (uint64, error) {
	var out uint64
	for _, name := range names {
		n := slices.IndexFunc(capability.ListKnown(), func(c capability.Cap) bool { return "CAP_"+strings.ToUpper(c.String()) == name })
		if n < 0 {
			return 0, fmt.Errorf("unknown capability %s", name)
		}
		out |= 1 << capability.ListKnown()[n]
	}
	return out, nil
}

// command ends a program by running the step's. The first file of the name that the user may execute is the one, also if it
// cannot be run.
func (j *jail) command(p *spawn.Program) error {
	s := j.spec.Process
	files := candidates(s.Args[0], s.Env)
	if len(files) == 0 {
		return fmt.Errorf("exec: %q: %w", s.Args[0], errNoProgram)
	}
	args, env := p.Strings(s.Args), p.Strings(uniqueEnv(s.Env))
	for i, file := range files {
		name := p.String(file)
		look := p.Call("exec "+s.Args[0], unix.SYS_FACCESSAT2, atCwd, name, unix.X_OK, unix.AT_EACCESS)
		if i < len(files)-1 {
			look.OnAny(2)
		}
		p.Call("exec "+s.Args[0], unix.SYS_EXECVE, name, args, env)
	}
	return nil
}

// uniqueEnv leaves the last of several variables of a name, in the place of the first.
func uniqueEnv(env []string) []string {
	at, out := map[string]int{}, make([]string, 0, len(env))
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		if i, ok := at[name]; ok {
			out[i] = e
			continue
		}
		at[name] = len(out)
		out = append(out, e)
	}
	return out
}
