package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// site is where a test runs commands: a state root, a build context (the working directory), an environment.
type site struct {
	t       *testing.T
	program string
	root    string
	dir     string
	mark    string // in the environment of every step, to find its processes
	env     []string
}

func newSite(t *testing.T) *site {
	t.Helper()
	tmp := t.TempDir()
	return newSiteAt(t, filepath.Join(tmp, "state"))
}

// newSiteAt makes a site with its state root at a path.
func newSiteAt(t *testing.T, root string) *site {
	t.Helper()
	tmp := t.TempDir()
	s := &site{t: t, program: program, root: root, dir: filepath.Join(tmp, "context"), mark: "MARK=" + strconv.FormatInt(time.Now().UnixNano(), 36)}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.env = append(os.Environ(), "STRATA_ROOT="+s.root, "STRATA_DAEMON=", "STRATA_GC_BYTES=", "STRATA_ALLOW_OLD_RUNC=1", "HOME="+tmp, "DOCKER_CONFIG="+filepath.Join(tmp, "docker"),
		"STRATA_CONFIG="+os.DevNull, "SOURCE_DATE_EPOCH=1")
	t.Cleanup(s.end)
	return s
}

// end stops the site's engine. Nothing may be left then.
func (s *site) end() {
	if pid := s.engine(); pid > 0 {
		_ = syscall.Kill(pid, syscall.SIGTERM)
		s.wait("the engine's end", func() bool { return !alive(pid) })
	}
	if left := s.left(); len(left) > 0 {
		s.t.Errorf("left at the end:\n%s", strings.Join(left, "\n"))
		_ = s.command("--no-daemon", "check").Run() // it sweeps
	}
}

// alive reports whether a process runs; one that ended and waits for its parent does not.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// deadline is when a test gives up to wait for something; it is no measure of anything.
const deadline = 2 * time.Minute

