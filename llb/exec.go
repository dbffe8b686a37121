package llb

import (
	"math"
	"path"
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// DecodeExec reads a command with its mounts, as clients of a gateway describe containers too. Inputs is how many there are.
func DecodeExec(o *pb.ExecOp, inputs int) (*graph.Exec, error) {
	m := o.GetMeta()
	if m == nil || len(m.Args) == 0 {
		return nil, invalidf("a command without arguments")
	}
	e := &graph.Exec{
		Args: m.Args, Env: m.Env, Cwd: m.Cwd, User: m.User, Hostname: m.Hostname, Stubs: m.RemoveMountStubsRecursive,
		Limits: graph.Limits{CgroupParent: m.CgroupParent},
	}
	for _, s := range [][]string{m.Args, m.Env, {m.Cwd, m.User, m.Hostname}} {
		for _, s := range s {
			if err := checkPath("the argument or setting", s); err != nil {
				return nil, err
			}
		}
	}
	for _, c := range m.ValidExitCodes {
		e.ExitCodes = append(e.ExitCodes, int(c))
	}
	for i, h := range m.ExtraHosts {
		if h == nil {
			return nil, invalidf("extra host %d is missing", i)
		}
		e.ExtraHosts = append(e.ExtraHosts, graph.HostIP{Host: h.Host, IP: h.IP})
	}
	for i, u := range m.Ulimit {
		if u == nil {
			return nil, invalidf("ulimit %d is missing", i)
		}
		e.Limits.Ulimits = append(e.Limits.Ulimits, graph.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	if p := m.ProxyEnv; p != nil {
		e.Proxy = &graph.ProxyEnv{HTTP: p.HttpProxy, HTTPS: p.HttpsProxy, FTP: p.FtpProxy, No: p.NoProxy, All: p.AllProxy}
	}
	if err := decodeModes(o, e); err != nil {
		return nil, err
	}
	return e, decodeMounts(o, e, inputs)
}

// decodeModes reads the network, the confinement, and what the command may see. An unknown value is refused, never taken for
// a known one.
func decodeModes(o *pb.ExecOp, e *graph.Exec) error {
	switch o.Network {
	case pb.NetMode_UNSET:
	case pb.NetMode_HOST:
		e.Network = graph.NetworkHost
	case pb.NetMode_NONE:
		e.Network = graph.NetworkNone
	default:
		return invalidf("the network mode %d is unknown", o.Network)
	}
	switch o.Security {
	case pb.SecurityMode_SANDBOX:
	case pb.SecurityMode_INSECURE:
		e.Security = graph.SecurityInsecure
	default:
		return invalidf("invalid security mode %d", o.Security)
	}
	for i, s := range o.Secretenv {
		if s.GetID() == "" || s.Name == "" {
			return invalidf("secret variable %d has no secret or no name", i)
		}
		if strings.ContainsAny(s.Name, "=\x00") {
			return invalidf("the secret variable %q cannot have that name", s.Name)
		}
		e.SecretEnv = append(e.SecretEnv, graph.SecretEnv{ID: s.ID, Name: s.Name, Optional: s.Optional})
	}
	for i, d := range o.CdiDevices {
		if d.GetName() == "" {
			return invalidf("device %d has no name", i)
		}
		e.Devices = append(e.Devices, graph.Device{Name: d.Name, Optional: d.Optional})
	}
	return nil
}

// decodeMounts reads the mounts. As in BuildKit, the outputs of a command are its bind mounts with an output, in their
// order; the index that a mount gives only says that there is one.
func decodeMounts(o *pb.ExecOp, e *graph.Exec, inputs int) error {
	roots, outputs := 0, 0
	for i, m := range o.Mounts {
		if m == nil {
			return invalidf("mount %d is missing", i)
		}
		if m.Input < int64(pb.Empty) || m.Input >= int64(inputs) {
			return invalidf("the mount at %q has input %d, but the step has %d inputs", m.Dest, m.Input, inputs)
		}
		if m.Output < int64(pb.SkipOutput) || m.Output > int64(len(o.Mounts)) {
			return invalidf("the mount at %q has output %d", m.Dest, m.Output)
		}
		if err := checkPath("the mount", m.Dest+m.Selector); err != nil {
			return err
		}
		g, err := decodeMount(m)
		if err != nil {
			return err
		}
		g.Target = m.Dest
		if !path.IsAbs(g.Target) {
			g.Target = path.Join("/", e.Cwd, m.Dest)
		}
		if path.Clean(g.Target) == "/" {
			g.Target = "/"
			roots++
		}
		if g.Type == graph.MountBind && m.Output != int64(pb.SkipOutput) {
			g.Output = outputs
			outputs++
		}
		if err := contentCache(m.ContentCache, g); err != nil {
			return err
		}
		e.Mounts = append(e.Mounts, *g)
	}
	if roots != 1 {
		return invalidf("a command with %d root file systems", roots)
	}
	return nil
}

func decodeMount(m *pb.Mount) (*graph.Mount, error) {
	g := &graph.Mount{Input: int(m.Input), Output: graph.None, Source: m.Selector, ReadOnly: m.Readonly}
	switch m.MountType {
	case pb.MountType_BIND:
		g.Type = graph.MountBind
	case pb.MountType_CACHE:
		g.Type = graph.MountCache
		if m.CacheOpt == nil {
			return nil, invalidf("the cache mount at %q has no options", m.Dest)
		}
		if g.CacheID = m.CacheOpt.ID; g.CacheID == "" {
			g.CacheID = m.Dest
		}
		switch m.CacheOpt.Sharing {
		case pb.CacheSharingOpt_SHARED:
			g.Sharing = graph.SharingShared
		case pb.CacheSharingOpt_PRIVATE:
			g.Sharing = graph.SharingPrivate
		case pb.CacheSharingOpt_LOCKED:
			g.Sharing = graph.SharingLocked
		default:
			return nil, invalidf("the cache mount at %q has the unknown sharing mode %d", m.Dest, m.CacheOpt.Sharing)
		}
	case pb.MountType_TMPFS:
		g.Type, g.Input, g.Source = graph.MountTmpfs, graph.None, ""
		if g.Size = m.TmpfsOpt.GetSize(); g.Size < 0 {
			return nil, invalidf("the tmpfs at %q has the size %d", m.Dest, g.Size)
		}
	case pb.MountType_SECRET:
		g.Type, g.Input, g.Source = graph.MountSecret, graph.None, ""
		s := m.SecretOpt
		if s.GetID() == "" {
			return nil, invalidf("the secret mount at %q names no secret", m.Dest)
		}
		g.ID, g.Optional, g.UID, g.GID, g.Mode = s.ID, s.Optional, int(s.Uid), int(s.Gid), s.Mode
	case pb.MountType_SSH:
		g.Type, g.Input, g.Source = graph.MountSSH, graph.None, ""
		s := m.SSHOpt
		if s == nil {
			return nil, invalidf("the ssh mount at %q has no options", m.Dest)
		}
		g.ID, g.Optional, g.UID, g.GID, g.Mode = s.ID, s.Optional, int(s.Uid), int(s.Gid), s.Mode
		if g.ID == "" {
			g.ID = "default"
		}
	default:
		return nil, invalidf("the mount at %q is of the unknown type %d", m.Dest, m.MountType)
	}
	if g.Mode > 0o7777 {
		return nil, invalidf("the mount at %q has the mode %#o", m.Dest, g.Mode)
	}
	return g, nil
}

// contentCache says how the input of a mount is keyed.
func contentCache(c pb.MountContentCache, g *graph.Mount) error {
	switch c {
	case pb.MountContentCache_DEFAULT:
	case pb.MountContentCache_OFF:
		g.ByDef = true
	case pb.MountContentCache_ON:
		if whole := cleanRoot(g.Source) == "/"; g.Output != graph.None && !g.ReadOnly && !whole {
			return invalidf("the mount at %q cannot be keyed by its content: it is a part of a tree that is written to", g.Target)
		}
		g.ByContent = true
	default:
		return invalidf("the mount at %q has the unknown content cache %d", g.Target, c)
	}
	return nil
}

func cleanRoot(p string) string { return path.Join("/", p) }

// decodeResources reads the limits of a command, which are metadata of its op.
func decodeResources(e *graph.Exec, r *pb.LinuxResources) error {
	if r == nil {
		return nil
	}
	if r.Memory < 0 || r.MemorySwap < -1 || r.CpuQuota < -1 || r.CpuPeriod > math.MaxInt64 {
		return invalidf("limits of a command that are negative or too large").
			WithHint("0 means no limit")
	}
	l := &e.Limits
	l.Memory, l.MemorySwap, l.CPUShares, l.CPUPeriod, l.CPUQuota = r.Memory, r.MemorySwap, r.CpuShares, r.CpuPeriod, r.CpuQuota
	l.CPUSet, l.Mems = r.CpusetCpus, r.CpusetMems
	return nil
}

func encodeExec(e *graph.Exec, at *inputs) (*pb.ExecOp, *pb.LinuxResources, error) {
	o := &pb.ExecOp{Meta: &pb.Meta{
		Args: e.Args, Env: e.Env, Cwd: e.Cwd, User: e.User, Hostname: e.Hostname, CgroupParent: e.Limits.CgroupParent,
		RemoveMountStubsRecursive: e.Stubs,
	}}
	for _, c := range e.ExitCodes {
		o.Meta.ValidExitCodes = append(o.Meta.ValidExitCodes, int32(c))
	}
	for _, h := range e.ExtraHosts {
		o.Meta.ExtraHosts = append(o.Meta.ExtraHosts, &pb.HostIP{Host: h.Host, IP: h.IP})
	}
	for _, u := range e.Limits.Ulimits {
		o.Meta.Ulimit = append(o.Meta.Ulimit, &pb.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	if p := e.Proxy; p != nil {
		o.Meta.ProxyEnv = &pb.ProxyEnv{HttpProxy: p.HTTP, HttpsProxy: p.HTTPS, FtpProxy: p.FTP, NoProxy: p.No, AllProxy: p.All}
	}
	for _, s := range e.SecretEnv {
		o.Secretenv = append(o.Secretenv, &pb.SecretEnv{ID: s.ID, Name: s.Name, Optional: s.Optional})
	}
	for _, d := range e.Devices {
		o.CdiDevices = append(o.CdiDevices, &pb.CDIDevice{Name: d.Name, Optional: d.Optional})
	}
	switch e.Network {
	case graph.NetworkDefault, graph.NetworkProxy: // whether there is a proxy is the build's choice
	case graph.NetworkHost, graph.NetworkHostBy:
		o.Network = pb.NetMode_HOST
	case graph.NetworkNone:
		o.Network = pb.NetMode_NONE
	default:
		return nil, nil, diag.Errorf(diag.Unsupported, "LLB has no network mode %q", e.Network)
	}
	switch e.Security {
	case graph.SecuritySandbox:
	case graph.SecurityInsecure:
		o.Security = pb.SecurityMode_INSECURE
	default:
		return nil, nil, diag.Errorf(diag.Unsupported, "LLB has no security mode %q", e.Security)
	}
	for i := range e.Mounts {
		m, err := encodeMount(&e.Mounts[i], at)
		if err != nil {
			return nil, nil, err
		}
		o.Mounts = append(o.Mounts, m)
	}
	return o, encodeResources(&e.Limits), nil
}

func encodeMount(g *graph.Mount, at *inputs) (*pb.Mount, error) {
	in, err := at.of(g.Input)
	if err != nil {
		return nil, err
	}
	m := &pb.Mount{Input: in, Dest: g.Target, Selector: g.Source, Output: int64(g.Output), Readonly: g.ReadOnly}
	switch {
	case g.ByDef:
		m.ContentCache = pb.MountContentCache_OFF
	case g.ByContent:
		m.ContentCache = pb.MountContentCache_ON
	}
	switch g.Type {
	case graph.MountBind:
	case graph.MountCache:
		m.MountType, m.CacheOpt = pb.MountType_CACHE, &pb.CacheOpt{ID: g.CacheID}
		switch g.Sharing {
		case graph.SharingPrivate:
			m.CacheOpt.Sharing = pb.CacheSharingOpt_PRIVATE
		case graph.SharingLocked:
			m.CacheOpt.Sharing = pb.CacheSharingOpt_LOCKED
		}
	case graph.MountTmpfs:
		m.MountType, m.TmpfsOpt = pb.MountType_TMPFS, &pb.TmpfsOpt{Size: g.Size}
	case graph.MountSecret:
		m.MountType, m.Output = pb.MountType_SECRET, 0 // as clients write it
		m.SecretOpt = &pb.SecretOpt{ID: g.ID, Optional: g.Optional, Uid: uint32(g.UID), Gid: uint32(g.GID), Mode: g.Mode}
	case graph.MountSSH:
		m.MountType, m.Output = pb.MountType_SSH, 0
		m.SSHOpt = &pb.SSHOpt{ID: g.ID, Optional: g.Optional, Uid: uint32(g.UID), Gid: uint32(g.GID), Mode: g.Mode}
	default:
		return nil, diag.Errorf(diag.Unsupported, "LLB has no mount type %q", g.Type)
	}
	return m, nil
}

func encodeResources(l *graph.Limits) *pb.LinuxResources {
	r := &pb.LinuxResources{
		Memory: l.Memory, MemorySwap: l.MemorySwap, CpuShares: l.CPUShares, CpuPeriod: l.CPUPeriod, CpuQuota: l.CPUQuota,
		CpusetCpus: l.CPUSet, CpusetMems: l.Mems,
	}
	if r.EqualVT(&pb.LinuxResources{}) {
		return nil
	}
	return r
}
