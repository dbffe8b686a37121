package outfile

import (
	"os"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// Owner is the user whose rights are used in a directory. The zero Owner is the process itself.
type Owner struct {
	uid, gid int
	other    bool
}

// ownerOf returns the owner of a directory. Only a process that may become any user changes its rights.
func ownerOf(st *unix.Stat_t) Owner {
	o := Owner{uid: int(st.Uid), gid: int(st.Gid)}
	o.other = os.Geteuid() == 0 && (o.uid != 0 || o.gid != os.Getegid()) && mayChangeUser()
	return o
}

// IsSelf reports whether the owner is the process itself.
func (o Owner) IsSelf() bool { return !o.other || o.uid == os.Geteuid() }

// mayChangeUser reports whether the thread has CAP_SETUID and CAP_SETGID.
func mayChangeUser() bool {
	c, err := capabilities()
	const want = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
	return err == nil && c[0].Effective&want == want
}

func capHeader() *unix.CapUserHeader {
	return &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
}

func capabilities() (c [2]unix.CapUserData, err error) {
	return c, unix.Capget(capHeader(), &c[0])
}

// Do calls f with the rights of the owner: the file system's user and group, no supplementary groups and, unless the owner is root,
// no capabilities. They are those of the thread, so what other goroutines do meanwhile is not affected, and f must not leave work to
// other goroutines.
func (o Owner) Do(f func() error) error {
	if !o.other {
		return f()
	}
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	caps, err := capabilities()
	if err == nil {
		err = o.enter(caps)
	}
	if err == nil {
		err = f()
	}
	if lerr := leave(caps, groups); lerr != nil {
		// The thread stays locked, so that it ends with this goroutine and nobody else gets it.
		return diag.Errorf(diag.Internal, "cannot return from the rights of user %d: %w", o.uid, lerr)
	}
	runtime.UnlockOSThread()
	return err
}

func (o Owner) enter(caps [2]unix.CapUserData) error {
	if err := setGroups(nil); err != nil {
		return diag.Errorf(diag.Denied, "cannot take the rights of group %d: %w", o.gid, err)
	}
	setFS(o.uid, o.gid)
	uid, _ := unix.SetfsuidRetUid(-1)
	gid, _ := unix.SetfsgidRetGid(-1)
	if uid != o.uid || gid != o.gid {
		return diag.Errorf(diag.Denied, "cannot take the rights of user %d and group %d", o.uid, o.gid)
	}
	if o.uid == 0 {
		return nil
	}
	caps[0].Effective, caps[1].Effective = 0, 0
	return unix.Capset(capHeader(), &caps[0])
}

func leave(caps [2]unix.CapUserData, groups []int) error {
	if err := unix.Capset(capHeader(), &caps[0]); err != nil {
		return err
	}
	setFS(os.Geteuid(), os.Getegid())
	// A change of the file system's user takes away and gives back capabilities of its own.
	if err := unix.Capset(capHeader(), &caps[0]); err != nil {
		return err
	}
	// The kernel made the process one that cannot be looked into, whose files in /proc belong to root of the machine: in a user
	// namespace steps could not be started any more. Elsewhere it stays so: the first process of a step has the memory of the
	// engine and the step's user for a moment, and other processes of that user must not look into it.
	if inUserNamespace() {
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
			return err
		}
	}
	return setGroups(groups)
}

// inUserNamespace reports whether the process is not in the first user namespace, which maps every user to itself.
func inUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && !slices.Equal(strings.Fields(string(b)), []string{"0", "0", "4294967295"})
}

// setFS sets the user and group of the thread for access to files. Errors show in what it reads back.
func setFS(uid, gid int) {
	_, _ = unix.SetfsgidRetGid(gid)
	_, _ = unix.SetfsuidRetUid(uid)
}

// setGroups sets the supplementary groups of this thread only; the standard library sets those of all threads.
func setGroups(groups []int) error {
	ids := make([]uint32, len(groups)+1) // never empty: its address is taken
	for i, g := range groups {
		ids[i] = uint32(g)
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&ids[0])), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
