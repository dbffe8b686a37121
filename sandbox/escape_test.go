package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/graph"
)

// escapes are commands that lead out of a container, or change the machine, where its confinement has a hole. Each is one
// that advisories of container runtimes are about. None may succeed.
var escapes = []string{
	"echo x >/proc/sysrq-trigger", "echo '|/tmp/x' >/proc/sys/kernel/core_pattern", "echo 1 >/proc/sys/vm/drop_caches", "echo x >/proc/sys/kernel/hostname",
	"echo /tmp/x >/sys/kernel/uevent_helper", "echo 1 >/sys/fs/cgroup/pids/notify_on_release", "echo /tmp/x >/sys/fs/cgroup/memory/release_agent",
	"echo 1 >/sys/fs/cgroup/memory/memory.limit_in_bytes", "echo max >/sys/fs/cgroup/pids/pids.max", "echo 1 >/sys/fs/cgroup/pids/cgroup.procs", "mkdir /sys/fs/cgroup/pids/mine",
	"mount -t proc proc /mnt", "mount -t tmpfs tmpfs /mnt", "mount -o remount,rw /sys", "mount -o bind /proc /mnt", "umount /proc/keys", "umount /proc/sys", "umount /sys/firmware", "umount -l /proc",
	"mount -t cgroup -o memory cgroup /mnt", "pivot_root / /mnt", "unshare -m true", "unshare -U true", "unshare -n true", "nsenter -t 1 -m true", "losetup /dev/loop0 /bin/busybox",
	"mknod /tmp/disk b 259 0 && head -c 1 /tmp/disk", "mknod /tmp/loop b 7 0 && head -c 1 /tmp/loop", "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem", "mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg",
	"mknod /tmp/fuse c 10 229 && head -c 1 /tmp/fuse", "dmesg", "insmod /bin/busybox", "date -s 2001-01-01; test $(date +%Y) = 2001", "hostname other", "swapoff -a", "fsfreeze --freeze /", "sysctl -w net.ipv4.ip_forward=1",
	"ip link add x type dummy", "ip addr add 192.0.2.1/32 dev lo", "kill -9 1; sleep 1; false", "chmod 000 /dev/null && test -n \"$(cat /proc/keys)\"", "rm /dev/null && mknod /dev/null c 1 1 && head -c 1 /dev/null",
	"test $(head -c 9 /proc/keys | wc -c) -gt 0", "test -n \"$(ls /sys/firmware)\"", "test -e /proc/1/fd/3", "ls /proc/1/root/../work", "test $(ls /proc | grep -c '^[0-9]') -gt 9",
	"cd /proc/self/fd/7 && ls", "cat /proc/self/fd/9/../../etc/shadow", "setpriv --inh-caps +sys_admin true", "setpriv --ambient-caps +sys_admin true",
}

