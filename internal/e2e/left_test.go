package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// left lists what belongs to the site's steps and is still there: processes, mounts, control groups, links, firewall
// tables, files. An engine that is up may keep a bridge for the next step: it is asked for the rest only.
func (s *site) left() []string {
	out := s.leftOfSteps()
	if s.engine() == 0 {
		out = append(out, s.leftOfEngine()...)
	}
	return out
}

// leftOfSteps lists what no step that ended may leave.
func (s *site) leftOfSteps() []string {
	runDir, owner := s.owner()
	var out []string
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		if pid, _ := strconv.Atoi(filepath.Base(p)); pid == os.Getpid() || !alive(pid) {
			continue
		}
		environ, _ := os.ReadFile(p + "/environ")
		cmd, _ := os.ReadFile(p + "/cmdline")
		if bytes.Contains(environ, []byte(s.mark)) || bytes.Contains(cmd, []byte(runDir)) {
			out = append(out, fmt.Sprintf("process %s: %q", filepath.Base(p), cmd))
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, s.root+"/") || strings.HasPrefix(at, runDir+"/") {
			out = append(out, "mount "+at)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/strata-" + owner + "/*/", "/sys/fs/cgroup/*/strata-" + owner + "/*/", runDir + "/run/*", s.root + "/tmp/exec-*"} {
		found, _ := filepath.Glob(pattern)
		out = append(out, found...)
	}
	return out
}

// leftOfEngine lists what no engine that ended may leave.
func (s *site) leftOfEngine() []string {
	runDir, owner := s.owner()
	// The kernel takes network namespaces, and the links in them, away some time after their last process.
	for until := time.Now().Add(deadline); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		if ports, _ := filepath.Glob("/sys/class/net/stra*" + owner + "*"); len(ports) == 0 {
			break
		}
	}
	var out []string
	for _, pattern := range []string{
		"/sys/fs/cgroup/strata-" + owner, "/sys/fs/cgroup/*/strata-" + owner, "/sys/class/net/stra*" + owner + "*",
		runDir + "/*",
	} {
		found, _ := filepath.Glob(pattern)
		for _, f := range found {
			if f != runDir+"/root" { // names the root, so that a later engine removes the directory when the root is gone
				out = append(out, f)
			}
		}
	}
	if tables, err := exec.Command("nft", "list", "tables").Output(); err == nil && strings.Contains(string(tables), "strata_"+owner) {
		out = append(out, "firewall table strata_"+owner)
	}
	return out
}

// drafts lists the layers that hold a file of a name at their top.
func (s *site) drafts(name string) []string {
	found, _ := filepath.Glob(filepath.Join(s.root, "snapshots", "*", "fs", name))
	more, _ := filepath.Glob(filepath.Join(s.root, "tmp*", "*", "fs", name))
	return append(found, more...)
}
