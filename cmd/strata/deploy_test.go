package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The service manager understands all of the unit, and the unit delegates its control groups: steps are part of the service.
func TestServiceUnit(t *testing.T) {
	data, err := os.ReadFile("../../deploy/strata.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := string(data)
	for _, line := range []string{"ExecStart=/usr/bin/strata serve", "Delegate=yes"} {
		if !strings.Contains(unit, "\n"+line+"\n") {
			t.Errorf("the unit does not have %s", line)
		}
	}
	// These are inherited by steps, and break programs that work with other builders.
	for _, setting := range []string{"NoNewPrivileges", "SystemCall", "MemoryDenyWriteExecute", "RestrictSUIDSGID", "ProtectHostname", "RestrictNamespaces", "ProtectControlGroups"} {
		if strings.Contains(unit, "\n"+setting) {
			t.Errorf("the unit sets %s", setting)
		}
	}
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("needs systemd-analyze")
	}
	file := filepath.Join(t.TempDir(), "strata.service")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(unit, "/usr/bin/strata", "/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", file).CombinedOutput(); err != nil || strings.Contains(string(out), "strata.service") {
		t.Errorf("%v\n%s", err, out)
	}
}
