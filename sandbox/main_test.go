package sandbox

import (
	"fmt"
	"os"
	"testing"

	"github.com/strata-build/strata/sandbox/reexec"
)

// The test binary is the engine, so that it runs as the engine does; and it is a hostile program in a step, see
// TestAStepCannotWriteToTheEngine.
func TestMain(m *testing.M) {
	Helper()
	if os.Getenv(hostileEnv) != "" {
		attackExecutables()
		os.Exit(0)
	}
	if os.Geteuid() == 0 {
		if err := reexec.Protect(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(m.Run())
}
