package e2e

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Steps can reach the executable of every process that runs an engine: the one that a command starts, "strata serve", and a command
// without a daemon. None of them may be an executable that can be written to. That a step cannot is tested in sandbox.
func TestExecutablesOfEnginesAreReadOnly(t *testing.T) {
	needBuild(t)
	readOnly := func(t *testing.T, s *site) {
		t.Helper()
		pid := s.engine()
		if pid == 0 {
			t.Fatal("no engine runs")
		}
		exe := fmt.Sprintf("/proc/%d/exe", pid)
		if err := unix.Faccessat(unix.AT_FDCWD, exe, unix.W_OK, 0); !errors.Is(err, unix.EROFS) {
			t.Errorf("the engine's executable can be written to: %v", err)
		}
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err != nil || string(comm) != "strata\n" {
			t.Errorf("the process is called %q, %v", comm, err)
		}
	}
	t.Run("daemon", func(t *testing.T) {
		s := newSite(t)
		s.ok("image", "ls")
		readOnly(t, s)
		pid := s.engine()
		if s.ok("image", "ls"); s.engine() != pid {
			t.Error("the next command takes the engine for one of another program")
		}
	})
	t.Run("serve", func(t *testing.T) {
		s := newSite(t)
		p := s.start("serve", "--root", s.root, "--addr", "unix://"+filepath.Join(filepath.Dir(s.root), "sock"))
		p.until("serving")
		readOnly(t, s)
		p.kill(unix.SIGTERM)
		p.result()
	})
	t.Run("no daemon", func(t *testing.T) {
		s := newSite(t)
		s.base()
		s.ok("daemon", "stop")
		p := s.start("--no-daemon", "run", "base", "sh", "-c", "echo be''gun >&2; exec sleep 1000")
		p.until("begun")
		readOnly(t, s)
		p.kill(unix.SIGTERM)
		p.result()
	})
}

// An image's loader would get control of a dynamic executable.
func TestProgramIsStatic(t *testing.T) {
	made := filepath.Join(t.TempDir(), "strata")
	cmd := exec.Command("make", "-C", "../..", "build", "BIN="+made)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make build: %v\n%s", err, out)
	}
	for _, file := range []string{made, program} {
		f, err := elf.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
				t.Errorf("%s is linked dynamically: %v", file, p.Type)
			}
		}
		f.Close()
	}
}
