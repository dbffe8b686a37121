package reexec

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// executable is the path of the program that runs, as the kernel shows it.
const executable = "/proc/self/exe"

// nameVar is the environment variable that carries the executable's path, which the detached mount does not have.
const nameVar = "STRATA_EXECUTABLE"

// Protect executes the program again from a read-only mount, and does not return then. It returns nil if the program runs from
// one already, and an error if the kernel refuses; the program goes on from its ordinary executable in both cases.
// Only root can do it, and only root can run steps.
func Protect() error {
	if Check() == nil {
		// The kernel names a process after the path that was executed, which is a number here.
		return os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Getenv(nameVar))), 0)
	}
	name, err := os.Executable()
	if err != nil {
		return err
	}
	clone, err := cloneExecutable()
	if err != nil {
		return err
	}
	defer clone.Close()
	// By its name in /proc, not by execveat: syscall.Exec gives the limits back that the runtime has changed.
	return os.NewSyscallError("execve", syscall.Exec(nameOf(clone), os.Args, named(name)))
}

// cloneExecutable makes a detached read-only mount of the executable.
func cloneExecutable() (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, executable, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	f := os.NewFile(uintptr(fd), executable)
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE})
	if err != nil {
		f.Close()
		return nil, os.NewSyscallError("mount_setattr", err)
	}
	return f, nil
}

// nameOf is a path of an open file, for this process and those that it starts.
func nameOf(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }

// Command is a command that runs this program with other arguments, protected from the start if this process may do that: a
// process that ran [Protect] would take twice as long to begin. Done must be called when the command has started.
func Command(args ...string) (cmd *exec.Cmd, done func(), err error) {
	name, err := Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd = exec.Command(name, args...)
	if Check() == nil {
		cmd.Path, cmd.Err, cmd.Env = fmt.Sprintf("/proc/%d/exe", os.Getpid()), nil, named(name)
		return cmd, func() {}, nil
	}
	if os.Geteuid() != 0 {
		return cmd, func() {}, nil
	}
	clone, err := cloneExecutable()
	if err != nil {
		return cmd, func() {}, nil // the other process tries again, and says why it cannot run steps
	}
	cmd.Path, cmd.Err, cmd.Env = nameOf(clone), nil, named(name)
	return cmd, func() { clone.Close() }, nil
}

// named is the environment with the executable's path.
func named(name string) []string { return append(withoutName(os.Environ()), nameVar+"="+name) }

func withoutName(env []string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, nameVar+"=") {
			out = append(out, e)
		}
	}
	return out
}

// Check reports, by an error, that a step could get a descriptor of this program's executable and write to it.
func Check() error {
	f, err := os.Open(executable)
	if err != nil {
		return err
	}
	defer f.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return os.NewSyscallError("fstatfs", err)
	}
	// A read-only mount that has a place can be made writable there, for all that have it open.
	place, err := os.Readlink(executable)
	if err != nil {
		return err
	}
	if fs.Flags&unix.ST_RDONLY == 0 || place != "/" {
		return errors.New("the builder's executable could be written to by a step")
	}
	return nil
}

// Executable is os.Executable for a program that may be protected.
func Executable() (string, error) {
	if name := os.Getenv(nameVar); name != "" && Check() == nil {
		return name, nil
	}
	return os.Executable()
}
