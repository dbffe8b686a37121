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
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "strata.service"), filepath.Join(dir, "strata.socket")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(unit, "/usr/bin/strata", "/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	data, err = os.ReadFile("../../deploy/strata.socket")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), "\nSocketMode=0660\n") {
		t.Error("other users can open the socket")
	}
	if err := os.WriteFile(socket, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", file, socket).CombinedOutput(); err != nil || strings.Contains(string(out), "strata.s") {
		t.Errorf("%v\n%s", err, out)
	}
}
