package restrict

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Dirs are the directories that a function of this program may use.
type Dirs struct {
	Write *os.File // it and what is below is changed, nodes of devices included
	Read  []string // they and what is below are read; those that do not exist are left out
}

// threadABI is the least version of landlock that Run uses: without REFER, which version 2 has, no file can be linked or moved into
// another directory.
const threadABI = 2

// treeRights are those in a directory that becomes the root of a system.
const treeRights = writeRights | unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO

// treeCapabilities are those that files of any owner, mode, type and attribute need. CAP_SYS_ADMIN is for attributes of overlays; what
// else it gives, the filter refuses.
const treeCapabilities = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID |
	1<<unix.CAP_MKNOD | 1<<unix.CAP_SETFCAP | 1<<unix.CAP_SYS_ADMIN

// Confines reports whether the kernel can keep the functions of Run to their directories.
func Confines() bool { return ABI() >= threadABI }

// Run runs f on a thread of its own, which ends with it. The thread opens, changes and removes nothing but what is in the
// directories, executes nothing, makes no sockets and mounts, and has only the capabilities that writing files needs. Descriptors that
// are open already keep what they are good for. Other goroutines, also those that f starts, keep their rights: f must not leave to them
// what has to be confined, and must not call what needs more, such as a reader that opens files. A panic of f is passed on.
//
// Where the kernel confines nothing, Run is a call of f.
func (d Dirs) Run(f func() error) error {
	abi := ABI()
	if abi < threadABI {
		return f()
	}
	set, err := d.ruleset(abi)
	if err != nil {
		return err
	}
	defer set.Close()
	var failed any
	var stack []byte
	done := make(chan error, 1)
	go onThread(done, func() error {
		if err := d.enter(set); err != nil {
			return fmt.Errorf("cannot take rights from a thread: %w", err)
		}
		defer func() {
			if failed = recover(); failed != nil {
				stack = debug.Stack()
			}
		}()
		return f()
	})
	err = <-done
	if failed != nil {
		panic(fmt.Sprintf("%v\n\non a confined thread:\n%s", failed, stack))
	}
	return err
}

func (d Dirs) ruleset(abi int) (_ *os.File, err error) {
	all := handled(abi)
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&all)), unsafe.Sizeof(all), 0)
	if errno != 0 {
		return nil, fmt.Errorf("make a landlock ruleset: %w", errno)
	}
	set := os.NewFile(fd, "landlock")
	err = allowFD(set, int(d.Write.Fd()), d.Write.Name(), treeRights&all.Handled_access_fs)
	for _, path := range d.Read {
		if err == nil {
			err = allow(set, path, readRights)
		}
	}
	if err != nil {
		return nil, errors.Join(err, set.Close())
	}
	return set, nil
}

// enter takes the rights of the calling thread.
func (Dirs) enter(set *os.File) error {
	if err := dropCapabilities(treeCapabilities); err != nil {
		return err
	}
	if err := enterDomain(set); err != nil {
		return err
	}
	return setFilter(threadFilter())
}

// refused are the system calls that no code which writes files has a use for, and with which a thread could reach more than files. Go's
// own, for memory, threads and signals, are none of them.
func refused() []uint32 {
	return []uint32{
		unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_OPEN,
		unix.SYS_PIDFD_GETFD, unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_KILL, unix.SYS_TKILL,
		unix.SYS_SOCKET, unix.SYS_SOCKETPAIR, unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_ACCEPT4,
		unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN,
		unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR, unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_SWAPON,
		unix.SYS_SWAPOFF, unix.SYS_QUOTACTL, unix.SYS_ACCT,
		unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_MEMFD_CREATE, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
		unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
		unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT,
		unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME,
		unix.SYS_ADJTIMEX, unix.SYS_SYSLOG, unix.SYS_PERSONALITY,
	}
}

// Offsets in struct seccomp_data.
const (
	callNumber = 0
	callArch   = 4
)

// threadFilter refuses these calls, and those of other ABIs; nil = this machine's architecture has none.
func threadFilter() []unix.SockFilter {
	arch := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	if arch == 0 {
		return nil
	}
	calls := refused()
	load := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	equal := func(k uint32, yes, no int) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: uint8(yes), Jf: uint8(no)}
	}
	answer := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	prog := []unix.SockFilter{load(callArch), equal(arch, 0, len(calls)+2), load(callNumber)}
	for i, n := range calls {
		prog = append(prog, equal(n, len(calls)-i, 0))
	}
	return append(prog, answer(unix.SECCOMP_RET_ALLOW), answer(unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM)))
}
