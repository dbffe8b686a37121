package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// stepProcesses counts the processes of the site's steps.
func (s *site) stepProcesses() int {
	n := 0
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		environ, _ := os.ReadFile(p + "/environ")
		if pid, _ := strconv.Atoi(filepath.Base(p)); pid != os.Getpid() && bytes.Contains(environ, []byte(s.mark)) && alive(pid) {
			n++
		}
	}
	return n
}

// The kernel forgets the death signal of a process that executes a setuid program. Such a step ends with the engine all the same,
// however the engine dies, whichever runtime runs the step and wherever its control group is.
func TestAStepThatClearsItsDeathSignalEndsWithTheEngine(t *testing.T) {
	needBuild(t)
	const file = `FROM base
ARG SALT
RUN mkdir /s && cp /bin/busybox /s && chmod 4755 /s/busybox
USER 1000
RUN echo be""gun && for i in 1 2 3; do /s/busybox sleep 100$SALT </dev/null & done; exec /s/busybox sleep 1000
`
	parent := "/strata-e2e-" + strconv.Itoa(os.Getpid())
	for i, how := range [][]string{
		{"build"}, {"--runtime=runc", "build"}, {"build", "--cgroup-parent=" + parent}, {"--runtime=runc", "build", "--cgroup-parent=" + parent}, {"--no-daemon", "build"},
	} {
		t.Run(fmt.Sprint(how), func(t *testing.T) {
			s := newSite(t)
			s.base()
			s.ok("daemon", "stop")
			s.write("Dockerfile", file)
			args := append(append([]string(nil), how...), "--progress=plain", "--network=none", "--build-arg", fmt.Sprint("SALT=", i), ".")
			p := s.start(args...)
			p.until("begun")
			s.wait("the step's processes", func() bool { return s.stepProcesses() >= 4 })
			if err := unix.Kill(s.engine(), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			p.result()
			s.wait("the end of the step's processes", func() bool { return s.stepProcesses() == 0 })
			s.ok("build", "--check", ".") // the next engine sweeps
		})
	}
}

// A server's builds put their steps below the control groups that its operator allows, and below no others.
func TestServeRefusesCgroupParents(t *testing.T) {
	needBuild(t)
	s := newSite(t)
	s.base()
	s.ok("daemon", "stop")
	s.write("Dockerfile", "FROM base\nRUN cat /proc/self/cgroup\n")
	allowed := "/strata-e2e-" + strconv.Itoa(os.Getpid())
	p := s.start("serve", "--root", s.root, "--addr", "unix://"+filepath.Join(filepath.Dir(s.root), "sock"), "--allow-cgroup-parent", allowed)
	p.until("serving")
	s.fails(s.run("build", "--network=none", "--cgroup-parent=/system.slice", "."), `the cgroup parent "/system.slice" is not allowed`, "hint: the operator allows", "Dockerfile:2")
	s.ok("build", "--network=none", "--cgroup-parent="+allowed+"/a", ".")
	if left, _ := filepath.Glob("/sys/fs/cgroup/*" + allowed); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	p.kill(unix.SIGTERM)
	p.result()
}

// A runc from which containers can escape is refused before a step runs.
func TestOldRuncIsRefused(t *testing.T) {
	needBuild(t)
	s := newSite(t)
	s.base()
	s.ok("daemon", "stop")
	s.write("Dockerfile", "FROM base\nRUN true\n")
	old := filepath.Join(s.dir, "runc")
	if err := os.WriteFile(old, []byte("#!/bin/sh\ncase \"$1\" in --version) echo runc version 1.2.7;; *) touch "+s.dir+"/ran;; esac\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.env = append(s.env, "STRATA_ALLOW_OLD_RUNC=")
	s.fails(s.run("--runtime", old, "build", "--network=none", "."), "runc 1.2.7", "CVE-2025-31133", "STRATA_ALLOW_OLD_RUNC=1", "Dockerfile:2")
	if _, err := os.Stat(filepath.Join(s.dir, "ran")); err == nil {
		t.Error("it was run")
	}
}
