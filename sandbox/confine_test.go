package sandbox

import (
	"bufio"
	"context"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// without is a host that lacks a controller, with its groups as they are mounted otherwise.
func (b *box) without(controllers ...string) {
	c := *b.host.cgroups
	c.controllers = maps.Clone(c.controllers)
	for _, name := range controllers {
		delete(c.controllers, name)
	}
	h := *b.host
	h.cgroups = &c
	b.host = &h
}

// On a machine whose control groups have no devices controller a step made the node of a disk and read it.
func TestRawDiskWithoutDevicesController(t *testing.T) { both(t, testRawDiskWithoutDevicesController) }

func testRawDiskWithoutDevicesController(t *testing.T, b *box) {
	if b.host.cgroups.unified {
		t.Skip("version 2 has no such controller")
	}
	here := b.host
	b.without("devices")
	spec := &Spec{RootFS: b.rootfs, Args: []string{"/bin/sh", "-c", "mknod /tmp/d b 7 0 && head -c 1 /tmp/d"}, Env: []string{"PATH=/bin"}, Network: graph.NetworkNone}
	exit, err := b.Run(t.Context(), spec)
	if diag.KindOf(err) != diag.Unsupported || !strings.Contains(err.Error(), `"devices"`) {
		t.Errorf("%+v %v", exit, err)
	}
	if err := b.host.cgroups.create("/"+cgroupName(b.owner)+"/direct", mustSpec(t, testPlan(), testHost()).Linux.Resources, &devicePrograms{}); err == nil || !strings.Contains(err.Error(), `"devices"`) {
		t.Errorf("a group without its rules: %v", err)
	}
	if b.native != nil { // an insecure step may have all devices
		spec.Security, spec.Args = graph.SecurityInsecure, []string{"/bin/true"}
		if exit, err := b.Run(t.Context(), spec); err != nil || exit.Code != 0 {
			t.Errorf("%+v %v", exit, err)
		}
	}
	b.host = here
	noLeaks(t, b)
}

// The limit of processes was left out without a word where no controller keeps it.
func TestForkBombWithoutPidsController(t *testing.T) { both(t, testForkBombWithoutPidsController) }

func testForkBombWithoutPidsController(t *testing.T, b *box) {
	here := b.host
	b.without("pids")
	spec := &Spec{RootFS: b.rootfs, Args: []string{"/bin/true"}, Network: graph.NetworkNone}
	_, err := b.Run(t.Context(), spec)
	if diag.KindOf(err) != diag.Unsupported || !strings.Contains(err.Error(), `"pids"`) {
		t.Error(err)
	}
	b.host.steps.PIDs = -1 // the operator's word
	if exit, err := b.Run(t.Context(), spec); err != nil || exit.Code != 0 {
		t.Errorf("%+v %v", exit, err)
	}
	b.host = here
	noLeaks(t, b)
}

// A kernel without seccomp ran steps with all system calls.
func TestStepWithoutSeccomp(t *testing.T) {
	h := testHost()
	h.seccomp = nil
	if _, err := ociSpec(testPlan(), h); diag.KindOf(err) != diag.Unsupported || !strings.Contains(err.Error(), "seccomp") {
		t.Error(err)
	}
	p := testPlan()
	p.Security = graph.SecurityInsecure
	if _, err := ociSpec(p, h); err != nil {
		t.Error(err)
	}
}

// The flag for an AppArmor profile was taken, and the steps had none.
func TestAppArmorProfileIgnored(t *testing.T) { both(t, testAppArmorProfileIgnored) }

func testAppArmorProfileIgnored(t *testing.T, b *box) {
	dir := t.TempDir()
	for text, ok := range map[string]bool{"Y\n": true, "N\n": false, "": false} {
		file := filepath.Join(dir, "enabled")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := (&Steps{AppArmor: "docker-default"}).checkAppArmor(file); (err == nil) != ok || !ok && diag.KindOf(err) != diag.Unsupported {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := (&Steps{AppArmor: "a b"}).checkAppArmor(os.DevNull); diag.KindOf(err) != diag.Invalid {
		t.Error(err)
	}
	if err := (&Steps{}).checkAppArmor(os.DevNull); err != nil {
		t.Error(err)
	}
	// A step runs with the profile, or it does not run.
	b.host.steps.AppArmor = "strata-no-such-profile"
	exit, err := b.Run(t.Context(), &Spec{RootFS: b.rootfs, Args: []string{"/bin/true"}, Network: graph.NetworkNone})
	if err == nil || !strings.Contains(strings.ToLower(err.Error()), "apparmor") {
		t.Errorf("%+v %v", exit, err)
	}
	s := mustSpec(t, testPlan(), &host{cgroups: testHost().cgroups, seccomp: testHost().seccomp, steps: Steps{AppArmor: "x", PIDs: 1}})
	insecure := testPlan()
	insecure.Security = graph.SecurityInsecure
	if s.Process.ApparmorProfile != "x" || mustSpec(t, insecure, &host{cgroups: testHost().cgroups, steps: Steps{AppArmor: "x", PIDs: 1}}).Process.ApparmorProfile != "" {
		t.Errorf("%+v", s.Process)
	}
	noLeaks(t, b)
}

// Steps whose operator confines them further: fewer capabilities, no new privileges.
func TestConfinedSteps(t *testing.T) {
	bothWith(t, Steps{Capabilities: []string{"chown", "CAP_SETUID", "Cap_Chown"}, NoNewPrivileges: true, PIDs: 55}, testConfinedSteps)
}

func testConfinedSteps(t *testing.T, b *box) {
	const show = "grep -E '^(Cap|NoNewPrivs)' /proc/self/status; cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null"
	out, _ := b.sh(t, show, nil)
	want := "CapInh:\t0000000000000000\nCapPrm:\t0000000000000081\nCapEff:\t0000000000000081\nCapBnd:\t0000000000000081\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\n55\n"
	if out != want {
		t.Errorf("%q", out)
	}
	if out, _ := b.sh(t, show, func(s *Spec) { s.Security = graph.SecurityInsecure }); !strings.Contains(out, "NoNewPrivs:\t0\n") || strings.Contains(out, "CapBnd:\t0000000000000081") {
		t.Errorf("%q", out)
	}
	noLeaks(t, b)
}

func TestStepsOptions(t *testing.T) {
	s, err := Steps{}.normal()
	if err != nil || !slices.Equal(s.Capabilities, defaultCaps) || s.PIDs != defaultPIDs || s.NoNewPrivileges {
		t.Errorf("%+v %v", s, err)
	}
	if s, err := (Steps{Capabilities: []string{}}).normal(); err != nil || len(s.Capabilities) != 0 {
		t.Errorf("none at all: %+v %v", s, err)
	}
	for want, s := range map[string]Steps{"CAP_CHOWN": {Capabilities: []string{"CAP_CHWON"}}, "": {PIDs: -2}, "0": {Memory: -5}} {
		if _, err := s.normal(); diag.KindOf(err) != diag.Invalid || !strings.Contains(err.(*diag.Error).Hint, want) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	for total, want := range map[int64]int64{64 << 20: 32 << 20, 1 << 30: 768 << 20, 10 << 30: 9 << 30, 100 << 30: 98 << 30} {
		if got := stepMemory(total); got != want {
			t.Errorf("%d: %d", total, got)
		}
	}
}

// Steps that take all memory, together and not each, end; the engine does not.
func TestStepsTakeAllMemory(t *testing.T) {
	bothWith(t, Steps{Memory: 96 << 20}, testStepsTakeAllMemory)
}

func testStepsTakeAllMemory(t *testing.T, b *box) {
	if !b.host.cgroups.has("memory") {
		t.Skip("no memory controller")
	}
	for _, parent := range []string{"", "/strata-test-" + b.owner} {
		limits := func(s *Spec) { s.Limits.CgroupParent = parent }
		if out, exit := b.sh(t, "yes | tail -n 99999999 >/dev/null", limits); exit.Code == 0 && !exit.OOMKilled {
			t.Errorf("%q: %+v %q", parent, exit, out)
		}
		if out, exit := b.sh(t, "yes | head -c 9000000 | tail -n 1", limits); exit.Code != 0 || out != "y\n" {
			t.Errorf("%q: %+v %q", parent, exit, out)
		}
		if parent != "" {
			if err := b.host.cgroups.remove(parent); err != nil {
				t.Error(err)
			}
		}
	}
	noLeaks(t, b)
}

// A client's step has files in memory that are as large as may be. Then the kernel killed the largest process of all steps, which was
// another client's.
func TestAttackMemoryOfOtherClients(t *testing.T) {
	bothWith(t, Steps{Memory: 96 << 20}, testMemoryOfOtherClients)
}

func testMemoryOfOtherClients(t *testing.T, b *box) {
	if !b.host.cgroups.has("memory") {
		t.Skip("no memory controller")
	}
	for _, parent := range []string{"", "/strata-test-" + b.owner} {
		ctx, cancel := context.WithCancel(t.Context())
		said, w := io.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			defer w.Close()
			_, _ = b.Run(ctx, &Spec{
				RootFS: b.rootfs, Args: []string{"/bin/sh", "-c", "dd if=/dev/zero of=/dev/shm/f bs=1M count=64; echo full; sleep 100000"}, Env: []string{"PATH=/bin"},
				Network: graph.NetworkNone, Stdout: w, Client: "mallory", Limits: graph.Limits{ShmSize: 64 << 20, CgroupParent: parent},
			})
		})
		_, _ = bufio.NewReader(said).ReadString('\n') // it is full, or the step was killed
		go func() { _, _ = io.Copy(io.Discard, said) }()
		out, exit := b.sh(t, "dd if=/dev/zero of=/dev/null bs=36M count=1 2>/dev/null && echo y", func(s *Spec) { s.Client, s.Limits.CgroupParent = "alice", parent })
		if exit.Code != 0 || exit.OOMKilled || out != "y\n" {
			t.Errorf("%q: %+v %q", parent, exit, out)
		}
		if out, exit := b.sh(t, "dd if=/dev/zero of=/dev/null bs=60M count=1", func(s *Spec) { s.Client, s.Limits.CgroupParent = "alice", parent }); exit.Code == 0 && !exit.OOMKilled {
			t.Errorf("%q: a client has more than its part: %+v %q", parent, exit, out)
		}
		cancel()
		wg.Wait()
		if parent != "" {
			if err := b.host.cgroups.remove(parent); err != nil {
				t.Error(err)
			}
		}
	}
}

// A process that crashes leaves its memory, with a step's secrets, in the layer or with the host's handler.
func TestCoreDumpKeepsSecrets(t *testing.T) { both(t, testCoreDumpKeepsSecrets) }

func testCoreDumpKeepsSecrets(t *testing.T, b *box) {
	const crash = "cd /tmp; grep core /proc/self/limits; cat /proc/self/oom_score_adj; ulimit -c unlimited 2>/dev/null; sh -c 'kill -SEGV $$'; ls /tmp"
	out, _ := b.sh(t, crash, nil)
	fields := strings.Fields(out)
	if len(fields) < 7 || fields[4] != "0" || fields[5] != "0" || !strings.Contains(out, "\n500\n") || strings.Contains(strings.Join(fields[7:], " "), "core") {
		t.Errorf("%q", out)
	}
	out, _ = b.sh(t, "grep core /proc/self/limits", func(s *Spec) { s.Limits.Ulimits = []graph.Ulimit{{Name: "core", Soft: 4096, Hard: 8192}} })
	if f := strings.Fields(out); len(f) < 6 || f[4] != "4096" || f[5] != "8192" {
		t.Errorf("asked for: %q", out)
	}
	noLeaks(t, b)
}

func TestOnly64Bit(t *testing.T) {
	for only, want := range map[bool]int{false: 2, true: 1} {
		p, err := seccompProfile(defaultCaps, only)
		if err != nil || len(p.Architectures) != want {
			t.Errorf("%v: %v %v", only, p.Architectures, err)
		}
	}
	bothWith(t, Steps{Only64Bit: true}, func(t *testing.T, b *box) {
		if out, exit := b.sh(t, "echo runs", nil); exit.Code != 0 || out != "runs\n" {
			t.Errorf("%q %+v", out, exit)
		}
	})
}
