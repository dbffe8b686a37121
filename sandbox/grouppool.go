package sandbox

import (
	"path"
	"slices"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// groupPool keeps control groups between steps that ask for no limits: to make one in every hierarchy of version 1, and to remove it,
// takes the kernel as long as the rest of a short step. A group is clean when nobody is in it: steps cannot write to it.
type groupPool struct {
	mu   sync.Mutex
	idle []string
}

// maxIdleGroups bounds the groups that are kept.
const maxIdleGroups = 16

// poolable reports whether a container's group is like those of most steps. What it counts, memory above all, does not matter to
// the next one then.
func (n *native) poolable(s *specs.Spec) bool {
	r := s.Linux.Resources
	usual := r.Pids == nil || r.Pids.Limit != nil && *r.Pids.Limit == n.pids
	parent := path.Dir(s.Linux.CgroupsPath)
	own := parent == n.group || path.Dir(parent) == n.group // a client's
	return usual && r.Memory == nil && r.CPU == nil && len(r.Devices) == len(allowedDevices()) && !r.Devices[0].Allow && own
}

// get returns an idle group below parent; "" = there is none.
func (p *groupPool) get(parent string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, g := range slices.Backward(p.idle) {
		if path.Dir(g) == parent {
			p.idle = slices.Delete(p.idle, i, i+1)
			return g
		}
	}
	return ""
}

// put takes a group back, or not.
func (p *groupPool) put(group string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) >= maxIdleGroups || slices.Contains(p.idle, group) {
		return false
	}
	p.idle = append(p.idle, group)
	return true
}

// enter finds or makes the container's group.
func (n *native) enter(c *container, s *specs.Spec) (*joinable, error) {
	if n.poolable(s) {
		if group := n.groups.get(path.Dir(s.Linux.CgroupsPath)); group != "" {
			if j, err := c.cgroups.open(group, s.Linux.Resources); err == nil {
				c.cgroup, s.Linux.CgroupsPath = group, group
				return j, nil
			}
			_ = c.cgroups.remove(group) // someone else has begun to
		}
	}
	if err := c.cgroups.create(c.cgroup, s.Linux.Resources, &n.devices); err != nil {
		return nil, err
	}
	return c.cgroups.open(c.cgroup, s.Linux.Resources)
}

// leave gives the group of a container that ran to its end back, or removes it.
func (n *native) leave(c *container, s *specs.Spec, clean bool) error {
	if clean && n.poolable(s) && c.cgroups.empty(c.cgroup) && n.groups.put(c.cgroup) {
		return nil
	}
	return c.cgroups.remove(c.cgroup)
}
