package sandbox

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// defaultCDIDirs are where device vendors describe their devices; later ones win.
// https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md
var defaultCDIDirs = []string{"/etc/cdi", "/var/run/cdi"}

// deviceClass is the annotation by which several devices have one more name.
const deviceClass = "org.mobyproject.buildkit.device.class"

// Devices are descriptions of this machine's devices by its vendors, files in JSON or YAML. They are read anew each time, so
// that a file that comes or goes counts from then on.
type Devices struct {
	Dirs []string // empty = /etc/cdi and /var/run/cdi; of equal names that in a later one counts
}

// Device is one that a step can have.
type Device struct {
	Name        string // qualified: "vendor.com/class=name"
	Annotations map[string]string

	file  *cdiFile
	edits cdiEdits
}

// cdiFile is a description of devices of one kind, such as "nvidia.com/gpu".
type cdiFile struct {
	Kind           string            `yaml:"kind"`
	Annotations    map[string]string `yaml:"annotations"`
	ContainerEdits cdiEdits          `yaml:"containerEdits"`
	Devices        []struct {
		Name           string            `yaml:"name"`
		Annotations    map[string]string `yaml:"annotations"`
		ContainerEdits cdiEdits          `yaml:"containerEdits"`
	} `yaml:"devices"`
}

func (d Devices) dirs() []string {
	if len(d.Dirs) == 0 {
		return defaultCDIDirs
	}
	return d.Dirs
}

// List returns all devices by name. Errors are about files that were left out: ones that cannot be read, and ones that
// describe a device of the same directory again, which then is neither's.
func (d Devices) List() ([]Device, []error) {
	all := map[string]Device{}
	var problems []error
	for _, dir := range d.dirs() {
		here := map[string]Device{}
		var twice []string
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); ext != ".json" && ext != ".yaml" {
				continue
			}
			path := filepath.Join(dir, e.Name())
			found, err := readCDI(path)
			if err != nil {
				problems = append(problems, fmt.Errorf("%s: %w", path, err))
			}
			for _, dev := range found {
				if _, ok := here[dev.Name]; ok {
					twice = append(twice, dev.Name)
					problems = append(problems, fmt.Errorf("%s: device %q is described in another file too", path, dev.Name))
				}
				here[dev.Name] = dev
			}
		}
		maps.Copy(all, here)
		for _, name := range twice {
			delete(all, name)
		}
	}
	names := slices.Sorted(maps.Keys(all))
	out := make([]Device, len(names))
	for i, n := range names {
		out[i] = all[n]
	}
	return out, problems
}

// maxSettings bounds a file of settings, in bytes.
const maxSettings = 4 << 20

// readSettings reads a file that somebody else installed.
func readSettings(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSettings+1))
	if err == nil && len(data) > maxSettings {
		err = diag.Errorf(diag.Exhausted, "%s has more than %d bytes", path, maxSettings)
	}
	return data, err
}

func readCDI(path string) ([]Device, error) {
	data, err := readSettings(path)
	if err != nil {
		return nil, err
	}
	f := &cdiFile{}
	if err := yaml.Unmarshal(data, f); err != nil { // JSON is YAML
		return nil, err
	}
	if vendor, class, ok := strings.Cut(f.Kind, "/"); !ok || vendor == "" || class == "" || strings.Contains(f.Kind, "=") {
		return nil, fmt.Errorf("the kind %q must be vendor.com/class", f.Kind)
	}
	var out []Device
	for _, d := range f.Devices {
		if d.Name == "" {
			return nil, fmt.Errorf("a device has no name")
		}
		notes := maps.Clone(f.Annotations)
		if notes == nil {
			notes = map[string]string{}
		}
		maps.Copy(notes, d.Annotations)
		out = append(out, Device{Name: f.Kind + "=" + d.Name, Annotations: notes, file: f, edits: d.ContainerEdits})
	}
	return out, nil
}

// Find returns the devices that names stand for, each once: "vendor.com/class=name", "vendor.com/class" for the first one of
// a kind, "vendor.com/class=*" for all of it, or the name of a class, an annotation, for all that have it. A name for none is an error
// unless it is optional.
func (d Devices) Find(want []graph.Device) ([]Device, error) {
	if len(want) == 0 {
		return nil, nil
	}
	all, problems := d.List()
	var out []Device
	for _, w := range want {
		found := match(all, w.Name)
		if len(found) == 0 && !w.Optional {
			err := diag.Errorf(diag.NotFound, "required device %q is not registered", w.Name).
				WithHint("devices are described by files in %s", strings.Join(d.dirs(), " and "))
			if len(problems) > 0 {
				err = err.WithHint("this file could not be used: %v", problems[0])
			}
			return nil, err
		}
		for _, f := range found {
			if !slices.ContainsFunc(out, func(o Device) bool { return o.Name == f.Name }) {
				out = append(out, f)
			}
		}
	}
	return out, nil
}

func match(all []Device, name string) []Device {
	kind, dev, _ := strings.Cut(name, "=")
	var out []Device
	for _, d := range all {
		k, n, _ := strings.Cut(d.Name, "=")
		if k != kind {
			continue
		}
		switch dev {
		case "*", n:
			out = append(out, d)
		case "":
			return []Device{d}
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, d := range all {
		if class, ok := d.Annotations[deviceClass]; ok && class == name {
			out = append(out, d)
		}
	}
	return out
}
