package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/strata-build/strata/diag"
)

// A context that changes because Strata's own state is in it gets the hint that helps.
func TestStateInTheContext(t *testing.T) {
	dir := t.TempDir()
	changed := diag.Errorf(diag.Conflict, "%q changed while it was being read", "/x").WithHint("build again")
	for root, inside := range map[string]bool{filepath.Join(dir, "state"): true, filepath.Join(dir, "a", "b"): true, t.TempDir(): false, filepath.Dir(dir): false} {
		c := &cli{root: root}
		err := c.besideState(changed, dir)
		d, ok := err.(*diag.Error)
		if !ok || strings.Contains(d.Hint, ".dockerignore") != inside {
			t.Errorf("%s: %v, %+v", root, err, d)
		}
	}
	other := diag.Errorf(diag.Invalid, "another error")
	if err := (&cli{root: dir}).besideState(other, dir); err != error(other) {
		t.Errorf("%v", err)
	}
}
