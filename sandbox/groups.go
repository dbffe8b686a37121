package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// joinable is a control group that a process is about to start in.
type joinable struct {
	// Of the hierarchies of version 1. A process that moves its only thread, not itself, spares the kernel a lock that all
	// forks of the machine have to let go of.
	tasks []*os.File
	v2    *os.File // the directory in the hierarchy of version 2; nil = there is none
}

func (j *joinable) close() {
	for _, f := range j.tasks {
		f.Close()
	}
	if j.v2 != nil {
		j.v2.Close()
	}
}

// setting is a file of a control group and what is written to it.
type setting struct{ controller, file, value string }

// settings are the limits of r, device rules of version 1 included.
func (c *cgroups) settings(r *specs.LinuxResources) []setting {
	var out []setting
	set := func(controller, v1, v2, value string) {
		file := v1
		if c.unified {
			file = v2
		}
		if file != "" {
			out = append(out, setting{controller, file, value})
		}
	}
	limit := func(n int64) string {
		if n < 0 && c.unified {
			return "max"
		}
		return strconv.FormatInt(n, 10)
	}
	if m := r.Memory; m != nil {
		if m.Limit != nil {
			set("memory", "memory.limit_in_bytes", "memory.max", limit(*m.Limit))
		}
		if m.Swap != nil {
			swap := *m.Swap // with the memory
			if c.unified && swap > 0 && m.Limit != nil {
				swap -= *m.Limit
			}
			set("memory", "memory.memsw.limit_in_bytes", "memory.swap.max", limit(swap))
		}
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		value := strconv.FormatInt(*r.Pids.Limit, 10)
		if *r.Pids.Limit <= 0 {
			value = "max"
		}
		set("pids", "pids.max", "pids.max", value)
	}
	if r.CPU != nil {
		out = append(out, c.cpu(r.CPU)...)
	}
	if !c.unified && (c.has("devices") || filters(r.Devices)) {
		for _, d := range r.Devices {
			file := "devices.deny"
			if d.Allow {
				file = "devices.allow"
			}
			out = append(out, setting{"devices", file, deviceRule(d)})
		}
	}
	return out
}

func (c *cgroups) cpu(l *specs.LinuxCPU) []setting {
	var out []setting
	add := func(controller, file, value string) { out = append(out, setting{controller, file, value}) }
	if l.Cpus != "" {
		add("cpuset", "cpuset.cpus", l.Cpus)
	}
	if l.Mems != "" {
		add("cpuset", "cpuset.mems", l.Mems)
	}
	if l.Shares != nil {
		if c.unified {
			// From 2…262144 to 1…10000, as all runtimes do it.
			add("cpu", "cpu.weight", strconv.FormatUint(1+(max(*l.Shares, 2)-2)*9999/262142, 10))
		} else {
			add("cpu", "cpu.shares", strconv.FormatUint(*l.Shares, 10))
		}
	}
	period, quota := uint64(100000), "max"
	if l.Period != nil {
		period = *l.Period
		if !c.unified {
			add("cpu", "cpu.cfs_period_us", strconv.FormatUint(period, 10))
		}
	}
	if l.Quota != nil {
		if *l.Quota > 0 {
			quota = strconv.FormatInt(*l.Quota, 10)
		}
		if !c.unified {
			add("cpu", "cpu.cfs_quota_us", strconv.FormatInt(*l.Quota, 10))
		}
	}
	if c.unified && (l.Period != nil || l.Quota != nil) {
		add("cpu", "cpu.max", fmt.Sprintf("%s %d", quota, period))
	}
	return out
}

// deviceRule is a rule as the devices controller of version 1 reads it.
func deviceRule(d specs.LinuxDeviceCgroup) string {
	if d.Type == "" || d.Type == "a" {
		return "a"
	}
	number := func(n *int64) string {
		if n == nil || *n < 0 {
			return "*"
		}
		return strconv.FormatInt(*n, 10)
	}
	return fmt.Sprintf("%s %s:%s %s", d.Type, number(d.Major), number(d.Minor), d.Access)
}

