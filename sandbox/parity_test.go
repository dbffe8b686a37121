package sandbox

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/strata-build/strata/graph"
)

// look prints all that a process can see of how it was started. The numbers of mounts and of devices without a name are left out.
const look = `
echo "# status"; grep -E '^(Uid|Gid|Groups|Umask|NSsid|NSpgid|Cap...|NoNewPrivs|Seccomp|Seccomp_filters|Sig(Blk|Ign|Cgt)|CoreDumping|THP_enabled|Speculation_Store_Bypass):' /proc/self/status
echo "# limits"; cat /proc/self/limits
echo "# mounts"; while read id parent dev rest; do echo "$rest"; done </proc/self/mountinfo
echo "# dev"; ls -ln /dev /dev/pts /dev/shm /dev/mqueue | while read mode links rest; do echo "$mode $rest"; done
echo "# masked"; for f in /proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats /sys/devices/virtual/powercap /sys/firmware; do
stat -c '%n %F %s %t %T' $f 2>/dev/null; ls -A $f 2>/dev/null; done
for f in /proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger; do touch $f 2>&1; done; touch /proc/sys/kernel/hostname /sys/kernel/x /sys/fs/cgroup/pids/x 2>&1
echo "# cgroup"; cat /proc/self/cgroup
echo "# fds"; ls -A /proc/1/fd; stat -Lc '%F %U %a' /proc/1/fd/0 /proc/1/fd/1 /proc/1/fd/2
echo "# misc"; env; pwd; umask; id; hostname; cat /proc/1/oom_score_adj; cat /proc/1/cmdline; cut -d' ' -f 4-8 /proc/1/stat
ip -o addr show lo; ls -ld / /proc /sys /dev /tmp
keyctl show 2>/dev/null
`

// masks what differs from one run to the next.
var masks = []struct {
	find *regexp.Regexp
	put  string
}{
	{regexp.MustCompile(`(?m) \w{3} +\d+ +[\d:]+ `), " DATE "},
	{regexp.MustCompile(`strata-[0-9a-f]{8}[-\w]*`), "ID"},
	{regexp.MustCompile(`(?m)(/tmp/\S+|/run/\S+)`), "PATH"},
	{regexp.MustCompile(`(?m)^dr-xr-xr-x +\d+ (.*/proc)$`), "$1"},
	{regexp.MustCompile(`cgroup systemd rw`), "cgroup cgroup rw"}, // a name without a meaning
	// Signals 32 and 33 are the C library's own. If whoever started the tests ignores them, runc's steps do too.
	{regexp.MustCompile(`(?m)^(SigIgn:\t0000000)[01][08](0000000)$`), "${1}00$2"},
	{regexp.MustCompile(`valid_lft \S+ preferred_lft \S+`), ""},
}

// seen runs look and returns its sections.
func seen(t *testing.T, b *box, change func(*Spec)) []string {
	t.Helper()
	for _, name := range []string{"cut", "while", "chgrp"} {
		os.Symlink("busybox", filepath.Join(b.rootfs, "bin", name))
	}
	out, _ := b.sh(t, look, change)
	for _, m := range masks {
		out = m.find.ReplaceAllString(out, m.put)
	}
	return strings.Split(out, "\n")
}

// What a step sees is the same, whoever made its container.
func TestParity(t *testing.T) {
	src := t.TempDir()
	os.WriteFile(filepath.Join(src, "f"), nil, 0o644)
	for name, change := range map[string]func(*Spec){
		"plain":    nil,
		"insecure": func(s *Spec) { s.Security = graph.SecurityInsecure },
		"user":     func(s *Spec) { s.User, s.Cwd, s.Stdin = "app", "/work/dir", strings.NewReader("x") },
		"host": func(s *Spec) {
			s.Network, s.ReadOnlyRoot = graph.NetworkHost, true
			s.Env = append(s.Env, "A=1", "B=2", "A=3", "HOME=/x")
		},
		"mounts": func(s *Spec) {
			s.Mounts = []Mount{
				{Type: Bind, Source: src, Target: "/a/ro", ReadOnly: true},
				{Type: Bind, Source: src, Target: "/a/rw"},
				{Type: Bind, Source: filepath.Join(src, "f"), Target: "/file"},
				{Type: Bind, Source: src, Target: "/opt", Options: []string{"nosuid", "noexec"}},
				{Type: Tmpfs, Target: "/t", Size: 1 << 20},
				{Type: Tmpfs, Target: "/t2", ReadOnly: true, Mode: 0o700},
				{Type: Data, Target: "/run/secret", Data: []byte("x")},
				{Type: Tmpfs, Target: "/dev/shm", Size: 4096},
			}
			s.Limits = graph.Limits{Memory: 64 << 20, PIDs: 77, CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, Ulimits: []graph.Ulimit{{Name: "nofile", Soft: 100, Hard: 200}, {Name: "core", Soft: 0, Hard: 0}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			here, there := newBox(t, ""), newBox(t, "runc")
			if here.native == nil {
				t.Skip("this machine cannot use the built-in runtime")
			}
			a, b := seen(t, here, change), seen(t, there, change)
			slices.Sort(a) // runc mounts /proc first, and the built-in runtime last
			slices.Sort(b)
			for len(a) > 0 || len(b) > 0 {
				switch {
				case len(b) == 0 || len(a) > 0 && a[0] < b[0]:
					t.Errorf("built-in only: %s", a[0])
					a = a[1:]
				case len(a) == 0 || b[0] < a[0]:
					t.Errorf("runc only: %s", b[0])
					b = b[1:]
				default:
					a, b = a[1:], b[1:]
				}
			}
		})
	}
}
