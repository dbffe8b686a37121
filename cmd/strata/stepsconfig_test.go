package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
)

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "strata.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestStepsConfig(t *testing.T) {
	for text, want := range map[string]engine.StepOptions{
		"":                                    {},
		"[registry.\"a.example\"]\nhttp=true": {},
		"[steps]\ncapabilities=[]\n":          {Capabilities: []string{}},
		"[steps]\ncapabilities=['chown']\nnoNewPrivileges=true\nonly64Bit=true\napparmorProfile='p'\npids=-1\nmemory='2GB'\nclientMemory='1GB'\n": {Capabilities: []string{"chown"}, NoNewPrivileges: true, Only64Bit: true, AppArmor: "p", PIDs: -1, Memory: 2 << 30, ClientMemory: 1 << 30},
		"[steps]\nmemory='none'\n": {Memory: -1},
	} {
		if got, err := loadSteps(writeConfig(t, text)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"[steps]\ncapabilites=[]\n": "steps.capabilites", "[steps]\nmemory='much'\n": "much", "[steps]\nmemory='-1'\n": "-1", "[steps]\npids='x'\n": "[steps]", "steps=1\n": "[steps]", "x": "strata.toml",
	} {
		if _, err := loadSteps(writeConfig(t, text)); diag.KindOf(err) != diag.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if got, err := loadSteps(filepath.Join(t.TempDir(), "none")); err != nil || !reflect.DeepEqual(got, engine.StepOptions{}) {
		t.Errorf("%+v %v", got, err)
	}
}

// A daemon that was to label its steps started, and did not.
func TestServeIgnoresConfinement(t *testing.T) {
	on, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	for name, c := range map[string]struct {
		file, want string
		flags      []string
	}{
		"SELinux":              {flags: []string{"--oci-worker-selinux"}, want: "SELinux"},
		"SELinux by file":      {file: "[worker.oci]\nselinux=true\n", want: "SELinux"},
		"AppArmor":             {flags: []string{"--oci-worker-apparmor-profile=docker-default"}, want: `"docker-default"`},
		"AppArmor by file":     {file: "[worker.oci]\napparmor-profile='x'\n", want: `"x"`},
		"AppArmor by section":  {file: "[steps]\napparmorProfile='y'\n", want: `"y"`},
		"unknown capability":   {file: "[steps]\ncapabilities=['CAP_NONE']\n", want: `"CAP_NONE"`},
		"unknown step setting": {file: "[steps]\nseccomp='off'\n", want: "steps.seccomp"},
	} {
		if bytes.HasPrefix(on, []byte("Y")) && strings.HasPrefix(name, "AppArmor") {
			continue // the machine has it
		}
		var errw bytes.Buffer
		args := append([]string{"serve", "--root", t.TempDir(), "--config", writeConfig(t, c.file), "--addr", "unix://" + filepath.Join(t.TempDir(), "s")}, c.flags...)
		code := (&cli{in: strings.NewReader(""), out: &errw, err: &errw}).execute(args)
		if code == 0 || !strings.Contains(errw.String(), c.want) {
			t.Errorf("%s: %d %s", name, code, errw.String())
		}
	}
}