// wait waits until something holds.
func (s *site) wait(what string, holds func() bool) {
	s.t.Helper()
	for until := time.Now().Add(deadline); !holds(); time.Sleep(3 * time.Millisecond) {
		if time.Now().After(until) {
			s.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// write writes a file of the context.
func (s *site) write(name, text string) {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		s.t.Fatal(err)
	}
}

// result is a command that ended.
type result struct {
	out, err string
	code     int // of the exit; -1 if a signal ended it
}

// steps reads plain progress: the state of each step by its name. A line that was cut off by the end is not read.
func (r result) steps() map[string]string {
	names, out := map[string]string{}, map[string]string{}
	for line := range strings.Lines(r.err) {
		line, whole := strings.CutSuffix(line, "\n")
		n, rest, ok := strings.Cut(line, " ")
		if !ok || !whole || !strings.HasPrefix(n, "#") {
			continue
		}
		if names[n] == "" {
			names[n] = rest
			out[rest] = "STARTED"
			continue
		}
		if word, _, _ := strings.Cut(rest, " "); slices.Contains([]string{"DONE", "CACHED", "CANCELED", "ERROR:"}, word) {
			out[names[n]] = strings.TrimSuffix(word, ":")
		}
	}
	return out
}

// proc is a command under way.
type proc struct {
	s    *site
	cmd  *exec.Cmd
	mu   sync.Mutex
	outs [2]bytes.Buffer
	done chan struct{}
}

// stream is one of the outputs of a command.
type stream struct {
	p *proc
	n int
}

func (w stream) Write(b []byte) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	return w.p.outs[w.n].Write(b)
}

// command is a call of the program that was not started.
func (s *site) command(args ...string) *exec.Cmd {
	cmd := exec.Command(s.program, args...)
	cmd.Dir, cmd.Env = s.dir, s.env
	return cmd
}

// start starts a command of the program.
func (s *site) start(args ...string) *proc {
	s.t.Helper()
	return s.startCmd(s.command(args...))
}

func (s *site) startCmd(cmd *exec.Cmd) *proc {
	s.t.Helper()
	p := &proc{s: s, cmd: cmd, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = stream{p, 0}, stream{p, 1}
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	s.t.Cleanup(func() { p.kill(syscall.SIGKILL) })
	return p
}

// shows reports whether the error output has a text so far.
func (p *proc) shows(text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Contains(p.outs[1].String(), text)
}

// until waits for a text in the error output.
func (p *proc) until(text string) {
	p.s.t.Helper()
	p.s.wait(strconv.Quote(text), func() bool {
		select {
		case <-p.done:
			if !p.shows(text) {
				p.s.t.Fatalf("strata ended without saying %q:\n%s", text, p.result().err)
			}
		default:
		}
		return p.shows(text)
	})
}

func (p *proc) kill(sig syscall.Signal) { _ = p.cmd.Process.Signal(sig) }

// result waits for the end.
func (p *proc) result() result {
	p.s.t.Helper()
	select {
	case <-p.done:
	case <-time.After(deadline):
		_ = p.cmd.Process.Signal(syscall.SIGQUIT)
		<-p.done
		p.s.t.Fatalf("strata %v does not end:\n%s", p.cmd.Args, p.outs[1].String())
	}
	return result{p.outs[0].String(), p.outs[1].String(), p.cmd.ProcessState.ExitCode()}
}

// run runs a command of the program.
func (s *site) run(args ...string) result {
	s.t.Helper()
	return s.start(args...).result()
}

// ok runs a command that must succeed.
func (s *site) ok(args ...string) result {
	s.t.Helper()
	r := s.run(args...)
	if r.code != 0 {
		s.t.Fatalf("strata %s: code %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r
}

// fails runs a command that must end with code 1, one error, and all of the texts in it. It returns the error.
func (s *site) fails(r result, texts ...string) string {
	s.t.Helper()
	at := strings.LastIndex("\n"+r.err, "\nerror: ")
	if r.code != 1 || at < 0 {
		s.t.Fatalf("code %d, want 1 and an error\n%s", r.code, r.err)
	}
	said := r.err[at:]
	for _, text := range texts {
		if !strings.Contains(said, text) {
			s.t.Errorf("the error does not say %q:\n%s", text, said)
		}
	}
	for _, bad := range []string{"goroutine ", "panic:", "%!"} {
		if strings.Contains(r.err, bad) {
			s.t.Errorf("%q in the output:\n%s", bad, r.err)
		}
	}
	return said
}

// base imports the image "base".
func (s *site) base() {
	s.t.Helper()
	data, err := baseTar()
	if err != nil {
		s.t.Fatal(err)
	}
	s.file("image", "import", "--change", "ENV "+s.mark, bytes.NewReader(data), "-", "base")
}

// file runs a command with an argument that is an io.Reader as its standard input.
func (s *site) file(args ...any) {
	s.t.Helper()
	var words []string
	var in *bytes.Reader
	for _, a := range args {
		if r, ok := a.(*bytes.Reader); ok {
			in = r
			continue
		}
		words = append(words, a.(string))
	}
	cmd := s.command(words...)
	cmd.Stdin = in
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("strata %v: %v\n%s", words, err, out)
	}
}

// build builds the context with plain progress, and makes the image "app" with times that do not depend on the clock.
func (s *site) build(args ...string) result {
	s.t.Helper()
	return s.run(buildArgs(args...)...)
}

func buildArgs(args ...string) []string {
	return append([]string{"build", "--progress=plain", "--output=type=image,name=app,rewrite-timestamp=true"}, append(args, ".")...)
}

// layers returns the diff_ids of an image.
func (s *site) layers(name string) []string {
	s.t.Helper()
	var infos []struct{ Platforms []struct{ Layers []string } }
	r := s.ok("image", "inspect", name)
	if err := json.Unmarshal([]byte(r.out), &infos); err != nil || len(infos) != 1 || len(infos[0].Platforms) != 1 {
		s.t.Fatalf("strata image inspect %s: %v\n%s", name, err, r.out)
	}
	return infos[0].Platforms[0].Layers
}

// healthy checks the state in full.
func (s *site) healthy() {
	s.t.Helper()
	if r := s.ok("check", "--full"); !strings.Contains(r.out, "no damage left") {
		s.t.Fatalf("check --full: %s", r.out)
	}
}

// engine returns the process that owns the root, 0 if there is none.
func (s *site) engine() int {
	b, _ := os.ReadFile(filepath.Join(s.root, "lock"))
	line, _, _ := strings.Cut(string(b), "\n")
	who, _, _ := strings.Cut(line, " ")
	pid, err := strconv.Atoi(who)
	if err != nil || !alive(pid) {
		return 0
	}
	cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if !strings.Contains(string(cmd), "strata") {
		return 0
	}
	return pid
}

// killEngine ends the process that owns the root at once, and waits until the kernel has ended it.
func (s *site) killEngine() {
	s.t.Helper()
	pid := s.engine()
	if pid == 0 {
		return
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	s.wait("the engine's end", func() bool { return !alive(pid) })
}

// owner is the part of the names of control groups and links that says whose they are.
func (s *site) owner() (runDir, owner string) {
	root, err := filepath.EvalSymlinks(s.root)
	if err != nil {
		root = s.root
	}
	sum := sha256.Sum256([]byte(root))
	dir := "/run/strata/" + hex.EncodeToString(sum[:8])
	own := sha256.Sum256([]byte(dir))
	return dir, hex.EncodeToString(own[:4])
}
