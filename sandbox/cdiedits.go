package sandbox

import (
	"errors"
	"io/fs"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// cdiEdits is what a device needs in the container.
type cdiEdits struct {
	Env         []string `yaml:"env"`
	DeviceNodes []struct {
		Path        string       `yaml:"path"`
		HostPath    string       `yaml:"hostPath"`
		Permissions string       `yaml:"permissions"`
		FileMode    *os.FileMode `yaml:"fileMode"`
		UID         *uint32      `yaml:"uid"`
		GID         *uint32      `yaml:"gid"`
	} `yaml:"deviceNodes"`
	NetDevices []struct {
		HostName string `yaml:"hostInterfaceName"`
		Name     string `yaml:"name"`
	} `yaml:"netDevices"`
	Mounts []struct {
		HostPath      string   `yaml:"hostPath"`
		ContainerPath string   `yaml:"containerPath"`
		Options       []string `yaml:"options"`
		Type          string   `yaml:"type"`
	} `yaml:"mounts"`
	Hooks []struct {
		HookName string   `yaml:"hookName"`
		Path     string   `yaml:"path"`
		Args     []string `yaml:"args"`
		Env      []string `yaml:"env"`
		Timeout  *int     `yaml:"timeout"`
	} `yaml:"hooks"`
	AdditionalGIDs []uint32 `yaml:"additionalGids"`
	IntelRDT       *struct {
		CLOSID        string `yaml:"closID"`
		L3CacheSchema string `yaml:"l3CacheSchema"`
		MemBwSchema   string `yaml:"memBwSchema"`
	} `yaml:"intelRdt"`
}

// injectDevices adds devices to a container: what their files say of all devices, and what they say of each.
func injectDevices(s *specs.Spec, want []graph.Device, from Devices) error {
	devices, err := from.Find(want)
	if err != nil {
		return err
	}
	common := map[*cdiFile]bool{}
	for _, d := range devices {
		edits := []cdiEdits{d.edits}
		if !common[d.file] {
			common[d.file] = true
			edits = []cdiEdits{d.file.ContainerEdits, d.edits}
		}
		for _, e := range edits {
			if err := applyEdits(s, e); err != nil {
				return diag.Errorf(diag.Unavailable, "device %q: %w", d.Name, err)
			}
		}
	}
	return nil
}

func applyEdits(s *specs.Spec, e cdiEdits) error {
	s.Process.Env = append(s.Process.Env, e.Env...)
	s.Process.User.AdditionalGids = append(s.Process.User.AdditionalGids, e.AdditionalGIDs...)
	for _, n := range e.DeviceNodes {
		from := n.HostPath
		if from == "" {
			from = n.Path
		}
		d, ok := deviceNode(from)
		if !ok {
			return &fs.PathError{Op: "find", Path: from, Err: errors.New("not a device")}
		}
		d.Path = n.Path
		if n.FileMode != nil {
			d.FileMode = n.FileMode
		}
		if n.UID != nil {
			d.UID = n.UID
		}
		if n.GID != nil {
			d.GID = n.GID
		}
		access := n.Permissions
		if access == "" {
			access = "rwm"
		}
		s.Linux.Devices = append(s.Linux.Devices, d)
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: access})
	}
	for _, m := range e.Mounts {
		kind := m.Type
		if kind == "" {
			kind = "bind"
		}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: cleanPath(m.ContainerPath), Source: m.HostPath, Type: kind, Options: m.Options})
	}
	for _, n := range e.NetDevices {
		if s.Linux.NetDevices == nil {
			s.Linux.NetDevices = map[string]specs.LinuxNetDevice{}
		}
		s.Linux.NetDevices[n.HostName] = specs.LinuxNetDevice{Name: n.Name}
	}
	if r := e.IntelRDT; r != nil {
		s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: r.CLOSID, L3CacheSchema: r.L3CacheSchema, MemBwSchema: r.MemBwSchema}
	}
	return applyHooks(s, e)
}

func applyHooks(s *specs.Spec, e cdiEdits) error {
	for _, h := range e.Hooks {
		if s.Hooks == nil {
			s.Hooks = &specs.Hooks{}
		}
		hook := specs.Hook{Path: h.Path, Args: h.Args, Env: h.Env, Timeout: h.Timeout}
		switch h.HookName {
		case "createRuntime":
			s.Hooks.CreateRuntime = append(s.Hooks.CreateRuntime, hook)
		case "createContainer":
			s.Hooks.CreateContainer = append(s.Hooks.CreateContainer, hook)
		case "startContainer":
			s.Hooks.StartContainer = append(s.Hooks.StartContainer, hook)
		default:
			return diag.Errorf(diag.Unsupported, "the hook %q is not supported for a build step", h.HookName)
		}
	}
	return nil
}
