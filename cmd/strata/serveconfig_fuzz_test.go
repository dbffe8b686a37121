package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"

	"github.com/strata-build/strata/diag"
)

// FuzzServeConfig reads configurations of the daemon as far as nothing is started: no crash, and no error that blames Strata.
func FuzzServeConfig(f *testing.F) {
	f.Add([]byte("tenancy = \"client\"\ntenantSpace = \"20GB\"\n[worker.oci]\nmax-parallelism = 4\n[[worker.oci.gcpolicy]]\nkeepDuration = \"48h\"\nmaxUsedSpace = \"10%\"\n"))
	f.Add([]byte("[registry.\"r.io\"]\nmirrors = [\"m.io\"]\nhttp = true\n[dns]\nnameservers = [\"1.1.1.1\"]\n[steps]\npids = 10\n"))
	path := filepath.Join(f.TempDir(), "buildkitd.toml")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		conf, _, err := loadServeConfig(path)
		v := &serving{}
		if err == nil {
			conf.apply(&cli{}, v, pflag.NewFlagSet("serve", pflag.ContinueOnError))
			_, _, err = v.gc.rules()
		}
		if err == nil {
			_, err = conf.Frontends.options()
		}
		if err == nil {
			_, err = conf.History.options()
		}
		if err != nil && diag.KindOf(err) == diag.Internal {
			t.Error(err)
		}
	})
}
