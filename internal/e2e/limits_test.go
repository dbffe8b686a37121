package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// nobody makes a command run as a user without rights.
func nobody(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd
}

// TestNoRoot runs commands as a user without rights.
func TestNoRoot(t *testing.T) {
	needBuild(t)
	dir, err := os.MkdirTemp("", "strata-e2e-nobody-") // t.TempDir is for its user only
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	s := newSiteAt(t, filepath.Join(dir, "state"))
	s.dir = filepath.Join(dir, "context")
	s.write("Scratch", "FROM scratch\nCOPY Scratch /\n")
	s.write("Run", "FROM scratch\nRUN [\"/true\"]\n")
	s.env = append(s.env, "HOME="+dir, "TMPDIR="+dir, "STRATA_CONFIG="+os.DevNull)
	run := func(args ...string) result { return s.startCmd(nobody(s.command(args...))).result() }

	for _, args := range [][]string{{"version"}, {"--help"}, {"build", "--help"}, {"daemon", "status"}, {"daemon", "stop"}} {
		if r := run(args...); r.code != 0 || r.out == "" && args[0] != "daemon" {
			t.Errorf("strata %v: code %d\n%s", args, r.code, r.err)
		}
	}
	data, err := baseTar()
	if err != nil {
		t.Fatal(err)
	}
	s.write("base.tar", string(data))
	for _, mode := range [][]string{nil, {"--no-daemon"}} {
		with := func(args ...string) []string { return append(append([]string(nil), mode...), args...) }
		for _, args := range [][]string{{"build", "--check", "-f", "Scratch", "."}, {"image", "ls"}, {"check", "--full"}, {"prune"}, {"du"}} {
			if r := run(with(args...)...); r.code != 0 {
				t.Errorf("strata %v: code %d\n%s", with(args...), r.code, r.err)
			}
		}
		s.fails(run(with("build", "-f", "Scratch", ".")...), "Strata needs root here", "hint: sudo strata build")
		s.fails(run(with("image", "import", "base.tar", "base")...), "not permitted", "hint: run the builder as root")
		s.fails(run(with("build", "-f", "Run", ".")...), "Strata needs root here", "hint: sudo strata build")
		s.fails(run(with("--root", "/var/lib/nobody", "image", "ls")...), "/var/lib/nobody", "permission denied", "hint: Strata needs root here")
		if r := run("daemon", "stop"); r.code != 0 {
			t.Errorf("daemon stop: %s", r.err)
		}
	}
	// Root's state is not for others.
	mine := newSite(t)
	mine.ok("image", "ls")
	cmd := nobody(s.command("--root", mine.root, "image", "ls"))
	s.fails(s.startCmd(cmd).result(), "permission denied", "hint: ")
}

// TestNoOverlay hides overlayfs from a command by a system call filter's nearest relative that a test can have: a mount
// namespace without the right to mount. A kernel without the file system gives another error number for the same call.
func TestNoOverlay(t *testing.T) {
	needBuild(t)
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("needs setpriv")
	}
	s := newSite(t)
	s.base()
	s.ok("daemon", "stop")
	s.write("Dockerfile", "FROM base\nRUN true\n")
	s.write("Scratch", "FROM scratch\nCOPY Dockerfile /\n")
	run := func(args ...string) result {
		cmd := s.command()
		cmd.Path, cmd.Err = "/usr/bin/setpriv", nil
		cmd.Args = append([]string{"setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--", s.program, "--no-daemon"}, args...)
		return s.startCmd(cmd).result()
	}
	s.fails(run("build", "."), "mount", "Dockerfile:2", "hint: ")
	if r := run("build", "-f", "Scratch", "."); r.code != 0 {
		t.Errorf("a build without steps: %s", r.err)
	}
	s.healthy()
}

// TestNoRuntime has no runtime, or one that is none.
func TestNoRuntime(t *testing.T) {
	needBuild(t)
	s := newSite(t)
	s.base()
	s.ok("daemon", "stop")
	s.write("Dockerfile", "FROM base\nRUN true\n")
	path := t.TempDir()
	for _, mode := range [][]string{nil, {"--no-daemon"}} {
		with := func(args ...string) *exec.Cmd { return s.command(append(append([]string(nil), mode...), args...)...) }
		cmd := with("--runtime", "runc", "build", ".")
		cmd.Env = append(cmd.Env, "PATH="+path)
		s.fails(s.startCmd(cmd).result(), "runc", "is not installed", "hint: apt-get install runc", "Dockerfile:2")
		s.ok("daemon", "stop")
		s.fails(s.startCmd(with("--runtime", "/nowhere/runtime", "build", ".")).result(), "/nowhere/runtime", "hint: ", "Dockerfile:2")
		s.ok("daemon", "stop")
		s.fails(s.startCmd(with("--runtime", "/bin/true", "build", ".")).result(), "/bin/true", "hint: ", "Dockerfile:2")
		s.ok("daemon", "stop")
	}
	cmd := s.command("build", ".")
	cmd.Env = append(cmd.Env, "PATH="+path)
	if r := s.startCmd(cmd).result(); r.code != 0 {
		t.Errorf("a build without runc: %s", r.err)
	}
}

// TestFewFiles lowers the limit on open files step by step: each command works or says what is wrong.
func TestFewFiles(t *testing.T) {
	needBuild(t)
	s := newSite(t)
	s.base()
	s.ok("daemon", "stop")
	var b strings.Builder
	b.WriteString("FROM base\n")
	for i := range 12 {
		fmt.Fprintf(&b, "COPY small /f%d\n", i)
	}
	b.WriteString("RUN true\n")
	s.write("Dockerfile", b.String())
	s.write("small", "small")
	worked, failed := 0, 0
	step := 4
	if testing.Short() {
		step = 9
	}
	for n := 96; n >= 13; n -= step { // with fewer the language's runtime does not start
		for _, mode := range []string{"", "--no-daemon"} {
			r := s.startCmd(s.shell(fmt.Sprintf("ulimit -n %d; exec %s %s build --no-cache .", n, s.program, mode))).result()
			switch {
			case r.code == 0:
				worked++
			default:
				failed++
				s.fails(r, "too many open files")
				if !strings.Contains(r.err, "ulimit -n") {
					t.Errorf("%d files %s: no hint:\n%s", n, mode, r.err)
				}
			}
			s.ok("daemon", "stop")
		}
		if left := s.left(); len(left) > 0 {
			t.Errorf("left with %d files: %q", n, left)
		}
	}
	if worked == 0 || failed == 0 {
		t.Errorf("%d worked and %d failed: the limits are not where it matters", worked, failed)
	}
	s.healthy()
	s.ok("build", ".")
}

// shell is a command of sh in the site.
func (s *site) shell(line string) *exec.Cmd {
	cmd := exec.Command("sh", "-c", line)
	cmd.Dir, cmd.Env = s.dir, s.env
	return cmd
}

// TestOtherVersion refuses state of another format and leaves it alone.
func TestOtherVersion(t *testing.T) {
	s := newSite(t)
	s.ok("image", "ls")
	s.ok("daemon", "stop")
	version := filepath.Join(s.root, "version")
	if err := os.WriteFile(version, []byte("9999\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"image", "ls"}, {"--no-daemon", "image", "ls"}, {"prune", "-a"}} {
		s.fails(s.run(args...), s.root, `"9999"`, "hint: ")
	}
	if b, err := os.ReadFile(version); string(b) != "9999\n" {
		t.Errorf("version is %q, %v", b, err)
	}
}
