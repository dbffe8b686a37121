package source

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/sandbox/restrict"
)

// Code that a hostile repository gets git to run reads nothing of the machine, changes nothing outside of the repository, gets no
// rights, and reaches neither the engine nor other servers.
func TestAttackGitThatRunsCode(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("has root's files as its target")
	}
	if restrict.ABI() < 6 {
		t.Skipf("landlock %d does not stop all of this", restrict.ABI())
	}
	secret := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(secret, []byte("HOST-CANARY"), 0o600); err != nil {
		t.Fatal(err)
	}
	var reached atomic.Int32
	listen := func(network, addr string) net.Listener {
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				reached.Add(1)
				c.Close()
			}
		}()
		return l
	}
	port := listen("tcp", "127.0.0.1:0").Addr().(*net.TCPAddr).Port
	bystander := exec.Command("sleep", "1000")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { bystander.Process.Kill(); bystander.Wait() }()
	attacks := map[string]string{
		"read a key of root":                "cat " + secret,
		"read /etc/shadow":                  "cat /etc/shadow",
		"list the machine":                  "ls /root /var",
		"read another process":              "cat /proc/1/environ",
		"change a file":                     "echo x >>" + secret,
		"make a file":                       "echo x >" + secret + ".new",
		"remove a file":                     "rm " + secret + ".old",
		"change who owns its files":         "touch own && chown 1000 own",
		"make a device":                     "mknod device c 1 3",
		"run a program of its own":          "cp /bin/true own-true && ./own-true",
		"make namespaces":                   "unshare -U true",
		"mount":                             "mount -t tmpfs x .",
		"get rights by setuid":              "grep -q 'NoNewPrivs:.0' /proc/self/status",
		"signal a process":                  fmt.Sprintf("kill -0 %d", bystander.Process.Pid),
		"reach a server":                    fmt.Sprintf("GIT_ALLOW_PROTOCOL=git git ls-remote git://127.0.0.1:%d/x; false", port),
		"raise a limit":                     "ulimit -c unlimited",
		"use a capability it does not have": "chroot . /bin/true",
	}
	works := map[string]string{
		"change its directory": "echo x >f && mv f g && ln -s g h && mkdir d && rm -r d",
		"read what is public":  "cat /etc/passwd",
		"run git":              "git init -q repo && git -C repo status",
		"throw output away":    "echo x >/dev/null",
	}
	run, done, err := NewPuller(setup(t).store).NewGit(setup(t).env()).runner(t.Context(), &graph.Git{}, remoteURL{arg: "https://example.com/x"})
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	try := func(script string) (string, error) {
		if err := os.WriteFile(secret+".old", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return run.git(t.Context(), "", "-c", "alias.attack=!"+script, "attack")
	}
	for name, script := range attacks {
		if out, err := try(script); err == nil || strings.Contains(out, "CANARY") {
			t.Errorf("%s: it worked: %q", name, out)
		}
	}
	for name, script := range works {
		if out, err := try(script); err != nil {
			t.Errorf("%s: %v %q", name, err, out)
		}
	}
	if reached.Load() != 0 {
		t.Error("a server of the machine was reached")
	}
	if b := slurp(secret); b != "HOST-CANARY" {
		t.Errorf("a file of the machine was changed: %q", b)
	}
	if _, err := os.Stat(secret + ".new"); err == nil {
		t.Error("a file was made outside")
	}
}

// A hook in the repository is not executed, even if something makes git look for it there.
func TestAttackGitHook(t *testing.T) {
	if restrict.ABI() < 1 {
		t.Skip("no landlock")
	}
	f, r := setup(t), newRepo(t)
	r.write("f", "1")
	r.commit("one")
	marker := filepath.Join(t.TempDir(), "owned")
	run, done, err := NewPuller(f.store).NewGit(f.env()).runner(t.Context(), &graph.Git{}, remoteURL{arg: r.url()})
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	clone := filepath.Join(run.dir, "clone")
	if _, err := run.git(t.Context(), "", "clone", "-q", "--", r.url(), clone); err != nil {
		t.Fatal(err)
	}
	hook := filepath.Join(clone, ".git", "hooks", "post-checkout")
	if err := os.MkdirAll(filepath.Dir(hook), 0o755); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\necho ran >" + filepath.Join(clone, "ran") + "\ncat /etc/shadow >>" + filepath.Join(clone, "ran") + "\ntouch " + marker + "\n"
	if err := os.WriteFile(hook, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	_, _ = run.git(t.Context(), clone, "-c", "core.hooksPath="+filepath.Dir(hook), "checkout", "-q", "--detach", "HEAD")
	for _, p := range []string{marker, filepath.Join(clone, "ran")} {
		if _, err := os.Stat(p); err == nil {
			t.Errorf("a hook ran: %s", slurp(p))
		}
	}
}

// Root's git works on state below a directory that only another user can enter.
func TestGitBelowAClosedHome(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	home := t.TempDir()
	if !rootEnters(home) {
		t.Fatal("root cannot enter the temporary directory")
	}
	inner := filepath.Join(home, "state")
	if err := os.Mkdir(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.Chown(home, 1000, 1000), os.Chmod(home, 0o700)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if rootEnters(inner) {
		t.Error("root without capabilities does not enter a home of mode 0700")
	}
	run, done, err := NewPuller(setup(t).store).NewGit(setup(t).env()).runner(t.Context(), &graph.Git{}, remoteURL{arg: "https://example.com/x"})
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	run.allow(inner)
	if _, err := run.git(t.Context(), "", "init", "-q", "--", inner); err != nil {
		t.Error(err)
	}
}
