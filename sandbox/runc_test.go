package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/strata-build/strata/diag"
)

func TestFindRunc(t *testing.T) {
	_, err := findRunc("no-such-runtime", t.TempDir())
	d, ok := err.(*diag.Error)
	if !ok || d.Kind != diag.Unsupported || !strings.Contains(d.Hint, "apt-get install runc") {
		t.Errorf("%v", err)
	}
	script := func(out string) string {
		p := filepath.Join(t.TempDir(), "runtime")
		if err := os.WriteFile(p, []byte("#!/bin/sh\necho '"+out+"'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	if _, err := findRunc(script("hello"), ""); diag.KindOf(err) != diag.Unsupported {
		t.Errorf("%v", err)
	}
	for out, want := range map[string]struct{ keep, old bool }{
		"runc version 1.0.3":      {false, true},
		"runc version 1.1.5+ds1":  {true, true},
		"runc version 1.2.7":      {true, true},
		"runc version 1.2.8":      {true, false},
		"runc version 1.3.0-rc.1": {true, true},
		"runc version 1.3.3":      {true, false},
		"runc version 1.4.0":      {true, false},
		"runc version 2.0":        {true, false},
		"crun version 1.8.1":      {false, false},
	} {
		r, err := findRunc(script(out), "")
		if err != nil || r.keep != want.keep || r.old() != want.old {
			t.Errorf("%s: %+v %v", out, r, err)
		}
	}
}

// A runc from which containers can escape is not used unless the operator says so.
func TestOldRuncIsRefused(t *testing.T) {
	old := filepath.Join(t.TempDir(), "runc")
	if err := os.WriteFile(old, []byte("#!/bin/sh\necho runc version 1.1.5\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, allowed := range []bool{false, true} {
		s, err := New(Options{Root: t.TempDir(), Binary: old, OldRunc: allowed})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.outside(nil)
		d, _ := err.(*diag.Error)
		if allowed != (err == nil) || !allowed && (d == nil || d.Kind != diag.Unsupported || !strings.Contains(d.Msg, "1.1.5") || !strings.Contains(d.Hint, "STRATA_ALLOW_OLD_RUNC=1")) {
			t.Errorf("allowed: %v; %v", allowed, err)
		}
	}
}

func TestLastError(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log.json")
	if got := lastError(name); got != "" {
		t.Errorf("%q", got)
	}
	os.WriteFile(name, []byte(`{"level":"warning","msg":"w"}
{"level":"error","msg":"first"}
not json
{"level":"error","msg":"last"}
`), 0o600)
	if got := lastError(name); got != "last" {
		t.Errorf("%q", got)
	}
}
