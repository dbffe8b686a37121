package main

import (
	"bytes"
	"errors"
	"os"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
)

// stepsConfig is the section [steps] of the configuration file: how this machine confines all steps.
type stepsConfig struct {
	Capabilities    []string `toml:"capabilities"`
	NoNewPrivileges bool     `toml:"noNewPrivileges"`
	Only64Bit       bool     `toml:"only64Bit"`
	AppArmor        string   `toml:"apparmorProfile"`
	PIDs            int64    `toml:"pids"`
	Memory          string   `toml:"memory"`       // a size, or "none"
	ClientMemory    string   `toml:"clientMemory"` // likewise
}

func (c *stepsConfig) options() (engine.StepOptions, error) {
	o := engine.StepOptions{Capabilities: c.Capabilities, NoNewPrivileges: c.NoNewPrivileges, Only64Bit: c.Only64Bit, AppArmor: c.AppArmor, PIDs: c.PIDs}
	for _, m := range []struct {
		name, size string
		to         *int64
	}{{"memory", c.Memory, &o.Memory}, {"clientMemory", c.ClientMemory, &o.ClientMemory}} {
		switch m.size {
		case "":
		case "none":
			*m.to = -1
		default:
			n, err := parseBytes(m.size)
			if err != nil || n <= 0 {
				return o, diag.Errorf(diag.Invalid, "invalid %s %q below [steps]", m.name, m.size).WithHint("give a size such as 6GB, or none")
			}
			*m.to = n
		}
	}
	return o, nil
}

// loadSteps reads the section of a file, which need not exist. The other sections are for others.
func loadSteps(path string) (engine.StepOptions, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return engine.StepOptions{}, nil
	}
	if err != nil {
		return engine.StepOptions{}, diag.Errorf(diag.Invalid, "the configuration: %w", err)
	}
	var all map[string]any
	if err := toml.Unmarshal(data, &all); err != nil {
		return engine.StepOptions{}, diag.Errorf(diag.Invalid, "%s: %w", path, err)
	}
	section, err := toml.Marshal(map[string]any{"steps": all["steps"]})
	if err != nil {
		return engine.StepOptions{}, diag.Errorf(diag.Invalid, "%s: %w", path, err)
	}
	var file struct {
		Steps stepsConfig `toml:"steps"`
	}
	err = toml.NewDecoder(bytes.NewReader(section)).DisallowUnknownFields().Decode(&file)
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		return engine.StepOptions{}, diag.Errorf(diag.Invalid, "%s: unknown setting %s", path, strings.Join(strict.Errors[0].Key(), ".")).
			WithHint("steps have capabilities, noNewPrivileges, only64Bit, apparmorProfile, pids, memory and clientMemory")
	}
	if err != nil {
		return engine.StepOptions{}, diag.Errorf(diag.Invalid, "%s, section [steps]: %w", path, err)
	}
	return file.Steps.options()
}
