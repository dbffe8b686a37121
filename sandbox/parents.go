package sandbox

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// parents are the control groups above those of steps that this process has made. Builds name them; they go with their last step.
type parents struct {
	mu   sync.Mutex
	made map[string]int // directory -> steps below it
}

// allowedParent refuses a parent that the operator does not allow.
func (s *Sandbox) allowedParent(parent string) error {
	at := cleanPath(parent)
	if slices.ContainsFunc(s.allowedParents, func(ok string) bool { return below(at, cleanPath(ok)) }) {
		return nil
	}
	return diag.Errorf(diag.Denied, "the cgroup parent %q is not allowed by the configuration of the build daemon", parent).
		WithHint("the operator allows a group, and those below it, with strata serve --allow-cgroup-parent %s", at)
}

// acquire notes that a step's group is about to be made, with the directories that are missing above it. Release removes each of
// them when no other step needs it.
func (p *parents) acquire(c *cgroups, group string) (release func(), mine []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.made == nil {
		p.made = map[string]int{}
	}
	for at := path.Dir(group); at != "/"; at = path.Dir(at) {
		for _, root := range c.roots {
			dir := filepath.Join(root, at)
			if _, err := os.Stat(dir); p.made[dir] > 0 || errors.Is(err, os.ErrNotExist) {
				mine = append(mine, dir)
				p.made[dir]++
			}
		}
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, dir := range mine {
			if p.made[dir]--; p.made[dir] == 0 {
				delete(p.made, dir)
				_ = unix.Rmdir(dir) // someone else may use it by now
			}
		}
	}, mine
}

// recordedGroup is a control group that is not in the sandbox's own, and the directories made above it.
type recordedGroup struct {
	group string
	above []string
}

// recordGroup keeps in a bundle what Sweep and a guardian could not know otherwise.
func (b *bundle) recordGroup(g recordedGroup) error {
	return writeFile(b.file(cgroupFile), []byte(strings.Join(append([]string{g.group}, g.above...), "\n")), 0o600)
}

// recordedGroups reads the control groups of all bundles of a state directory.
func recordedGroups(root string) []recordedGroup {
	var out []recordedGroup
	bundles, _ := os.ReadDir(filepath.Join(root, "run"))
	for _, b := range bundles {
		data, err := os.ReadFile(filepath.Join(root, "run", b.Name(), cgroupFile))
		if lines := strings.Split(string(data), "\n"); err == nil && len(lines[0]) > 1 {
			out = append(out, recordedGroup{lines[0], lines[1:]})
		}
	}
	return out
}

// sweep kills and removes the group, and what was made above it.
func (g recordedGroup) sweep(c *cgroups) error {
	c.kill(g.group)
	err := c.remove(g.group)
	for _, dir := range g.above {
		_ = unix.Rmdir(dir) // another step of the dead engine may have it
	}
	return err
}

// engineLeaf is the group, in a subtree that was delegated to this process, which it moves to: a group of version 2 has either
// processes or controllers for the groups below it.
const engineLeaf = "engine"

// delegated finds the subtree that the service manager has delegated to this process, so that steps are part of the service, with
// its limits. Own is the process's group. The manager marks the top of such a subtree with an extended attribute. "/" = none.
func (c *cgroups) delegated(own string) (string, error) {
	if !c.unified {
		return "/", nil
	}
	for at := cleanPath(own); at != "/"; at = path.Dir(at) {
		if !isDelegated(filepath.Join(c.v2, at)) {
			continue
		}
		if at != cleanPath(own) {
			return at, nil // the manager, or an earlier engine, has put this process into a group of its own
		}
		return at, c.enterLeaf(at)
	}
	return "/", nil
}

func isDelegated(dir string) bool {
	for _, name := range []string{"user.delegate", "trusted.delegate"} {
		value := make([]byte, 8)
		if n, err := unix.Getxattr(dir, name, value); err == nil && string(value[:n]) == "1" {
			return true
		}
	}
	return false
}

// enterLeaf moves the processes of a group to a group below it.
func (c *cgroups) enterLeaf(group string) error {
	dir := filepath.Join(c.v2, group)
	if err := unix.Mkdir(filepath.Join(dir, engineLeaf), 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "mkdir", Path: filepath.Join(dir, engineLeaf), Err: err}
	}
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for pid := range strings.FieldsSeq(string(procs)) {
		err := writeSetting(filepath.Join(dir, engineLeaf, "cgroup.procs"), pid)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// ownGroup is the group of version 2 that this process is in.
func ownGroup() (string, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if group, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(group), nil
		}
	}
	return "/", nil
}
