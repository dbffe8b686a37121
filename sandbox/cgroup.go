package sandbox

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// cgroups is how control groups are mounted on this machine: version 2 alone ("unified"), or version 1 with a hierarchy
// for each controller, often with an empty version 2 hierarchy beside them ("hybrid").
type cgroups struct {
	unified     bool
	roots       []string          // mount points of all hierarchies
	v2          string            // mount point of the hierarchy of version 2; "" = none
	controllers map[string]string // controller ("memory", "cpu", "cpuset", "pids", "devices") -> mount point
}

// findCgroups reads the mount table and, for version 2, the controllers that are there.
func findCgroups() (*cgroups, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, err
	}
	c := parseCgroups(mounts)
	if c.unified {
		data, err := os.ReadFile(filepath.Join(c.roots[0], "cgroup.controllers"))
		if err != nil {
			return nil, err
		}
		for _, name := range strings.Fields(string(data)) {
			c.controllers[name] = c.roots[0]
		}
		c.controllers["devices"] = c.roots[0] // by BPF, not a controller
	}
	return c, nil
}

func parseCgroups(mounts []*mountinfo.Info) *cgroups {
	c := &cgroups{controllers: map[string]string{}}
	v1 := false
	for _, m := range mounts {
		if slices.Contains(c.roots, m.Mountpoint) {
			continue
		}
		c.roots = append(c.roots, m.Mountpoint)
		if m.FSType != "cgroup" {
			c.v2 = m.Mountpoint
			continue
		}
		v1 = true
		for _, opt := range strings.Split(m.VFSOptions, ",") {
			if !strings.Contains(opt, "=") && opt != "rw" && opt != "ro" {
				c.controllers[opt] = m.Mountpoint
			}
		}
	}
	c.unified = len(c.roots) == 1 && !v1
	return c
}

// has reports whether steps can be limited by a controller.
func (c *cgroups) has(controller string) bool { return c.controllers[controller] != "" }

// dirs are the directories of a group, such as "/strata-0af3/x", in all hierarchies that have it.
func (c *cgroups) dirs(group string) []string {
	var out []string
	for _, r := range c.roots {
		d := filepath.Join(r, group)
		if _, err := os.Stat(d); err == nil {
			out = append(out, d)
		}
	}
	return out
}

// kill sends SIGKILL to all processes of a group and reports in how many hierarchies it found some; whoever wants to know that
// none is left asks again. No process of the group can escape by making others: version 2 kills a group at once, and in
// version 1 it is frozen first.
func (c *cgroups) kill(group string) int {
	if c.v2 != "" {
		dir := filepath.Join(c.v2, group)
		if len(pids(dir)) > 0 && writeSetting(filepath.Join(dir, "cgroup.kill"), "1") == nil {
			return 1
		}
	}
	var found []string
	for _, dir := range c.dirs(group) {
		if len(pids(dir)) > 0 {
			found = append(found, dir)
		}
	}
	if len(found) == 0 {
		return 0
	}
	defer c.freeze(group)()
	for _, dir := range found {
		for _, pid := range pids(dir) {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	return len(found)
}

// freeze stops the processes of a group of version 1 until thaw is called. Where it cannot, they go on.
func (c *cgroups) freeze(group string) (thaw func()) {
	root := c.controllers["freezer"]
	if root == "" {
		return func() {}
	}
	state := filepath.Join(root, group, "freezer.state")
	for range 100 { // a process that the kernel is busy with is frozen when that is done
		if writeSetting(state, "FROZEN") != nil {
			break
		}
		if now, err := os.ReadFile(state); err != nil || strings.TrimSpace(string(now)) == "FROZEN" {
			break
		}
		time.Sleep(100 * time.Microsecond)
	}
	return func() { _ = writeSetting(state, "THAWED") }
}

// pids lists the processes of a group and of those below it.
func pids(dir string) []int {
	var out []int
	filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return nil
		}
		data, _ := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		for line := range bytes.Lines(data) {
			if pid, err := strconv.Atoi(string(bytes.TrimSpace(line))); err == nil && pid > 0 {
				out = append(out, pid)
			}
		}
		return nil
	})
	return out
}

// remove kills what is left in a group and removes it. It gives up after a second, with the error of the last try.
func (c *cgroups) remove(group string) error {
	var last error
	for wait := time.Millisecond; wait < time.Second; wait *= 2 {
		last = nil
		for _, dir := range c.dirs(group) {
			if err := removeGroup(dir); err != nil {
				last = err
			}
		}
		if last == nil {
			return nil
		}
		c.kill(group)
		time.Sleep(wait)
	}
	return last
}

// removeGroup removes a group and those below it. Their files go with the directories.
func removeGroup(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			if err := removeGroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err = unix.Rmdir(dir); errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// empty reports whether no process is in a group, nor below it.
func (c *cgroups) empty(group string) bool {
	return len(c.roots) > 0 && len(pids(filepath.Join(c.roots[0], group))) == 0 // a process is in all hierarchies
}

// oomKilled reports whether the kernel killed a process of the group for lack of memory.
func (c *cgroups) oomKilled(group string) bool {
	root := c.controllers["memory"]
	if root == "" {
		return false
	}
	name := "memory.oom_control"
	if c.unified {
		name = "memory.events"
	}
	f, err := os.Open(filepath.Join(root, group, name))
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if n, ok := strings.CutPrefix(lines.Text(), "oom_kill "); ok {
			return n != "0"
		}
	}
	return false
}
