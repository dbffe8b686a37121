package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// crashFile has stages that run at the same time, cache mounts, copies from the context and between stages. What the image
// holds does not depend on SALT, which makes every step a new one.
const crashFile = `
FROM base AS a
ARG SALT
WORKDIR /a
COPY salt /salt
COPY one /a/
RUN --mount=type=cache,target=/c echo a > /c/f && cp /c/f /a/f && sleep 0.06 && : $SALT
RUN i=0; while [ $i -lt 40 ]; do echo $i > /a/$i; i=$((i+1)); done; : $SALT
FROM base AS b
ARG SALT
COPY salt /salt
RUN mkdir /b && sleep 0.1 && echo b > /b/b && : $SALT
COPY two /b/
RUN --mount=type=cache,target=/c,sharing=locked echo bb > /c/b && sleep 0.05 && mv /b/b /b/c && : $SALT
FROM base AS c
ARG SALT
RUN --mount=type=tmpfs,target=/t mkdir /c && echo c > /c/c && sleep 0.15 && : $SALT
FROM base
ARG SALT
COPY --from=a /a /a
COPY --link --from=b /b /b
COPY --from=c /c /c
RUN rm /a/1 && echo end > /end && sleep 0.05 && : $SALT
`

func (s *site) crashContext() {
	s.base()
	s.write("Dockerfile", crashFile)
	s.write("one", strings.Repeat("one\n", 10_000))
	s.write("two", "two")
	s.write("salt", "clean")
}

var instruction = regexp.MustCompile(`^\[.*\d+/\d+\] (RUN|COPY|WORKDIR)`)

// TestKill kills the process that builds, again and again, at moments that differ.
func TestKill(t *testing.T) {
	needBuild(t)
	clean := newSite(t)
	clean.crashContext()
	first := clean.build("--build-arg", "SALT=clean")
	if first.code != 0 {
		t.Fatal(first.err)
	}
	want, lines := clean.layers("app"), strings.Count(first.err, "\n")

	s := newSite(t)
	s.crashContext()
	rounds := 50
	if testing.Short() {
		rounds = 5
	}
	acked := 0
	for round := range rounds {
		acked += s.killRound(round, lines, want)
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	if !testing.Short() && acked < 2*rounds {
		t.Errorf("only %d steps were done before a kill in %d rounds: the test kills too early", acked, rounds)
	}
}

// killRound kills a build after some line of its progress and a random pause, and returns how many steps it had done.
func (s *site) killRound(round, lines int, want []string) (acked int) {
	t := s.t
	salt := fmt.Sprintf("round %d", round)
	s.write("salt", salt)
	args := buildArgs("--build-arg", "SALT="+salt)
	inside := round%2 == 1
	if inside { // the engine in the command's own process
		s.ok("daemon", "stop")
		args = append([]string{"--no-daemon"}, args...)
	}
	p := s.start(args...)
	at := rand.IntN(lines)
	s.wait("progress", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		select {
		case <-p.done:
			return true
		default:
			return strings.Count(p.outs[1].String(), "\n") > at
		}
	})
	time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond)
	if inside {
		p.kill(syscall.SIGKILL)
	} else {
		s.killEngine()
	}
	r := p.result()
	if r.code == 1 && !strings.Contains(r.err, "was killed or crashed") {
		t.Errorf("the client of a killed engine says\n%s", r.err)
	}
	before := r.steps()

	check := []string{"check", "--full"}
	if round/2%2 == 1 {
		check = append([]string{"--no-daemon"}, check...)
	}
	if c := s.run(check...); c.code != 0 || !strings.Contains(c.out, "no damage left") {
		t.Errorf("check after the kill: %s%s", c.out, c.err)
	}
	if left := append(s.leftOfSteps(), s.leftOfEngine()...); len(left) > 0 {
		t.Errorf("left after the kill and a command:\n%s", strings.Join(left, "\n"))
	}

	next := s.build("--build-arg", "SALT="+salt)
	if next.code != 0 {
		t.Fatalf("the build after the kill: %s", next.err)
	}
	after := next.steps()
	for name, state := range before {
		if state != "DONE" || !instruction.MatchString(name) {
			continue
		}
		acked++
		if after[name] != "CACHED" {
			t.Errorf("step %q was done before the kill and is %s now\nbefore:\n%s\nafter:\n%s", name, after[name], r.err, next.err)
		}
	}
	if got := s.layers("app"); !slices.Equal(got, want) {
		t.Errorf("the image differs from that of a clean state: %v, want %v", got, want)
	}
	return acked
}

// TestKillLeavesNoFiles looks for what killed builds might leave on the disk.
func TestKillLeavesNoFiles(t *testing.T) {
	needBuild(t)
	s := newSite(t)
	s.base()
	s.write("Dockerfile", "FROM base\nRUN echo x > /unfinished && sleep 1000\n")
	p := s.start(buildArgs()...)
	s.wait("the step", func() bool { return len(s.drafts("unfinished")) == 1 })
	s.killEngine()
	p.result()
	s.ok("image", "ls")
	s.wait("the draft to be swept", func() bool { return len(s.drafts("unfinished")) == 0 })
	s.wait("the temporary files to be swept", func() bool {
		old, _ := filepath.Glob(s.root + "/tmp.old-*")
		now, _ := os.ReadDir(s.root + "/tmp")
		return len(old)+len(now) == 0
	})
}

// TestEngineDies has the engine end while a client waits: the client says so with what the engine wrote last.
func TestEngineDies(t *testing.T) {
	needBuild(t)
	s := newSite(t)
	s.base()
	s.write("Dockerfile", "FROM base\nRUN echo be\"\"gun && sleep 1000\n")
	p := s.start(buildArgs()...)
	p.until(" begun")
	_ = syscall.Kill(s.engine(), syscall.SIGQUIT) // the language's runtime reports all goroutines, and ends
	s.fails2(p.result(), "was killed or crashed", "SIGQUIT: quit", "hint: run the command again")

	p = s.start(buildArgs()...)
	p.until(" begun")
	_ = syscall.Kill(s.engine(), syscall.SIGTERM) // an orderly end
	s.fails(p.result(), "the engine was stopped", "hint: run the command again")
	s.ok("image", "ls")
}

// fails2 is fails for an error that shows a crash.
func (s *site) fails2(r result, texts ...string) {
	s.t.Helper()
	for _, text := range texts {
		if r.code != 1 || !strings.Contains(r.err, text) {
			s.t.Errorf("code %d, want 1 and %q:\n%s", r.code, text, r.err)
		}
	}
}
