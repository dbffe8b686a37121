package sandbox

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

func testHost() *host {
	all := map[string]string{}
	for _, c := range []string{"memory", "cpu", "cpuset", "pids", "devices"} {
		all[c] = "/sys/fs/cgroup"
	}
	return &host{cgroups: &cgroups{unified: true, roots: []string{"/sys/fs/cgroup"}, controllers: all}, caps: append(slices.Clone(defaultCaps), "CAP_SYS_ADMIN"), seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}, steps: Steps{Capabilities: defaultCaps, PIDs: defaultPIDs}, oom: stepOOMScore}
}

func testPlan() *plan {
	return &plan{
		Spec: &Spec{RootFS: "/r", Args: []string{"make"}, Env: []string{"A=b"}, Cwd: "/src", Hostname: DefaultHostname},
		user: User{UID: 5, GID: 6, Groups: []uint32{7}, Home: "/home/x"}, cgroup: "/strata-1/c", netns: "/proc/1/fd/9", hosts: "/h", resolv: "/v",
	}
}

func mountAt(s *specs.Spec, target string) *specs.Mount {
	for i, m := range s.Mounts {
		if m.Destination == target {
			return &s.Mounts[i]
		}
	}
	return nil
}

func TestSpecOfAStep(t *testing.T) {
	s, err := ociSpec(testPlan(), testHost())
	if err != nil {
		t.Fatal(err)
	}
	p := s.Process
	if want := []string{"A=b", "HOME=/home/x"}; !slices.Equal(p.Env, want) {
		t.Errorf("env %q", p.Env)
	}
	if want := []uint32{6, 7}; !slices.Equal(p.User.AdditionalGids, want) || p.User.UID != 5 || p.User.GID != 6 {
		t.Errorf("user %+v", p.User)
	}
	c := p.Capabilities
	if len(c.Inheritable) != 0 || len(c.Ambient) != 0 || !slices.Equal(c.Bounding, defaultCaps) || !slices.Equal(c.Effective, defaultCaps) || slices.Contains(c.Bounding, "CAP_SYS_ADMIN") {
		t.Errorf("capabilities %+v", c)
	}
	if p.NoNewPrivileges || *p.OOMScoreAdj != stepOOMScore || len(s.Annotations) > 0 || s.Linux.Seccomp == nil || len(s.Linux.MaskedPaths) == 0 || len(s.Linux.ReadonlyPaths) == 0 {
		t.Errorf("confinement %+v %+v", p, s.Linux)
	}
	var spaces []string
	for _, n := range s.Linux.Namespaces {
		spaces = append(spaces, string(n.Type)+n.Path)
	}
	if want := []string{"pid", "mount", "ipc", "uts", "cgroup", "network/proc/1/fd/9"}; !slices.Equal(spaces, want) {
		t.Errorf("namespaces %q", spaces)
	}
	for target, option := range map[string]string{"/sys": "ro", "/sys/fs/cgroup": "ro", "/dev/shm": "size=67108864", "/etc/hosts": "ro", "/etc/resolv.conf": "ro", "/proc": "nosuid"} {
		if m := mountAt(s, target); m == nil || !slices.Contains(m.Options, option) {
			t.Errorf("%s: %+v", target, m)
		}
	}
	if *s.Linux.Resources.Pids.Limit != defaultPIDs || s.Linux.Resources.Memory != nil || s.Linux.Resources.Devices[0].Allow {
		t.Errorf("resources %+v", s.Linux.Resources)
	}
}

func TestSpecOfAnInsecureStep(t *testing.T) {
	p := testPlan()
	p.Security, p.netns = graph.SecurityInsecure, ""
	s, err := ociSpec(p, testHost())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(s.Process.Capabilities.Bounding, "CAP_SYS_ADMIN") || len(s.Process.Capabilities.Inheritable) != 0 || s.Linux.Seccomp != nil || len(s.Linux.MaskedPaths)+len(s.Linux.ReadonlyPaths) != 0 {
		t.Errorf("%+v %+v", s.Process.Capabilities, s.Linux)
	}
	if d := s.Linux.Resources.Devices; len(d) != 1 || !d[0].Allow || d[0].Access != "rwm" {
		t.Errorf("devices %+v", d)
	}
	if slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace }) {
		t.Error("the host's network is a new one")
	}
	if m := mountAt(s, "/sys"); !slices.Contains(m.Options, "rw") {
		t.Errorf("%+v", m)
	}
}

