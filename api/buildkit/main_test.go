package buildkit

import (
	"fmt"
	"os"
	"testing"

	"github.com/strata-build/strata/sandbox/reexec"
)

// The test binary is the engine: it runs as the engine does.
func TestMain(m *testing.M) {
	if os.Geteuid() == 0 {
		if err := reexec.Protect(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(m.Run())
}
