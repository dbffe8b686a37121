package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// newNativeBox is a box that cannot do without the built-in runtime.
func newNativeBox(t testing.TB) *box {
	b := newBox(t, "")
	if b.native == nil {
		t.Skip("this machine cannot use the built-in runtime")
	}
	b.binary = "no-such-runtime"
	return b
}

// Whatever is new in a configuration is refused until something reads it.
func TestAccepts(t *testing.T) {
	fresh := func() *specs.Spec {
		s, err := ociSpec(testPlan(), testHost())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	n := &native{}
	if err := n.accepts(fresh()); err != nil {
		t.Error(err)
	}
	yes := true
	for name, change := range map[string]func(*specs.Spec){
		"terminal":    func(s *specs.Spec) { s.Process.Terminal = true },
		"hooks":       func(s *specs.Spec) { s.Hooks = &specs.Hooks{} },
		"annotations": func(s *specs.Spec) { s.Annotations = map[string]string{"a": "b"} },
		"selinux":     func(s *specs.Spec) { s.Process.SelinuxLabel = "x" },
		"mount label": func(s *specs.Spec) { s.Linux.MountLabel = "x" },
		"cgroup v2":   func(s *specs.Spec) { s.Linux.Resources.Unified = map[string]string{"memory.max": "max"} },
		"ambient":     func(s *specs.Spec) { s.Process.Capabilities.Ambient = []string{"CAP_CHOWN"} },
		"umask":       func(s *specs.Spec) { s.Process.User.Umask = new(uint32) },
		"sysctl":      func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"a": "b"} },
		"propagation": func(s *specs.Spec) { s.Linux.RootfsPropagation = "shared" },
		"block IO":    func(s *specs.Spec) { s.Linux.Resources.BlockIO = &specs.LinuxBlockIO{} },
		"user ns": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		},
		"pid ns of another": func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/proc/1/ns/pid" },
		"no pid ns":         func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[1:] },
		"mount type":        func(s *specs.Spec) { s.Mounts[0].Type = "ext4" },
		"mount option":      func(s *specs.Spec) { s.Mounts[1].Options = append(s.Mounts[1].Options, "tmpcopyup") },
		"mount in /proc":    func(s *specs.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Type: "tmpfs", Destination: "/proc/sys"}) },
		"device elsewhere":  func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/x", Type: "c"}} },
		"fifo":              func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "p"}} },
		"device rules":      func(s *specs.Spec) { s.Linux.Resources.Devices = s.Linux.Resources.Devices[1:] },
		"seccomp":           func(s *specs.Spec) { s.Linux.Seccomp.ListenerPath = "/x" },
		"memory": func(s *specs.Spec) {
			s.Linux.Resources.Memory = &specs.LinuxMemory{DisableOOMKiller: &yes}
		},
		"real-time": func(s *specs.Spec) { s.Linux.Resources.CPU = &specs.LinuxCPU{RealtimePeriod: new(uint64)} },
		"nothing":   func(s *specs.Spec) { s.Process = nil },
	} {
		s := fresh()
		change(s)
		if err := n.accepts(s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A step that needs the other runtime says so where there is none.
func TestNoOtherRuntime(t *testing.T) {
	b := newNativeBox(t)
	_, err := b.Run(t.Context(), &Spec{RootFS: b.rootfs, Args: []string{"/bin/true"}, Network: graph.NetworkNone, TTY: true})
	if diag.KindOf(err) != diag.Unsupported || !strings.Contains(err.Error(), "Terminal") || !strings.Contains(err.Error(), "no-such-runtime") {
		t.Errorf("%v", err)
	}
}

// The device rules hold, with the controller of version 1 and with the program of version 2.
func TestDeviceRules(t *testing.T) { both(t, testDeviceRules) }

func testDeviceRules(t *testing.T, b *box) {
	const try = "mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg; mknod /tmp/null c 1 3 && echo x >/tmp/null && head -c 1 /dev/zero | wc -c; mknod /tmp/b b 7 0 && head -c 1 /tmp/b; rm -f /tmp/*"
	check := func(name string) {
		out, _ := b.sh(t, try, nil)
		if strings.Count(out, "Operation not permitted") != 2 || !strings.Contains(out, "\n1\n") {
			t.Errorf("%s: %q", name, out)
		}
	}
	check("as mounted")
	const v2 = "/sys/fs/cgroup/unified"
	if _, err := os.Stat(v2 + "/cgroup.procs"); err != nil || b.native == nil || b.host.cgroups.unified {
		return
	}
	before := b.host.cgroups
	if err := before.remove(b.native.groups.get(b.native.group)); err != nil { // it has no program of version 2
		t.Fatal(err)
	}
	b.host.cgroups = &cgroups{unified: true, roots: []string{v2}, v2: v2, controllers: map[string]string{"devices": v2}}
	b.host.steps.PIDs = -1 // here it has no controllers
	check("version 2")
	out, _ := b.sh(t, "cat /proc/self/cgroup | grep ^0; ls /sys/fs/cgroup; touch /sys/fs/cgroup/x 2>&1", nil)
	if !strings.Contains(out, "0::/\n") || !strings.Contains(out, "cgroup.procs\n") || !strings.Contains(out, "Read-only") {
		t.Errorf("%q", out)
	}
	noLeaks(t, b)
	if err := b.host.cgroups.remove(b.native.groups.get(b.native.group)); err != nil {
		t.Error(err)
	}
	b.host.cgroups, b.host.steps.PIDs = before, defaultPIDs
}

// The steps of a client have a group above theirs, by which the kernel divides processors and memory among clients. Groups are used
// again for steps of the same client only.
func TestGroupsOfClients(t *testing.T) {
	b := newBox(t, "")
	if b.native == nil {
		t.Skip("this machine cannot use the built-in runtime")
	}
	for range 2 {
		for _, client := range []string{"", "alice", "mallory"} {
			if out, exit := b.sh(t, "cat /proc/self/cgroup", func(s *Spec) { s.Client = client }); exit.Code != 0 || strings.Contains(out, "client-") {
				t.Errorf("%q: %+v %q", client, exit, out)
			}
		}
	}
	var above []string
	for _, g := range b.native.groups.idle {
		above = append(above, filepath.Dir(g))
	}
	slices.Sort(above)
	own := b.native.group
	want := []string{own, filepath.Join(own, clientGroup("alice")), filepath.Join(own, clientGroup("mallory"))}
	slices.Sort(want)
	if !slices.Equal(above, want) {
		t.Errorf("groups below %q, want %q", above, want)
	}
	noLeaks(t, b)
}

// An image need not have the directories that the kernel's file systems are mounted on, and may have links in their place.
func TestBareRoot(t *testing.T) { both(t, testBareRoot) }

func testBareRoot(t *testing.T, b *box) {
	for _, dir := range []string{"proc", "sys", "dev"} {
		os.Remove(filepath.Join(b.rootfs, dir))
	}
	if out, exit := b.sh(t, "cat /proc/self/comm; ls -d /dev/null /sys/kernel", nil); exit.Code != 0 || out != "cat\n/dev/null\n/sys/kernel\n" {
		t.Errorf("%q %+v", out, exit)
	}
	outside := t.TempDir()
	for _, dir := range []string{"proc", "sys"} {
		os.RemoveAll(filepath.Join(b.rootfs, dir))
		os.Symlink(outside, filepath.Join(b.rootfs, dir))
		_, err := b.Run(t.Context(), &Spec{RootFS: b.rootfs, Args: []string{"/bin/true"}, Network: graph.NetworkNone})
		if diag.KindOf(err) != diag.Unavailable || !strings.Contains(err.Error(), "ordinary directory") {
			t.Errorf("%s: %v", dir, err)
		}
		os.Remove(filepath.Join(b.rootfs, dir))
		os.Mkdir(filepath.Join(b.rootfs, dir), 0o755)
	}
	noLeaks(t, b)
}

// Names are looked up as by runc: files that cannot be executed are passed over, and so is the working directory.
func TestLookup(t *testing.T) { both(t, testLookup) }

func testLookup(t *testing.T, b *box) {
	for name, mode := range map[string]os.FileMode{"a/tool": 0o644, "b/tool/x": 0o755, "c/tool": 0o755, "here/local": 0o755, "bad": 0o755} {
		os.MkdirAll(filepath.Join(b.rootfs, filepath.Dir(name)), 0o755)
		b.write(name, "#!/bin/sh\necho "+name)
		os.Chmod(filepath.Join(b.rootfs, name), mode)
	}
	b.write("bad", "\x00\x01")
	run := func(user string, args ...string) (string, error) {
		var out strings.Builder
		_, err := b.Run(t.Context(), &Spec{RootFS: b.rootfs, Args: args, Env: []string{"PATH=/a:/b:/c:"}, User: user, Cwd: "/here", Network: graph.NetworkNone, Stdout: &out})
		return out.String(), err
	}
	if out, err := run("", "tool"); err != nil || out != "c/tool\n" {
		t.Errorf("%q %v", out, err)
	}
	if out, err := run("", "./local"); err != nil || out != "here/local\n" {
		t.Errorf("%q %v", out, err)
	}
	wrong := map[string]string{"nosuch": "no such program", "/a/tool": "permission denied"}
	if b.native != nil {
		wrong["/bad"] = "exec format error" // runc has told that all is well before it tries
	}
	for name, want := range wrong {
		if _, err := run("app", name); diag.KindOf(err) != diag.Failed || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := run("app", "local"); err == nil {
		t.Error("a program of the working directory runs")
	}
	noLeaks(t, b)
}

// Steps that start, end and are stopped at all times leave no thread, descriptor, mount or group.
func TestChurn(t *testing.T) {
	b := newNativeBox(t)
	b.write("etc/hosts", "")
	b.write("etc/resolv.conf", "")
	b.sh(t, "true", nil)
	threads := pprof.Lookup("threadcreate")
	fds := func() int { n, _ := os.ReadDir("/proc/self/fd"); return len(n) }
	tasks := func() int { n, _ := os.ReadDir("/proc/self/task"); return len(n) }
	before := fds()
	reason := errors.New("stop")
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 20 {
				ctx, cancel := context.WithCancelCause(t.Context())
				stop := i%3 == 0
				if stop {
					time.AfterFunc(time.Duration(i*w)*100*time.Microsecond, func() { cancel(reason) })
				}
				exit, err := b.Run(ctx, &Spec{RootFS: b.rootfs, ReadOnlyRoot: true, Args: []string{"/bin/sh", "-c", fmt.Sprintf("(sleep 100 &); exit %d", i)}, Env: []string{"PATH=/bin"}, Network: graph.NetworkNone})
				if stop && errors.Is(err, reason) || err == nil && exit.Code == i {
					cancel(nil)
					continue
				}
				t.Errorf("%d: %+v %v", i, exit, err)
				cancel(nil)
			}
		})
	}
	wg.Wait()
	noLeaks(t, b)
	b.net.none.close()
	if n := fds(); n > before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
	for i := 0; tasks() > 30 && i < 100; i++ {
		time.Sleep(10 * time.Millisecond) // threads end on their own
	}
	if n := tasks(); n > 30 {
		t.Errorf("%d threads are left of %d", n, threads.Count())
	}
}

