package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/strata-build/strata/graph"
)

// needRoot skips tests that make containers.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("needs a static busybox")
	}
}

// box is a sandbox with a root file system of busybox.
type box struct {
	*Sandbox
	rootfs string
	warned []string
}

// both runs a test with the built-in runtime and with runc: they must behave alike.
func both(t *testing.T, f func(t *testing.T, b *box)) { bothWith(t, Steps{}, f) }

// bothWith is both for steps that an operator confines.
func bothWith(t *testing.T, steps Steps, f func(t *testing.T, b *box)) {
	t.Run("built-in", func(t *testing.T) {
		b := newConfined(t, "", steps)
		if b.native == nil {
			t.Skip("this machine cannot use the built-in runtime")
		}
		b.binary = "no-such-runtime" // it must not be needed
		f(t, b)
	})
	t.Run("runc", func(t *testing.T) { f(t, newConfined(t, "runc", steps)) })
}

// newBox makes a sandbox with a runtime: "" is the built-in one.
func newBox(t testing.TB, binary string) *box { return newConfined(t, binary, Steps{}) }

func newConfined(t testing.TB, binary string, steps Steps) *box {
	needRoot(t)
	if _, err := exec.LookPath("runc"); binary != "" && err != nil {
		t.Skip("needs runc")
	}
	b := &box{rootfs: filepath.Join(t.TempDir(), "rootfs")}
	var err error
	b.Sandbox, err = New(Options{Root: t.TempDir(), Binary: binary, Steps: steps, OldRunc: true, Warn: func(s string) { b.warned = append(b.warned, s) }})
	if err == nil {
		err = b.prepare()
	}
	if err != nil {
		t.Fatal(err)
	}
	b.allowedParents = []string{"/strata-test-" + b.owner}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if b.host != nil && len(b.host.cgroups.dirs(cgroupName(b.owner))) > 0 {
			t.Error("control groups left")
		}
	})
	for _, d := range []string{"bin", "etc", "tmp", "root", "proc", "sys", "dev"} {
		os.MkdirAll(filepath.Join(b.rootfs, d), 0o755)
	}
	bin, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	b.write("bin/busybox", string(bin))
	os.Chmod(filepath.Join(b.rootfs, "bin/busybox"), 0o755)
	for _, name := range []string{"sh", "true", "cat", "id", "env", "ls", "mount", "sleep", "mkdir", "touch", "ip", "stat", "dd", "yes", "head", "tail", "hostname", "pwd", "grep", "chmod", "ln", "rm", "mv", "rmdir", "wc", "stty", "nslookup", "seq", "mknod", "nc"} {
		os.Symlink("busybox", filepath.Join(b.rootfs, "bin", name))
	}
	b.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n")
	b.write("etc/group", "root:x:0:\nwheel:x:10:root,app\napp:x:1001:\nvideo:x:44:app\n")
	return b
}

func (b *box) write(name, data string) {
	os.WriteFile(filepath.Join(b.rootfs, name), []byte(data), 0o644)
}

// sh runs a shell command and returns what it printed, as it came.
func (b *box) sh(t testing.TB, cmd string, change func(*Spec)) (string, *Exit) {
	t.Helper()
	var out bytes.Buffer
	spec := &Spec{RootFS: b.rootfs, Args: []string{"/bin/sh", "-c", cmd}, Env: []string{"PATH=/bin"}, Network: graph.NetworkNone, Stdout: &out, Stderr: &out}
	if change != nil {
		change(spec)
	}
	exit, err := b.Run(t.Context(), spec)
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out.String())
	}
	return out.String(), exit
}

// noLeaks checks that nothing of the sandbox's owner is left but idle networks.
func noLeaks(t testing.TB, b *box) {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(b.root))
	if err != nil || len(mounts) > 0 {
		t.Errorf("mounts left: %v %v", mounts, err)
	}
	if left, _ := os.ReadDir(filepath.Join(b.root, "run")); len(left) > 0 {
		t.Errorf("bundles left: %v", left)
	}
	if left, _ := os.ReadDir(b.runtimeDir()); len(left) > 0 {
		t.Errorf("containers left: %v", left)
	}
	for _, r := range b.host.cgroups.roots {
		left, _ := filepath.Glob(filepath.Join(r, cgroupName(b.owner), "*", "cgroup.procs"))
		ofClients, _ := filepath.Glob(filepath.Join(r, cgroupName(b.owner), clientPrefix+"*", "*", "cgroup.procs"))
		for _, l := range append(left, ofClients...) {
			group := strings.TrimPrefix(filepath.Dir(l), filepath.Clean(r))
			idle := b.native != nil && slices.Contains(b.native.groups.idle, group) || strings.HasPrefix(filepath.Base(group), clientPrefix)
			if procs, _ := os.ReadFile(l); !idle || len(procs) > 0 {
				t.Errorf("control group left: %s %q", l, procs)
			}
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, p := range procs {
		if data, _ := os.ReadFile(p); strings.Contains(string(data), b.rootfs) {
			cmd, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline"))
			if filepath.Base(filepath.Dir(p)) != fmt.Sprint(os.Getpid()) {
				t.Errorf("process left: %s %q", p, cmd)
			}
		}
	}
}

func BenchmarkTrue(b *testing.B) {
	for _, binary := range []string{"", "runc"} {
		b.Run("runtime="+binary, func(b *testing.B) {
			box := newBox(b, binary)
			spec := &Spec{RootFS: box.rootfs, Args: []string{"/bin/true"}, Network: graph.NetworkNone}
			for b.Loop() {
				if exit, err := box.Run(context.Background(), spec); err != nil || exit.Code != 0 {
					b.Fatal(exit, err)
				}
			}
		})
	}
}
