package sandbox

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// cdiDirs are where device vendors describe their devices; later ones win.
// https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md
var cdiDirs = []string{"/etc/cdi", "/var/run/cdi"}

// cdiFile is a description of devices of one kind, such as "nvidia.com/gpu".
type cdiFile struct {
	Kind           string   `json:"kind"`
	ContainerEdits cdiEdits `json:"containerEdits"`
	Devices        []struct {
		Name           string   `json:"name"`
		ContainerEdits cdiEdits `json:"containerEdits"`
	} `json:"devices"`
}

// cdiEdits is what a device needs in the container.
type cdiEdits struct {
	Env         []string `json:"env"`
	DeviceNodes []struct {
		Path        string       `json:"path"`
		HostPath    string       `json:"hostPath"`
		Permissions string       `json:"permissions"`
		FileMode    *os.FileMode `json:"fileMode"`
		UID         *uint32      `json:"uid"`
		GID         *uint32      `json:"gid"`
	} `json:"deviceNodes"`
	Mounts []struct {
		HostPath      string   `json:"hostPath"`
		ContainerPath string   `json:"containerPath"`
		Options       []string `json:"options"`
		Type          string   `json:"type"`
	} `json:"mounts"`
	Hooks []struct {
		HookName string   `json:"hookName"`
		Path     string   `json:"path"`
		Args     []string `json:"args"`
		Env      []string `json:"env"`
		Timeout  *int     `json:"timeout"`
	} `json:"hooks"`
	AdditionalGIDs []uint32 `json:"additionalGids"`
}

// injectDevices adds the devices that a step asks for by CDI names, "vendor.com/class=name" or "vendor.com/class" for the
// first one of the class. Only descriptions in JSON are read.
func injectDevices(s *specs.Spec, want []graph.Device, dirs []string) error {
	if len(want) == 0 {
		return nil
	}
	files := readCDI(dirs)
	for _, d := range want {
		edits := findDevice(files, d.Name)
		if edits == nil && !d.Optional {
			return diag.Errorf(diag.NotFound, "no device %q on this machine", d.Name).WithHint("devices are described by JSON files in %s", strings.Join(dirs, " and "))
		}
		for _, e := range edits {
			if err := applyEdits(s, e); err != nil {
				return diag.Errorf(diag.Unavailable, "device %q: %w", d.Name, err)
			}
		}
	}
	return nil
}

func readCDI(dirs []string) []cdiFile {
	var out []cdiFile
	for _, dir := range slices.Backward(dirs) {
		names, _ := filepath.Glob(filepath.Join(dir, "*.json"))
		for _, name := range names {
			var f cdiFile
			if data, err := os.ReadFile(name); err == nil && json.Unmarshal(data, &f) == nil {
				out = append(out, f)
			}
		}
	}
	return out
}

// findDevice returns the edits of the kind and of the device, or nil.
func findDevice(files []cdiFile, name string) []cdiEdits {
	kind, dev, named := strings.Cut(name, "=")
	for _, f := range files {
		if f.Kind != kind {
			continue
		}
		for _, d := range f.Devices {
			if !named || d.Name == dev {
				return []cdiEdits{f.ContainerEdits, d.ContainerEdits}
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