// Without descriptors to spare a step fails with a clear error, wherever that happens, and leaves nothing.
func TestNoDescriptors(t *testing.T) {
	b := newNativeBox(t)
	b.sh(t, "true", nil)
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	open, _ := os.ReadDir("/proc/self/fd")
	failed, ran := 0, 0
	for spare := range 45 {
		low := unix.Rlimit{Cur: uint64(len(open) + spare), Max: before.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
			t.Fatal(err)
		}
		exit, err := b.Run(t.Context(), &Spec{RootFS: b.rootfs, Args: []string{"/bin/true"}, Network: graph.NetworkNone})
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Fatal(err)
		}
		switch {
		case err == nil && exit.Code == 0:
			ran++
		case errors.Is(err, unix.EMFILE):
			failed++
		default:
			t.Errorf("%d to spare: %+v %v", spare, exit, err)
		}
	}
	if failed == 0 || ran == 0 {
		t.Errorf("%d steps failed, %d ran", failed, ran)
	}
	noLeaks(t, b)
}

// A step without memory ends; the builder, whose memory its process has for a moment, does not.
func TestNoMemory(t *testing.T) {
	b := newNativeBox(t)
	if !b.host.cgroups.has("memory") {
		t.Skip("no memory controller")
	}
	for _, limit := range []int64{4096, 64 << 10, 256 << 10, 1 << 20, 4 << 20} {
		exit, err := b.Run(t.Context(), &Spec{RootFS: b.rootfs, Args: []string{"/bin/true"}, Network: graph.NetworkNone, Limits: graph.Limits{Memory: limit}})
		if err == nil && exit.Code != 0 && !exit.OOMKilled {
			t.Errorf("%d bytes: %+v", limit, exit)
		}
		t.Log(limit, exit, err)
	}
	noLeaks(t, b)
}
