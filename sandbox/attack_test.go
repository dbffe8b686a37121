package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// The names of these tests are those of attacks. Each was possible, here or in another builder.

// probe prints the bytes that a step reads of hidden files and the entries of hidden directories: 0 and nothing.
const probe = `for f in /proc/kcore /proc/keys /proc/interrupts /proc/timer_list /proc/sched_debug; do if [ -e $f ]; then head -c 9 $f | wc -c; fi; done | grep -v '^0$'; ls /sys/firmware /proc/scsi /proc/acpi`

// A step that brings a /dev without a null device, or with something else of that name, reads what masks hide
// (CVE-2025-31133). A step could with an empty directory.
func TestMasksFallAwayWithOwnDev(t *testing.T) { both(t, testMasksFallAwayWithOwnDev) }

func testMasksFallAwayWithOwnDev(t *testing.T, b *box) {
	file, link := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(file, "null"), []byte("not null"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/sysrq-trigger", filepath.Join(link, "null")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("dev", filepath.Join(b.rootfs, "alias")); err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]Mount{
		"empty":        {Type: Bind, Source: t.TempDir(), Target: "/dev"},
		"by a link":    {Type: Bind, Source: t.TempDir(), Target: "/alias"},
		"memory":       {Type: Tmpfs, Target: "/dev"},
		"file":         {Type: Bind, Source: file, Target: "/dev"},
		"link":         {Type: Bind, Source: link, Target: "/dev"},
		"null alone":   {Type: Bind, Source: filepath.Join(file, "null"), Target: "/dev/null"},
		"not /dev":     {Type: Bind, Source: t.TempDir(), Target: "/elsewhere"},
		"null in /dev": {Type: Data, Data: []byte("x"), Mode: 0o666, Target: "/alias/null"},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			exit, err := b.Run(t.Context(), &Spec{
				RootFS: b.rootfs, Args: []string{"/bin/sh", "-c", probe + "; echo end"}, Env: []string{"PATH=/bin"}, Network: graph.NetworkNone,
				Mounts: []Mount{m}, Stdout: &out,
			})
			if err == nil && (!hidden(out.String()) || exit.Code != 0) {
				t.Errorf("%+v\n%s", exit, out.String())
			}
			if err != nil && name != "link" { // which is refused by runc
				t.Error(err)
			}
		})
	}
	if st, err := os.Stat("/dev/null"); err != nil || st.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("%v %v", st, err)
	}
	noLeaks(t, b)
}

// hidden reports whether the output of probe has no entry and no number.
func hidden(out string) bool {
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if line != "" && line != "end" && !strings.HasSuffix(line, ":") {
			return false
		}
	}
	return strings.HasSuffix(out, "end\n")
}

// A node of another device with the name null is not what files are hidden with.
func TestNullIsADeviceNumber(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for name, c := range map[string]struct {
		mode uint32
		dev  uint64
		ok   bool
	}{
		"null": {unix.S_IFCHR, unix.Mkdev(1, 3), true}, "zero": {unix.S_IFCHR, unix.Mkdev(1, 5), false}, "block": {unix.S_IFBLK, unix.Mkdev(1, 3), false},
		"file": {unix.S_IFREG, 0, false}, "fifo": {unix.S_IFIFO, 0, false},
	} {
		p := filepath.Join(dir, name)
		if err := unix.Mknod(p, c.mode|0o600, int(c.dev)); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(p, unix.O_PATH, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkNull(f); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		f.Close()
	}
}

// A mount in /proc or /sys, of any kind and on any way there, gives programs and runtimes false files of the kernel
// (CVE-2023-27561, CVE-2025-52881). A target in /proc had another runtime chosen than the built-in one.
func TestMountsInKernelFiles(t *testing.T) { both(t, testMountsInKernelFiles) }

func testMountsInKernelFiles(t *testing.T, b *box) {
	src := t.TempDir()
	for name, to := range map[string]string{"up": "../proc", "abs": "/sys/kernel", "two": "up/sys", "loop": "loop"} {
		if err := os.Symlink(to, filepath.Join(src, name)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(b.rootfs, name)); err != nil {
			t.Fatal(err)
		}
	}
	kinds := map[string]Mount{"bind": {Type: Bind, Source: src}, "tmpfs": {Type: Tmpfs}, "secret": {Type: Data, Data: []byte("x")}}
	for kind, m := range kinds {
		for _, target := range []string{
			"/proc", "/proc/", "/proc/sys", "/proc/self/attr", "/proc/1/../sys", "//proc/x", "/x/../proc/keys", "/sys", "/sys/fs/cgroup", "/sys/kernel/security", "/sys/./x",
			"/up/sys", "/abs", "/abs/x", "/two", "/two/x", "/in/up/x", "/in/abs", "/in/two", "/in/two/y", "/loop",
		} {
			m.Target = target
			mounts := []Mount{m}
			if strings.HasPrefix(target, "/in/") {
				mounts = append(mounts, Mount{Type: Bind, Source: src, Target: "/in"})
			}
			for _, security := range []graph.Security{graph.SecuritySandbox, graph.SecurityInsecure} {
				_, err := b.Run(t.Context(), &Spec{RootFS: b.rootfs, Args: []string{"/bin/true"}, Network: graph.NetworkNone, Mounts: mounts, Security: security})
				if diag.KindOf(err) != diag.Invalid || !strings.Contains(err.Error(), target) {
					t.Errorf("%s at %s %s: %v", kind, target, security, err)
				}
			}
		}
	}
	for _, target := range []string{"/procx", "/systems", "/dev/shm", "/a/proc", "/in/dir"} {
		mounts := []Mount{{Type: Tmpfs, Target: target}, {Type: Bind, Source: src, Target: "/in"}}
		if exit, err := b.Run(t.Context(), &Spec{RootFS: b.rootfs, Args: []string{"/bin/true"}, Network: graph.NetworkNone, Mounts: mounts}); err != nil || exit.Code != 0 {
			t.Errorf("%s: %+v %v", target, exit, err)
		}
	}
	noLeaks(t, b)
}
