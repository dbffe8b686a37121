// Package restrict starts programs of the engine's own, such as git, with few rights, and runs functions of the engine with few rights.
//
// Rights are those of a thread in Linux, and a new process gets the rights of the thread that starts it. Start therefore takes them
// from a thread of its own, which starts the program and ends. There is no helper program, and other threads keep their rights.
//
// What the program keeps:
//
//   - files: Programs are read and executed, Read is read, Write is read and changed (landlock(7), Linux 5.13)
//   - TCP connections to Ports (Linux 6.7); none are accepted
//   - sockets of IP, of netlink, and of Unix if UnixSockets is set; the system calls of Docker's default profile (seccomp(2))
//   - no capability but that of Search, and no way to get one by executing a file (no_new_privs)
//   - limits: no core dumps, 4096 open files, files of 64 GiB
//
// A kernel without one of these mechanisms leaves it out. [ABI] tells the version of landlock, 0 if the kernel has none.
//
// [Dirs.Run] does the same for a function of this program, which stays on such a thread: it writes in one directory, reads some others, and
// has no programs, sockets and mounts.
//
//	r := &restrict.Rights{Programs: []string{"/usr", "/lib"}, Read: []string{"/etc/hosts"}, Write: []string{dir}, Ports: []uint16{443}}
//	err := restrict.Start(exec.Command("git", "fetch"), r)
//
//	err = restrict.Dirs{Write: dir, Read: lower}.Run(func() error { return unpack(dir) })
package restrict
