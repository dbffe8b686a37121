package engine

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/sandbox"
)

// DeviceOptions say which devices of this machine steps can have. They are described as the Container Device Interface has it.
type DeviceOptions struct {
	Dirs     []string // of the descriptions; empty = /etc/cdi and /var/run/cdi
	Free     []string // names or kinds of devices that every build may have
	Disabled bool
}

// Device is a device of this machine.
type Device struct {
	Name        string // "vendor.com/class=name"
	Annotations map[string]string
	Free        bool // every build may have it
}

// freeDevice is the annotation that makes a device free.
const freeDevice = "org.mobyproject.buildkit.device.autoallow"

// Devices lists the devices as their descriptions say now.
func (e *Engine) Devices() []Device {
	if e.opt.Devices.Disabled {
		return nil
	}
	found, problems := e.devices().List()
	for _, err := range problems {
		e.log.Warn("a description of devices is left out", "err", err)
	}
	out := make([]Device, len(found))
	for i, d := range found {
		out[i] = Device{Name: d.Name, Annotations: d.Annotations, Free: e.free(d)}
	}
	return out
}

func (e *Engine) devices() sandbox.Devices { return sandbox.Devices{Dirs: e.opt.Devices.Dirs} }

func (e *Engine) free(d sandbox.Device) bool {
	kind, _, _ := strings.Cut(d.Name, "=")
	if slices.Contains(e.opt.Devices.Free, d.Name) || slices.Contains(e.opt.Devices.Free, kind) {
		return true
	}
	free, err := strconv.ParseBool(d.Annotations[freeDevice])
	return err == nil && free
}

// devicesOf returns the devices that a step gets of those that it asks for, or why it cannot have them. The build's allowances say
// "device" for all, "device=NAME" for some, and "device=NAME,alias=OTHER" for one that the step calls OTHER.
func (b *build) devicesOf(want []graph.Device) ([]graph.Device, error) {
	if len(want) == 0 {
		return nil, nil
	}
	if b.e.opt.Devices.Disabled {
		for _, w := range want {
			if !w.Optional {
				return nil, diag.Errorf(diag.Denied, "device %q is required by the step, but devices are disabled", w.Name)
			}
		}
		return nil, nil
	}
	granted, all, err := grants(b.allow)
	if err != nil || all {
		return want, err
	}
	var out, plain []graph.Device
	for _, w := range want {
		if name := granted[w.Name]; name != "" {
			out = append(out, graph.Device{Name: name, Optional: w.Optional})
		} else {
			plain = append(plain, w)
		}
	}
	found, err := b.e.devices().Find(plain)
	if err != nil || len(found) == 0 {
		return out, err
	}
	may := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(granted)) {
		ds, err := b.e.devices().Find([]graph.Device{{Name: name, Optional: granted[name] != ""}})
		if err != nil {
			return nil, err
		}
		for _, d := range ds {
			may[d.Name] = true
		}
	}
	var refused []string
	for _, d := range found {
		if !may[d.Name] && !b.e.free(d) {
			refused = append(refused, d.Name)
		}
		out = append(out, graph.Device{Name: d.Name})
	}
	switch len(refused) {
	case 0:
		return out, nil
	case 1:
		err = diag.Errorf(diag.Denied, "device %s is requested by the build but not allowed", refused[0]).WithHint("if you trust this build, add --allow device=%s", refused[0])
	default:
		err = diag.Errorf(diag.Denied, "devices %s are requested by the build but not allowed", strings.Join(refused, ", ")).WithHint("if you trust this build, add --allow device")
	}
	return nil, err
}

// grants reads the allowances of devices: by the name that a step uses, the device's name where that is another.
func grants(allow []string) (map[string]string, bool, error) {
	out := map[string]string{}
	for _, a := range allow {
		kind, rest, named := strings.Cut(a, "=")
		if kind != "device" {
			continue
		}
		if !named || rest == "" {
			return nil, true, nil
		}
		name, alias, _ := strings.Cut(rest, ",")
		key, other, ok := strings.Cut(alias, "=")
		switch {
		case alias == "":
			out[name] = ""
		case ok && key == "alias" && other != "":
			out[other] = name
		default:
			return nil, false, diag.Errorf(diag.Invalid, "the allowance %q must be device, device=NAME or device=NAME,alias=OTHER", a)
		}
	}
	return out, false, nil
}