func TestMountOrder(t *testing.T) {
	p := testPlan()
	for _, m := range []Mount{{Type: Bind, Source: "/x", Target: "/a/b/c"}, {Type: Tmpfs, Target: "/a", Size: 99}, {Type: Bind, Source: "/y", Target: "/etc/hosts"}, {Type: Data, Target: "/run/secrets/x"}, {Type: Tmpfs, Target: "/dev/shm"}} {
		p.mounts = append(p.mounts, ownMount(m, m.Source))
	}
	s, err := ociSpec(p, testHost())
	if err != nil {
		t.Fatal(err)
	}
	at := func(target string) int {
		return slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == target })
	}
	if at("/a") > at("/a/b/c") || at("/dev") > at("/dev/shm") || at("/sys") > at("/sys/fs/cgroup") {
		t.Errorf("%+v", s.Mounts)
	}
	if m := mountAt(s, "/etc/hosts"); m.Source != "/y" {
		t.Errorf("a mount of the step lost: %+v", m)
	}
	if n := len(s.Mounts); n != 12-2+2 {
		t.Errorf("%d mounts", n)
	}
	if m := mountAt(s, "/run/secrets/x"); !slices.Contains(m.Options, "ro") || !slices.Contains(m.Options, "noexec") {
		t.Errorf("%+v", m)
	}
	if m := mountAt(s, "/a"); !slices.Contains(m.Options, "size=99") || !slices.Contains(m.Options, "mode=1777") {
		t.Errorf("%+v", m)
	}
}

func TestResources(t *testing.T) {
	l := graph.Limits{Memory: 1 << 20, MemorySwap: -1, CPUShares: 5, CPUPeriod: 6, CPUQuota: 7, CPUSet: "0-1", Mems: "0", PIDs: 9}
	r, err := resources(l, testHost().cgroups, 77)
	if err != nil {
		t.Fatal(err)
	}
	if *r.Memory.Limit != 1<<20 || *r.Memory.Swap != -1 || *r.CPU.Shares != 5 || *r.CPU.Period != 6 || *r.CPU.Quota != 7 || r.CPU.Cpus != "0-1" || r.CPU.Mems != "0" || *r.Pids.Limit != 9 {
		t.Errorf("%+v %+v", r.Memory, r.CPU)
	}
	none := &cgroups{controllers: map[string]string{}}
	for _, l := range []graph.Limits{{}, {PIDs: -1}} {
		if r, err := resources(l, none, -1); err != nil || r.Pids != nil {
			t.Errorf("no limits on a machine that has none: %+v %v", r, err)
		}
	}
	for _, l := range []graph.Limits{{Memory: 1}, {CPUShares: 1}, {CPUSet: "0"}, {PIDs: 1}} {
		if _, err := resources(l, none, -1); diag.KindOf(err) != diag.Unsupported {
			t.Errorf("%+v cannot be kept: %v", l, err)
		}
	}
	for _, l := range []graph.Limits{{Memory: -1}, {Memory: 5, MemorySwap: 4}, {CPUSet: "a"}, {CgroupParent: "../x"}, {CgroupParent: "x:y:z"}, {PIDs: -2}, {MemorySwap: -2}} {
		if _, err := resources(l, testHost().cgroups, 77); diag.KindOf(err) != diag.Invalid {
			t.Errorf("%+v: %v", l, err)
		}
	}
}

func TestRlimits(t *testing.T) {
	got, err := rlimits([]graph.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}, {Name: "CORE", Soft: 0, Hard: -1}}, true)
	want := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 20}, {Type: "RLIMIT_CORE", Soft: 0, Hard: math.MaxUint64}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v", got, err)
	}
	for name, u := range map[string]graph.Ulimit{"unknown": {Name: "nofiles"}, "soft limit": {Name: "nofile", Soft: 2, Hard: 1}} {
		if _, err := rlimits([]graph.Ulimit{u}, true); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v: %v", u, err)
		}
	}
	if _, err := rlimits([]graph.Ulimit{{Name: "nofile", Soft: 1, Hard: math.MaxInt64}}, false); diag.KindOf(err) != diag.Denied {
		t.Errorf("raised without the right to: %v", err)
	}
}

func TestSpecRefusals(t *testing.T) {
	for _, s := range []Spec{
		{RootFS: "/"},
		{Args: []string{"x"}},
		{RootFS: "/", Args: []string{"x"}, Cwd: "rel"},
		{RootFS: "/", Args: []string{"x\x00"}},
		{RootFS: "/", Args: []string{"x"}, Network: "weird"},
		{RootFS: "/", Args: []string{"x"}, Network: graph.NetworkProxy},
		{RootFS: "/", Args: []string{"x"}, Security: "weird"},
		{RootFS: "/", Args: []string{"x"}, Hostname: "a b"},
		{RootFS: "/", Args: []string{"x"}, Mounts: []Mount{{Type: Tmpfs, Target: "/a/.."}}},
		{RootFS: "/", Args: []string{"x"}, Mounts: []Mount{{Type: "weird", Target: "/a"}}},
		{RootFS: "/", Args: []string{"x"}, Mounts: []Mount{{Type: Tmpfs, Target: "a"}}},
		{RootFS: "/", Args: []string{"x"}, Mounts: []Mount{{Type: Bind, Source: "/no/such/file", Target: "/a"}}},
	} {
		if _, err := s.normal(); err == nil {
			t.Errorf("accepted: %+v", s)
		}
	}
}

