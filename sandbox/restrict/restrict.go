package restrict

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"github.com/moby/profiles/seccomp"
	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/sandbox/bpf"
)

// Rights are what a program may do. Paths that do not exist are left out. They are changed between programs only, UnixSockets before
// the first one.
type Rights struct {
	Programs    []string // files and directories that are read and executed
	Read        []string // files and directories that are read
	Write       []string // directories that are read and changed
	Ports       []uint16 // of TCP servers; nil = all
	UnixSockets bool     // sockets of this machine can be connected to
	Search      bool     // modes of files do not keep it from reading: CAP_DAC_READ_SEARCH, the only capability

	abi  int // the most that is used of landlock, for tests; 0 = what the kernel has
	once sync.Once
	prog []unix.SockFilter // of system calls, compiled once
	err  error
}

// Start starts a program with these rights and no others. Programs must have a shell, /bin/sh, if the system has one. The program is waited for as usual; Pdeathsig must not be set, since the
// thread that starts the program ends.
func Start(cmd *exec.Cmd, r *Rights) error {
	limited(cmd)
	if r.once.Do(func() { r.prog, r.err = r.filter() }); r.err != nil {
		return r.err
	}
	var set *os.File
	var err error
	if abi := r.landlock(); abi > 0 {
		if set, err = r.ruleset(abi); err != nil {
			return err
		}
		defer set.Close()
	}
	done := make(chan error, 1)
	go onThread(done, func() error {
		if err := r.restrict(set); err != nil {
			return fmt.Errorf("cannot take rights from %s: %w", cmd.Path, err)
		}
		return cmd.Start()
	})
	return <-done
}

// landlock is the version that is used.
func (r *Rights) landlock() int {
	if r.abi > 0 {
		return min(r.abi, ABI())
	}
	return ABI()
}

// onThread runs f on a thread that ends with it, and that is not the main one: /proc shows that one's rights as the process's.
func onThread(done chan<- error, f func() error) {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	if unix.Gettid() != unix.Getpid() {
		done <- f()
		return
	}
	other := make(chan error, 1)
	go onThread(other, f) // this one is taken
	err := <-other
	runtime.UnlockOSThread()
	done <- err
}

// restrict takes the rights of the calling thread.
func (r *Rights) restrict(set *os.File) error {
	keep := uint64(0)
	if r.Search {
		keep = 1 << unix.CAP_DAC_READ_SEARCH
	}
	if err := dropCapabilities(keep); err != nil {
		return err
	}
	if set != nil {
		if err := enterDomain(set); err != nil {
			return err
		}
	}
	return setFilter(r.prog)
}

// enterDomain puts the calling thread into a landlock domain.
func enterDomain(set *os.File) error {
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, set.Fd(), 0, 0); errno != 0 {
		return fmt.Errorf("landlock: %w", errno)
	}
	return nil
}

// setFilter filters the system calls of the calling thread. A kernel without filters has none.
func setFilter(filter []unix.SockFilter) error {
	if filter == nil {
		return nil
	}
	prog := &unix.SockFprog{Len: uint16(len(filter)), Filter: unsafe.SliceData(filter)}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(prog)))
	if errno == unix.ENOSYS || errno == unix.EINVAL && !hasFilters() {
		return nil
	}
	if errno != 0 {
		return fmt.Errorf("set the system call filter: %w", errno)
	}
	return nil
}

// hasFilters reports whether the kernel has filters of system calls.
func hasFilters() bool {
	_, err := os.Stat("/proc/sys/kernel/seccomp")
	return err == nil
}

// dropCapabilities leaves the calling thread no other capabilities than those of keep that it has, and no way to new ones: with
// no_new_privs, executing files gives none back, as root neither.
func dropCapabilities(keep uint64) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("refuse new privileges: %w", err)
	}
	last, err := capability.LastCap()
	if err != nil {
		return err
	}
	for c := range uintptr(last) + 1 {
		if keep&(1<<c) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EPERM) { // not root
			return fmt.Errorf("drop capabilities: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var has [2]unix.CapUserData
	if err := unix.Capget(&header, &has[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	for i := range has {
		half := uint32(keep >> (32 * i))
		has[i] = unix.CapUserData{Effective: has[i].Effective & half, Permitted: has[i].Permitted & half}
	}
	if err := unix.Capset(&header, &has[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// shell sets limits, which a thread cannot have of its own, and becomes the program. The file size is in blocks of 512 bytes.
const shell = `ulimit -c 0; ulimit -n 4096 2>/dev/null; ulimit -f 134217728 2>/dev/null; exec "$0" "$@"`

// limited makes a command one with limits. Without a shell it has none.
func limited(cmd *exec.Cmd) {
	if _, err := os.Stat("/bin/sh"); err != nil {
		return
	}
	cmd.Args = append([]string{"sh", "-c", shell, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
}

// filter is Docker's default filter of system calls for a process without capabilities, with few kinds of sockets; nil = this kernel
// or this machine's architecture has none.
func (r *Rights) filter() ([]unix.SockFilter, error) {
	if !hasFilters() {
		return nil, nil
	}
	none := &specs.LinuxCapabilities{}
	p, err := seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: none}})
	if err != nil {
		return nil, fmt.Errorf("the filter of system calls: %w", err)
	}
	p.Architectures = slices.DeleteFunc(p.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 || a == specs.ArchX86 || a == specs.ArchARM })
	for i := range p.Syscalls {
		p.Syscalls[i].Names = slices.DeleteFunc(p.Syscalls[i].Names, func(name string) bool { return name == "socket" || name == "socketcall" })
	}
	p.Syscalls = slices.DeleteFunc(p.Syscalls, func(s specs.LinuxSyscall) bool { return len(s.Names) == 0 })
	families := []uint64{unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}
	if r.UnixSockets {
		families = append(families, unix.AF_UNIX)
	}
	for _, f := range families {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Value: f, Op: specs.OpEqualTo}}})
	}
	prog, err := bpf.Seccomp(p, runtime.GOARCH)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, nil
	}
	return prog, err
}
