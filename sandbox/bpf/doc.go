// Package bpf compiles what a container may do to programs that the kernel runs: filters of system calls (seccomp(2)) and of
// devices (control groups of version 2). It asks the kernel for nothing and keeps nothing.
//
// Words: an action is the filter's answer to a system call; a range is a run of system call numbers with the same answer,
// among which the compiled filter finds its way by halves, so that every call takes few instructions.
//
//	prog, err := bpf.Seccomp(profile, "amd64") // []unix.SockFilter for seccomp(SECCOMP_SET_MODE_FILTER)
//	insns, err := bpf.Devices(rules)           // eBPF for BPF_PROG_TYPE_CGROUP_DEVICE
//
// What a program cannot do exactly as libseccomp and runc would is an error that wraps [errors.ErrUnsupported].
package bpf
