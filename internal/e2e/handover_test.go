package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// all runs commands at the same time; each must succeed.
func (s *site) all(commands ...[]string) []result {
	s.t.Helper()
	procs := make([]*proc, len(commands))
	for i, c := range commands {
		procs[i] = s.start(c...)
	}
	out := make([]result, len(commands))
	for i, p := range procs {
		if out[i] = p.result(); out[i].code != 0 {
			s.t.Errorf("strata %s: code %d\n%s", strings.Join(commands[i], " "), out[i].code, out[i].err)
		}
	}
	return out
}

// TestStop returns only when the engine's process has ended and the root is free.
func TestStop(t *testing.T) {
	s := newSite(t)
	for range 20 {
		s.ok("image", "ls")
		if s.engine() == 0 {
			t.Fatal("there is no engine")
		}
		s.ok("daemon", "stop")
		if pid := s.engine(); pid != 0 {
			t.Fatalf("process %d still has the root", pid)
		}
		s.ok("--no-daemon", "image", "ls")
	}
	s.ok("daemon", "stop") // there is none
}

// TestStartTogether has many commands find no engine at the same time: one is started.
func TestStartTogether(t *testing.T) {
	s := newSite(t)
	for range 5 {
		var commands [][]string
		for range 10 {
			commands = append(commands, []string{"image", "ls"})
		}
		s.all(commands...)
		s.ok("daemon", "stop")
	}
}

// TestStopWhileStarting mixes commands, with and without an engine that stays, and the engine's end. Those that want the root
// for themselves may find it in use; nobody else fails.
func TestStopWhileStarting(t *testing.T) {
	s := newSite(t)
	rounds := 30
	if testing.Short() {
		rounds = 5
	}
	for range rounds {
		stop := s.start("daemon", "stop")
		s.all([]string{"image", "ls"}, []string{"du"}, []string{"image", "ls"})
		if r := stop.result(); r.code != 0 && !strings.Contains(r.err, "the engine is in use") {
			t.Errorf("daemon stop: %s", r.err)
		}
		s.ok("daemon", "stop")
	}
}

// TestIdle has commands meet an engine that retires because nobody used it.
func TestIdle(t *testing.T) {
	s := newSite(t)
	rounds := 100
	if testing.Short() {
		rounds = 20
	}
	serve := s.start("daemon", "serve", "--idle", "4ms")
	for i := range rounds {
		s.ok("image", "ls")
		time.Sleep(time.Duration(i%8) * time.Millisecond)
		select {
		case <-serve.done:
			if r := serve.result(); r.code != 0 && !strings.Contains(r.err, "in use by process") {
				t.Fatalf("daemon serve: %s", r.err)
			}
			s.ok("daemon", "stop") // the one that a command started
			serve = s.start("daemon", "serve", "--idle", "4ms")
		default:
		}
	}
}

// TestReplaced runs a newer program: it takes the place of an engine of the older one when that one's builds have ended.
func TestReplaced(t *testing.T) {
	needBuild(t)
	s := newSite(t)
	s.base()
	old := s.engine()
	newer := *s
	newer.program = filepath.Join(t.TempDir(), "strata")
	if err := compile(newer.program, "-newer"); err != nil {
		t.Fatal(err)
	}
	s.write("Dockerfile", "FROM base\nRUN echo be\"\"gun && sleep 1000\n")
	s.write("Other", "FROM base\nRUN echo other\n")
	p := s.start("build", "--progress=plain", ".")
	p.until(" begun")
	waits := []*proc{newer.start("image", "ls"), newer.start("build", "--progress=plain", "-f", "Other", ".")}
	waits[0].until("waiting for another version's builds to end")
	if s.engine() != old {
		t.Error("the engine was replaced while it was in use")
	}
	p.kill(syscall.SIGINT)
	p.result()
	for _, w := range waits {
		if r := w.result(); r.code != 0 {
			t.Errorf("the newer program: %s", r.err)
		}
	}
	if pid := s.engine(); pid == 0 || pid == old {
		t.Errorf("process %d serves; it was %d", pid, old)
	}
	newer.ok("daemon", "stop")
}

// TestInUse says who has the root when a process has it for itself.
func TestInUse(t *testing.T) {
	needBuild(t)
	s := newSite(t)
	s.base()
	s.ok("daemon", "stop")
	s.write("Dockerfile", "FROM base\nRUN echo be\"\"gun && sleep 1000\n")
	p := s.start(append([]string{"--no-daemon"}, buildArgs()...)...)
	p.until(" begun")
	s.fails(s.run("image", "ls"), "is in use by process", s.root, "hint: ")
	s.fails(s.run("--no-daemon", "image", "ls"), "is in use by process", s.root, "hint: ")
	p.kill(syscall.SIGINT)
	if r := p.result(); r.code != 130 {
		t.Errorf("code %d", r.code)
	}
	s.ok("image", "ls")
}

// TestOwnersLog keeps what engines write within bounds, and shows it to nobody else.
func TestOwnersLog(t *testing.T) {
	s := newSite(t)
	s.ok("image", "ls")
	st, err := os.Stat(filepath.Join(s.root, "daemon.log"))
	if err != nil || st.Mode().Perm() != 0o600 || st.Size() != 0 {
		t.Errorf("%v, %v", st, err)
	}
}
