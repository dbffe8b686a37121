//go:build linux && (amd64 || arm64)

package spawn

import (
	"math"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options are about the clone itself.
type Options struct {
	Flags  uint64        // CLONE_NEW… for clone3(2)
	Cgroup int           // descriptor of a control group of version 2 that the process starts in; 0 = this process's
	PIDFD  *atomic.Int32 // gets the process's descriptor before it runs; whoever gives this closes it. It must be -1 before
}

// cloneArgs are those of clone3(2), of version 2.
type cloneArgs struct {
	flags, pidfd uint64
	_            [2]uint64 // child_tid, parent_tid
	exitSignal   uint64
	_            [5]uint64 // stack, stack_size, tls, set_tid, set_tid_size
	cgroup       uint64
}

// state is what the assembly works with. The new process writes to it how it failed.
type state struct {
	all    uint64 // a mask of all signals
	_      uint64 // the mask before
	ops    *op
	failed uint64 // number of the call
	errno  uint64
	pidfd  *atomic.Int32 // only so that it is on the heap
}

// vfork starts a process that makes the calls, and returns its id or a negative errno when it has called execve or failed.
func vfork(args *cloneArgs, s *state) int64

//go:linkname entersyscall runtime.entersyscall
func entersyscall()

//go:linkname exitsyscall runtime.exitsyscall
func exitsyscall()

// blocking tells the scheduler that this thread stands still, as package syscall does.
//
//go:nosplit
//go:norace
func blocking(args *cloneArgs, s *state) int64 {
	entersyscall()
	pid := vfork(args, s)
	exitsyscall()
	return pid
}

// Available reports whether this kernel has what Start needs.
func Available() bool {
	_, _, errno := syscall.Syscall(unix.SYS_CLONE3, 0, 0, 0)
	return errno == unix.EINVAL
}

// Start runs the program in a new process and returns its id when its last call, an execve, was made. The thread that calls it is
// the process's parent: what the kernel does for parents, such as PR_SET_PDEATHSIG, depends on that thread. After an
// error there is no process any more. The process starts with all signals blocked, their handlers reset, and a copy of
// all open files.
func (p *Program) Start(opt Options) (pid int, err error) {
	if len(p.ops) == 0 {
		return 0, unix.EINVAL
	}
	// CLONE_VFORK: the kernel, short of memory, does not choose a process to kill that has its parent's memory, and whose size.
	args := &cloneArgs{flags: opt.Flags | unix.CLONE_VM | unix.CLONE_VFORK | unix.CLONE_CLEAR_SIGHAND, exitSignal: uint64(unix.SIGCHLD)}
	if opt.PIDFD != nil {
		args.flags |= unix.CLONE_PIDFD
		args.pidfd = uint64(uintptr(unsafe.Pointer(opt.PIDFD)))
	}
	if opt.Cgroup > 0 {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(opt.Cgroup)
	}
	s := &state{all: math.MaxUint64, ops: &p.ops[0], pidfd: opt.PIDFD}
	got := blocking(args, s)
	runtime.KeepAlive(p)
	runtime.KeepAlive(s)
	if got < 0 {
		return 0, &Error{What: "make a process", Errno: syscall.Errno(-got)}
	}
	if s.errno != 0 {
		for {
			if _, err := unix.Wait4(int(got), nil, unix.WALL, nil); err != unix.EINTR {
				break
			}
		}
		return 0, &Error{What: p.what[s.failed], Errno: syscall.Errno(s.errno)}
	}
	return int(got), nil
}
