// Package spawn starts a process whose first instructions are a list of system calls, with a program of its own at their end.
//
// A new process of a Go program cannot run Go code: the runtime's other threads are not in it. What has to happen between
// clone and exec, such as giving up rights, is therefore written down before as a [Program], and the new process is a few
// instructions that make one call after the other. It shares the memory of this one, which stands still for it only in the
// thread that calls [Program.Start]; nothing is copied, so that the size of this process costs nothing.
//
// Words: a call is one system call with its arguments and what comes after it, by its result; forward is how many calls
// to go on, 1 being the next one.
//
//	p := &spawn.Program{}
//	p.Call("start a session", unix.SYS_SETSID)
//	p.Call("hide /proc/kcore", unix.SYS_MOUNT, p.String("/dev/null"), p.String("/proc/kcore"), 0, unix.MS_BIND).On(unix.ENOENT, 1)
//	p.Call("run", unix.SYS_EXECVE, p.String("/bin/true"), p.Strings([]string{"true"}), p.Strings(nil))
//	proc, err := p.Start(spawn.Options{Flags: unix.CLONE_NEWPID})
//	// err is a *spawn.Error if a call failed; proc.PID can be waited for
package spawn
