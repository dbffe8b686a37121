package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const cancelFile = `
FROM base AS first
RUN echo first > /first
FROM first
RUN --mount=type=cache,target=/c echo x > /unfinished && echo be""gun && sleep 1000
`

// TestCancel ends a client in the middle of a RUN, in every way. Nothing is left, and what was done is kept.
func TestCancel(t *testing.T) {
	needBuild(t)
	for name, c := range map[string]struct {
		args []string
		sig  syscall.Signal
	}{
		"SIGINT": {nil, syscall.SIGINT}, "SIGTERM": {nil, syscall.SIGTERM}, "SIGKILL": {nil, syscall.SIGKILL},
		"SIGINT without a daemon": {[]string{"--no-daemon"}, syscall.SIGINT}, "SIGTERM without a daemon": {[]string{"--no-daemon"}, syscall.SIGTERM},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.base()
			if c.args != nil {
				s.ok("daemon", "stop")
			}
			s.write("Dockerfile", cancelFile)
			p := s.start(append(c.args, buildArgs()...)...)
			p.until(" begun")
			if len(s.leftOfSteps()) == 0 || len(s.drafts("unfinished")) != 1 {
				t.Fatal("the test does not see the step")
			}
			engine := s.engine()
			p.kill(c.sig)
			r := p.result()
			if c.sig == syscall.SIGKILL { // nobody waits for the clean-up
				s.wait("the end of the step", func() bool { return len(s.leftOfSteps()) == 0 })
			} else if r.code != 130 || !strings.HasSuffix(r.err, "\ncanceled\n") || strings.Contains(r.err, "error:") {
				t.Errorf("code %d\n%s", r.code, r.err)
			}
			if left := s.leftOfSteps(); len(left) > 0 {
				t.Errorf("left after the end of the client:\n%s", strings.Join(left, "\n"))
			}
			if c.args == nil && s.engine() != engine {
				t.Error("the engine ended with its client")
			}
			s.wait("the draft to go", func() bool { return len(s.drafts("unfinished")) == 0 })
			s.wait("the temporary files to go", func() bool {
				now, _ := os.ReadDir(filepath.Join(s.root, "tmp"))
				return len(now) == 0
			})
			r = s.run(append(c.args, buildArgs("--target", "first")...)...)
			if r.code != 0 || r.steps()["[first 2/2] RUN echo first > /first"] != "CACHED" {
				t.Errorf("the first step was not kept: code %d\n%s", r.code, r.err)
			}
			s.healthy()
			s.ok("daemon", "stop")
			if left := s.left(); len(left) > 0 {
				t.Errorf("left after the engine's end:\n%s", strings.Join(left, "\n"))
			}
		})
	}
}

// TestCancelShared has two builds share a step. One leaves; the other gets the step's result.
func TestCancelShared(t *testing.T) {
	needBuild(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		for _, starter := range []bool{true, false} {
			s := newSite(t)
			s.base()
			// The step waits for a file in its cache mount, where the test can make it.
			s.write("Dockerfile", "FROM base\nRUN --mount=type=cache,target=/c echo ran >> /c/runs && echo be\"\"gun && while [ ! -e /c/go ]; do sleep 0.02; done\nRUN echo end\n")
			p := []*proc{s.start(buildArgs()...)}
			p[0].until(" begun")
			p = append(p, s.start(buildArgs()...))
			p[1].until(" begun")
			gone, stays := p[1], p[0]
			if starter {
				gone, stays = p[0], p[1]
			}
			gone.kill(sig)
			gone.result()
			cache, _ := filepath.Glob(filepath.Join(s.root, "mounts", "*"))
			if len(cache) != 1 {
				t.Fatalf("cache mounts: %q", cache)
			}
			if err := os.WriteFile(filepath.Join(cache[0], "go"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if r := stays.result(); r.code != 0 {
				t.Errorf("%s, starter %v: the build that stayed: %s", sig, starter, r.err)
			}
			if runs, err := os.ReadFile(filepath.Join(cache[0], "runs")); string(runs) != "ran\n" {
				t.Errorf("%s, starter %v: the step ran %q, %v", sig, starter, runs, err)
			}
			s.healthy()
		}
	}
}
