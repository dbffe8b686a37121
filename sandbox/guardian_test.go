package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A group whose processes make others all the time is killed in version 1 of control groups too, which has no call for it.
func TestKillOutrunsForks(t *testing.T) {
	needRoot(t)
	c, err := findCgroups()
	if err != nil {
		t.Fatal(err)
	}
	if c.unified || c.controllers["freezer"] == "" {
		t.Skip("needs version 1 of control groups")
	}
	group := "/strata-test-" + strconv.Itoa(os.Getpid())
	if err := c.create(group, &specs.LinuxResources{}, &devicePrograms{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.remove(group); err != nil {
			t.Error(err)
		}
	})
	join := `for f in "$@"; do echo $$ > $f/cgroup.procs; done; echo in; f() { (f) & (f) & sleep 0.01; }; f`
	old := &cgroups{controllers: c.controllers}
	var dirs []string
	for _, root := range c.roots {
		if root == c.v2 || root != c.controllers["pids"] && root != c.controllers["freezer"] {
			continue
		}
		old.roots, dirs = append(old.roots, root), append(dirs, filepath.Join(root, group))
	}
	if root := c.controllers["pids"]; root != "" {
		if err := writeSetting(filepath.Join(root, group, "pids.max"), "200"); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("/bin/busybox", append([]string{"sh", "-c", join, "sh"}, dirs...)...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	for len(pids(dirs[0])) < 20 { // as many as it wants, not as many as it can
	}
	if old.kill(group) == 0 {
		t.Error("no process was found")
	}
	_ = cmd.Wait()
	w := &ward{Root: t.TempDir(), Group: filepath.Dir(group), Prefix: filepath.Base(group)}
	if err := w.kill(old); err != nil || !old.empty(group) {
		t.Errorf("processes are left: %v %v", err, pids(dirs[0]))
	}
}

// The groups of the next engine of the same state directory are not a guardian's.
func TestGuardianKnowsItsOwn(t *testing.T) {
	top, root := t.TempDir(), t.TempDir()
	for _, dir := range []string{"strata-0/strata-0-old-1", "strata-0/strata-0-new-1", "strata-0/strata-0-old-2/below", "elsewhere/strata-0/strata-0-old-3", "strata-0/client-1/strata-0-old-4", "strata-0/client-1/strata-0-new-2"} {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for id, group := range map[string]string{"strata-0-old-3": "/elsewhere/strata-0/strata-0-old-3", "strata-0-new-4": "/elsewhere/strata-0/strata-0-new-4"} {
		dir := filepath.Join(root, "run", id)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, cgroupFile), []byte(group+"\n/sys/fs/cgroup/x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w := &ward{Root: root, Group: "/strata-0", Prefix: "strata-0-old-"}
	got := w.groups(&cgroups{roots: []string{top}})
	want := []string{"/elsewhere/strata-0/strata-0-old-3", "/strata-0/client-1/strata-0-old-4", "/strata-0/strata-0-old-1", "/strata-0/strata-0-old-2"}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