// What leads out of a container does with neither runtime, and both say why in the same words.
func TestEscapes(t *testing.T) {
	script := "exec 2>&1\n"
	for i, e := range escapes {
		script += fmt.Sprintf("echo '# %d'; (%s) </dev/null && echo ESCAPED\n", i, e)
	}
	var outs [2][]string
	for i, runtime := range []string{"", "runc"} {
		b := newBox(t, runtime)
		if runtime == "" && b.native == nil {
			t.Skip("this machine cannot use the built-in runtime")
		}
		for _, dir := range []string{"mnt", "work"} {
			if err := os.Mkdir(filepath.Join(b.rootfs, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		out, _ := b.sh(t, "for a in $(busybox --list); do [ -e /bin/$a ] || busybox ln -s busybox /bin/$a; done\n"+script, nil)
		outs[i] = strings.Split(out, "# ")
		if len(outs[i]) != len(escapes)+1 {
			t.Fatalf("%q: %q", runtime, out)
		}
		noLeaks(t, b)
	}
	for i, e := range escapes {
		here, there := outs[0][i+1], outs[1][i+1]
		if strings.Contains(here, "ESCAPED") {
			t.Errorf("%s: %q", e, here)
		}
		if here != there {
			t.Errorf("%s: built-in %q, runc %q", e, here, there)
		}
	}
}

// calls are system calls that the profile refuses, with the arguments that make them dangerous. The high half of an argument that
// the kernel does not look at must not let a call through.
var calls = []struct {
	name string
	nr   uintptr
	args []uint64
}{
	{"AF_ALG writes to the page cache of shared layers", unix.SYS_SOCKET, []uint64{unix.AF_ALG, unix.SOCK_SEQPACKET, 0}},
	{"AF_ALG, high half", unix.SYS_SOCKET, []uint64{1<<32 | unix.AF_ALG, unix.SOCK_SEQPACKET, 0}},
	{"AF_ALG, low half of an allowed family", unix.SYS_SOCKET, []uint64{unix.AF_INET<<32 | unix.AF_ALG, unix.SOCK_SEQPACKET, 0}},
	{"AF_VSOCK", unix.SYS_SOCKET, []uint64{unix.AF_VSOCK, unix.SOCK_STREAM, 0}},
	{"AF_VSOCK, high half", unix.SYS_SOCKET, []uint64{1<<63 | unix.AF_VSOCK, unix.SOCK_STREAM, 0}},
	{"user namespace", unix.SYS_UNSHARE, []uint64{unix.CLONE_NEWUSER}},
	{"user namespace, high half", unix.SYS_UNSHARE, []uint64{1<<40 | unix.CLONE_NEWUSER}},
	{"clone with a user namespace", unix.SYS_CLONE, []uint64{unix.CLONE_NEWUSER | uint64(unix.SIGCHLD), 0, 0, 0, 0}},
	{"clone with a mount namespace, high half", unix.SYS_CLONE, []uint64{1<<33 | unix.CLONE_NEWNS | uint64(unix.SIGCHLD), 0, 0, 0, 0}},
	{"clone3", unix.SYS_CLONE3, []uint64{0, 0}},
	{"setns", unix.SYS_SETNS, []uint64{0, 0}},
	{"keyctl", unix.SYS_KEYCTL, []uint64{unix.KEYCTL_GET_KEYRING_ID, 1<<64 - 3, 0}},
	{"add_key", unix.SYS_ADD_KEY, []uint64{0, 0, 0, 0, 0}},
	{"bpf", unix.SYS_BPF, []uint64{0, 0, 0}},
	{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, []uint64{0, 0, 0, 0, 0}},
	{"userfaultfd", unix.SYS_USERFAULTFD, []uint64{0}},
	{"io_uring", unix.SYS_IO_URING_SETUP, []uint64{1, 0}},
	{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, []uint64{0, 0, 0}},
	{"open_tree", unix.SYS_OPEN_TREE, []uint64{0, 0, 0}},
	{"move_mount", unix.SYS_MOVE_MOUNT, []uint64{0, 0, 0, 0, 0}},
	{"mount_setattr", unix.SYS_MOUNT_SETATTR, []uint64{0, 0, 0, 0, 0}},
	{"fsopen", unix.SYS_FSOPEN, []uint64{0, 0}},
	{"kexec_load", unix.SYS_KEXEC_LOAD, []uint64{0, 0, 0, 0}},
	{"init_module", unix.SYS_INIT_MODULE, []uint64{0, 0, 0}},
	{"finit_module", unix.SYS_FINIT_MODULE, []uint64{0, 0, 0}},
	{"personality", unix.SYS_PERSONALITY, []uint64{0x0040000}},
	{"personality, high half", unix.SYS_PERSONALITY, []uint64{1<<32 | 0x0040000}},
	{"personality, allowed value with a high half", unix.SYS_PERSONALITY, []uint64{1<<32 | 0x0008}},
	{"acct", unix.SYS_ACCT, []uint64{0}},
	{"reboot", unix.SYS_REBOOT, []uint64{0, 0, 0}},
	{"quotactl", unix.SYS_QUOTACTL, []uint64{0, 0, 0, 0}},
}

// The filter of a real step refuses calls by their whole arguments, as runc's does.
func TestSystemCallsOfEscapes(t *testing.T) {
	if _, err := os.Stat("/usr/bin/perl"); err != nil {
		t.Skip("needs perl")
	}
	script := "$| = 1;"
	for _, c := range calls {
		args := []string{strconv.FormatUint(uint64(c.nr), 10)}
		for _, a := range c.args {
			args = append(args, strconv.FormatInt(int64(a), 10)) // as perl has them
		}
		// A call that starts a process where it must not is one too: the child says nothing.
		script += fmt.Sprintf("$r = syscall(%s); exit 0 if $r == 0 && %d == %d; print $r < 0 ? $!+0 : 'done', \"\\n\";", strings.Join(args, ","), c.nr, unix.SYS_CLONE)
	}
	var outs [2][]string
	for i, runtime := range []string{"", "runc"} {
		b := newBox(t, runtime)
		if runtime == "" && b.native == nil {
			t.Skip("this machine cannot use the built-in runtime")
		}
		var mounts []Mount
		for _, dir := range []string{"/usr", "/lib", "/lib64"} {
			if real, err := filepath.EvalSymlinks(dir); err == nil {
				mounts = append(mounts, Mount{Type: Bind, Source: real, Target: dir, ReadOnly: true})
			}
		}
		var out strings.Builder
		exit, err := b.Run(t.Context(), &Spec{
			RootFS: b.rootfs, Args: []string{"/usr/bin/perl", "-e", script}, Env: []string{"PATH=/bin"}, Network: graph.NetworkNone, Mounts: mounts, Stdout: &out, Stderr: &out,
		})
		if outs[i] = strings.Split(strings.TrimSpace(out.String()), "\n"); err != nil || exit.Code != 0 || len(outs[i]) != len(calls) {
			t.Fatalf("%q: %+v %v %q", runtime, exit, err, out.String())
		}
	}
	refused := []string{strconv.Itoa(int(unix.EPERM)), strconv.Itoa(int(unix.ENOSYS))}
	for i, c := range calls {
		if here, there := outs[0][i], outs[1][i]; !slices.Contains(refused, here) || here != there {
			t.Errorf("%s: %s, by runc %s", c.name, here, there)
		}
	}
}
