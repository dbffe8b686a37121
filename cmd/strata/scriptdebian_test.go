package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// debianTar is a small Debian root file system, made once. It needs a mirror of Debian, so it is left out with -short.
var debianTar = sync.OnceValues(func() ([]byte, error) {
	if testing.Short() || os.Geteuid() != 0 {
		return nil, errors.New("left out")
	}
	dir, err := os.MkdirTemp("", "strata-debian-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "root.tar")
	if err := exec.Command("mmdebstrap", "--quiet", "--variant=essential", `--aptopt=Acquire::Check-Valid-Until "false"`, "stable", path).Run(); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

func cmdDebian(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: debian NAME")
	}
	data, err := debianTar()
	ts.Check(err)
	path := ts.MkAbs(".debian.tar")
	ts.Check(os.WriteFile(path, data, 0o644))
	ts.Check(ts.Exec("strata", "image", "import", path, args[0]))
	ts.Check(os.Remove(path))
}
