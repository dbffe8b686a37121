package dockerfile

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// mounts adds RUN's --mount flags.
func (st *step) mounts(c *instructions.RunCommand, x *execOp) error {
	agents := 0
	for i, m := range instructions.GetMounts(c) {
		var err error
		switch m.Type {
		case instructions.MountTypeSecret:
			err = st.secret(m, x.op)
		case instructions.MountTypeSSH:
			err = st.ssh(m, x.op, agents)
			agents++
		default:
			err = st.mount(m, st.c.sources[i], x)
		}
		if err != nil {
			return err
		}
	}
	// A mount within another comes after it, in whatever order they are written. Secrets and agents come last.
	slices.SortStableFunc(x.op.Mounts, func(a, b graph.Mount) int {
		if c := cmp.Compare(mountRank(a.Type), mountRank(b.Type)); c != 0 || mountRank(a.Type) > 0 {
			return c
		}
		return strings.Compare(a.Target, b.Target)
	})
	return nil
}

func mountRank(t graph.MountType) int {
	return slices.Index([]graph.MountType{graph.MountSecret, graph.MountSSH}, t) + 1
}

// mount adds a bind, cache or tmpfs mount.
func (st *step) mount(m *instructions.Mount, from *stage, x *execOp) error {
	target := st.mountTarget(m.Target)
	if path.Clean(target) == "/" {
		return invalidf("invalid mount target %q", target).WithHint("add target=/path: a mount without one goes to the working directory")
	}
	g := graph.Mount{Type: graph.MountType(m.Type), Target: target, Input: graph.None, Output: graph.None, ReadOnly: m.ReadOnly}
	if from != nil && !from.done {
		return invalidf("cannot mount from stage %q to %q, stage needs to be defined before current command", from.title(), m.Target)
	}
	if m.Type == instructions.MountTypeTmpfs {
		g.Size = m.SizeLimit
		x.op.Mounts = append(x.op.Mounts, g)
		return nil
	}
	src := graph.Edge{}
	switch {
	case from != nil:
		src = from.root
	case m.Type == instructions.MountTypeBind:
		var err error
		if src, err = st.p.main(); err != nil {
			return err
		}
	}
	g.Input = x.input(src)
	if s := path.Join("/", m.Source); s != "/" {
		g.Source = s
	}
	if m.Type == instructions.MountTypeCache {
		st.cacheMount(m, &g)
	}
	x.op.Mounts = append(x.op.Mounts, g)
	return nil
}

// mountTarget makes a target absolute: a relative one is below the working directory.
func (st *step) mountTarget(target string) string {
	target = slashed(target, st.platform.OS)
	if !path.IsAbs(path.Clean(target)) {
		target = path.Join("/", st.cwd(), target)
	}
	return target
}

func (st *step) cacheMount(m *instructions.Mount, g *graph.Mount) {
	g.CacheID = m.CacheID
	if g.CacheID == "" {
		g.CacheID = path.Clean(m.Target)
	}
	g.Sharing = graph.SharingShared
	if m.CacheSharing != "" {
		g.Sharing = graph.Sharing(m.CacheSharing)
	}
	setOwner(m, g)
	if _, ok := st.outline.caches[g.CacheID]; !ok {
		st.outline.caches[g.CacheID] = st.at
	}
	g.CacheID = st.p.req.CacheMountNS + "/" + g.CacheID // as in BuildKit, whose frontends share the mounts
}

func setOwner(m *instructions.Mount, g *graph.Mount) {
	if m.UID != nil {
		g.UID = int(*m.UID)
	}
	if m.GID != nil {
		g.GID = int(*m.GID)
	}
	if m.Mode != nil {
		g.Mode = uint32(*m.Mode)
	}
}

// secret adds a secret as a file, as a variable, or as both.
func (st *step) secret(m *instructions.Mount, op *graph.Exec) error {
	id, target := m.CacheID, slashed(m.Target, st.platform.OS)
	if m.Source != "" {
		id = m.Source
	}
	if id == "" {
		if target == "" {
			return invalidf("one of source, target required")
		}
		id = path.Base(target)
	}
	need(st.outline.secrets, id, m.Required, st.at)
	if m.Env != nil {
		name := *m.Env
		if name == "" {
			name = path.Base(id)
		}
		op.SecretEnv = append(op.SecretEnv, graph.SecretEnv{ID: id, Name: name, Optional: !m.Required})
		if target == "" {
			return nil
		}
	}
	if target == "" {
		if st.platform.OS == "windows" {
			return invalidf("secret target is required on Windows").WithHint("add target=C:/path/to/secret")
		}
		target = "/run/secrets/" + path.Base(id)
	}
	g := graph.Mount{Type: graph.MountSecret, Target: path.Clean(st.mountTarget(target)), Input: graph.None, Output: graph.None, ID: id, Optional: !m.Required, Mode: 0o400}
	setOwner(m, &g)
	op.Mounts = append(op.Mounts, g)
	return nil
}

// ssh adds the socket of a forwarded agent; n counts those before it.
func (st *step) ssh(m *instructions.Mount, op *graph.Exec, n int) error {
	if m.Source != "" {
		return invalidf("ssh does not support source")
	}
	id := m.CacheID
	if id == "" {
		id = "default"
	}
	need(st.outline.ssh, id, m.Required, st.at)
	target := m.Target
	if target == "" {
		target = fmt.Sprintf("/run/buildkit/ssh_agent.%d", n)
	}
	target = path.Clean(st.mountTarget(target))
	if _, ok := lookupList(op.Env, "SSH_AUTH_SOCK"); !ok {
		op.Env = append(op.Env, "SSH_AUTH_SOCK="+target)
	}
	g := graph.Mount{Type: graph.MountSSH, Target: target, Input: graph.None, Output: graph.None, ID: id, Optional: !m.Required, Mode: 0o600}
	setOwner(m, &g)
	op.Mounts = append(op.Mounts, g)
	return nil
}

func need(m map[string]needed, id string, required bool, at []diag.Span) {
	if _, ok := m[id]; !ok {
		m[id] = needed{required, at}
	}
}