func TestParseCgroups(t *testing.T) {
	hybrid := parseCgroups([]*mountinfo.Info{
		{Mountpoint: "/c/memory", FSType: "cgroup", VFSOptions: "rw,memory"},
		{Mountpoint: "/c/cpu,cpuacct", FSType: "cgroup", VFSOptions: "rw,cpu,cpuacct"},
		{Mountpoint: "/c/systemd", FSType: "cgroup", VFSOptions: "rw,name=systemd"},
		{Mountpoint: "/c/unified", FSType: "cgroup2", VFSOptions: "rw"},
	})
	if hybrid.unified || len(hybrid.roots) != 4 || hybrid.controllers["cpuacct"] != "/c/cpu,cpuacct" || !hybrid.has("memory") || hybrid.has("pids") {
		t.Errorf("%+v", hybrid)
	}
	if c := parseCgroups([]*mountinfo.Info{{Mountpoint: "/c", FSType: "cgroup2", VFSOptions: "rw,nsdelegate"}}); !c.unified {
		t.Errorf("%+v", c)
	}
}

func TestDevices(t *testing.T) {
	dir := t.TempDir()
	data, _ := json.Marshal(map[string]any{
		"cdiVersion": "0.6.0", "kind": "acme.com/gpu", "containerEdits": map[string]any{"env": []string{"ALL=1"}},
		"devices": []any{map[string]any{"name": "zero", "containerEdits": map[string]any{"env": []string{"ONE=1"}, "mounts": []any{map[string]any{"hostPath": "/lib", "containerPath": "/opt/lib"}}}}},
	})
	os.WriteFile(filepath.Join(dir, "acme.json"), data, 0o644)
	fresh := func() *specs.Spec {
		return &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
	}
	for _, name := range []string{"acme.com/gpu=zero", "acme.com/gpu"} {
		s := fresh()
		if err := injectDevices(s, []graph.Device{{Name: name}}, Devices{Dirs: []string{dir}}); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(s.Process.Env, []string{"ALL=1", "ONE=1"}) || len(s.Mounts) != 1 || s.Mounts[0].Type != "bind" {
			t.Errorf("%s: %+v %+v", name, s.Process.Env, s.Mounts)
		}
	}
	if err := injectDevices(fresh(), []graph.Device{{Name: "acme.com/gpu=two"}}, Devices{Dirs: []string{dir}}); diag.KindOf(err) != diag.NotFound {
		t.Error(err)
	}
	if err := injectDevices(fresh(), []graph.Device{{Name: "acme.com/gpu=two", Optional: true}}, Devices{Dirs: []string{dir}}); err != nil {
		t.Error(err)
	}
}

func TestDeviceNames(t *testing.T) {
	low, high := t.TempDir(), t.TempDir()
	d := Devices{Dirs: []string{low, high}}
	write := func(dir, name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(low, "a.yaml", `
kind: acme.com/gpu
annotations:
  org.mobyproject.buildkit.device.autoallow: true
devices:
- name: two
  annotations: {org.mobyproject.buildkit.device.class: fast}
- name: one
  containerEdits: {env: [FROM=low]}
- name: twice
`)
	write(low, "b.json", `{"kind": "acme.com/gpu", "devices": [{"name": "twice"}]}`)
	write(low, "c.txt", `not read`)
	write(high, "a.yaml", "kind: acme.com/gpu\ndevices:\n- name: one\n  containerEdits: {env: [FROM=high]}\n")
	write(high, "bad.yaml", "kind: [")
	all, problems := d.List()
	if len(problems) != 2 {
		t.Errorf("%v", problems)
	}
	var names []string
	for _, x := range all {
		names = append(names, x.Name)
	}
	if !slices.Equal(names, []string{"acme.com/gpu=one", "acme.com/gpu=two"}) {
		t.Errorf("%q", names)
	}
	if all[1].Annotations["org.mobyproject.buildkit.device.autoallow"] != "true" || len(all[0].Annotations) != 0 {
		t.Errorf("%+v", all)
	}
	for name, want := range map[string]int{"acme.com/gpu": 1, "acme.com/gpu=*": 2, "acme.com/gpu=two": 1, "fast": 1} {
		if got, err := d.Find([]graph.Device{{Name: name}, {Name: name}}); err != nil || len(got) != want {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
	s := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
	if err := injectDevices(s, []graph.Device{{Name: "acme.com/gpu=one"}}, d); err != nil || !slices.Equal(s.Process.Env, []string{"FROM=high"}) {
		t.Errorf("%v %v", s.Process.Env, err)
	}
}

func mustSpec(t *testing.T, p *plan, h *host) *specs.Spec {
	t.Helper()
	s, err := ociSpec(p, h)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