// filters reports whether rules of devices refuse anything.
func filters(rules []specs.LinuxDeviceCgroup) bool { return len(rules) > 0 && !rules[0].Allow }

// create makes a group with limits in all hierarchies. Where a hierarchy cannot be written to, it must not be needed.
func (c *cgroups) create(group string, r *specs.LinuxResources, p *devicePrograms) error {
	settings := c.settings(r)
	for _, s := range settings {
		if !c.has(s.controller) {
			return fmt.Errorf("set %s: the cgroup controller %q is not available", s.file, s.controller)
		}
	}
	for _, root := range c.roots {
		if err := c.makeDir(root, group); err != nil {
			if c.needed(root, settings) {
				return err
			}
			continue
		}
		for _, s := range settings {
			if c.controllers[s.controller] != root {
				continue
			}
			if err := writeSetting(filepath.Join(root, group, s.file), s.value); err != nil {
				return err
			}
		}
	}
	if c.unified {
		return p.attach(filepath.Join(c.v2, group), r.Devices)
	}
	return nil
}

// open prepares for a process to start in a group that create made.
func (c *cgroups) open(group string, r *specs.LinuxResources) (_ *joinable, err error) {
	j := &joinable{}
	defer func() {
		if err != nil {
			j.close()
		}
	}()
	settings := c.settings(r)
	for _, root := range c.roots {
		dir, name, flags := filepath.Join(root, group), "tasks", unix.O_WRONLY
		if root == c.v2 {
			name, flags = "", unix.O_RDONLY|unix.O_DIRECTORY
		}
		f, err := os.OpenFile(filepath.Join(dir, name), flags, 0)
		if errors.Is(err, unix.ENOENT) && !c.needed(root, settings) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if root == c.v2 {
			j.v2 = f
		} else {
			j.tasks = append(j.tasks, f)
		}
	}
	return j, nil
}

// needed reports whether a hierarchy has limits to keep.
func (c *cgroups) needed(root string, settings []setting) bool {
	for _, s := range settings {
		if c.controllers[s.controller] == root {
			return true
		}
	}
	return c.unified
}

// makeDir makes a group and what is above it. A new group of the cpuset controller of version 1 has no CPU, and one of version 2
// has the controllers only that those above pass on.
func (c *cgroups) makeDir(root, group string) error {
	dir := filepath.Join(root, group)
	simple := root != c.controllers["cpuset"] && root != c.v2
	if simple || c.v2 == root && !c.unified {
		err := unix.Mkdir(dir, 0o755)
		if err == nil || errors.Is(err, unix.EEXIST) {
			return nil
		}
		return os.MkdirAll(dir, 0o755)
	}
	above := root
	for name := range strings.SplitSeq(strings.Trim(group, "/"), "/") {
		here := filepath.Join(above, name)
		if c.unified {
			c.passOn(above)
		}
		if err := unix.Mkdir(here, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "mkdir", Path: here, Err: err}
		}
		if !c.unified {
			if err := inheritCPUs(above, here); err != nil {
				return err
			}
		}
		above = here
	}
	return nil
}

// passOn has a group of version 2 give its controllers to those below it. What cannot be passed on is missed when a limit is set.
func (c *cgroups) passOn(dir string) {
	file := filepath.Join(dir, "cgroup.subtree_control")
	have, _ := os.ReadFile(file)
	for _, controller := range []string{"cpu", "cpuset", "memory", "pids"} {
		if c.has(controller) && !slices.Contains(strings.Fields(string(have)), controller) {
			_ = writeSetting(file, "+"+controller)
		}
	}
}

// inheritCPUs fills a group of the cpuset controller, unless it is filled: it may have been made just now for another step.
func inheritCPUs(above, here string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(here, file))
		if err == nil && strings.TrimSpace(string(value)) != "" {
			continue
		}
		if value, err = os.ReadFile(filepath.Join(above, file)); err == nil {
			err = writeSetting(filepath.Join(here, file), string(value))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func writeSetting(file, value string) error {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte(value))
		unix.Close(fd)
	}
	if err != nil {
		return &os.PathError{Op: "write " + strings.TrimSpace(value) + " to", Path: file, Err: err}
	}
	return nil
}
