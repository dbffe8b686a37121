package restrict

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

var programs = []string{"/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache"}

// sh runs a script with rights and returns what it printed.
func sh(t *testing.T, r *Rights, script string) (string, error) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Dir = "/"
	var out strings.Builder
	cmd.Stdout = &out
	if err := Start(cmd, r); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	return out.String(), err
}

// Every version of landlock keeps what it can keep, and lets through what was asked for.
func TestEveryABI(t *testing.T) {
	if ABI() == 0 {
		t.Skip("no landlock")
	}
	dir, other := t.TempDir(), t.TempDir()
	file := filepath.Join(other, "file")
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for abi := 1; abi <= ABI(); abi++ {
		r := &Rights{Programs: programs, Write: []string{dir}, abi: abi}
		if _, err := sh(t, r, "cd "+dir+" && echo a >a && mv a b && mkdir c && ln b c/b; rm -r b c"); err != nil {
			t.Errorf("%d: a directory that may be written cannot be: %v", abi, err)
		}
		for _, attack := range []string{"cat " + file, "echo >" + other + "/new", "rm " + file, "ls " + other, "ln " + file + " " + dir + "/link", "cp /bin/true " + dir + "/p && " + dir + "/p"} {
			if out, err := sh(t, r, attack); err == nil {
				t.Errorf("%d: %s works: %q", abi, attack, out)
			}
		}
		if out, err := sh(t, &Rights{Programs: programs, Read: []string{file}, abi: abi}, "cat "+file); out != "x" || err != nil {
			t.Errorf("%d: %q %v", abi, out, err)
		}
	}
}

// The rights of the engine stay, also if its main thread was the one that started the program.
func TestOtherThreadsKeepTheirRights(t *testing.T) {
	status := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for l := range strings.Lines(string(b)) {
			if strings.HasPrefix(l, "Cap") || strings.HasPrefix(l, "NoNewPrivs") || strings.HasPrefix(l, "Seccomp") {
				out = append(out, l)
			}
		}
		return strings.Join(out, "")
	}
	before := status("/proc/self/status")
	for range 50 {
		if _, err := sh(t, &Rights{Programs: programs}, "true"); err != nil {
			t.Fatal(err)
		}
	}
	if after := status("/proc/self/status"); after != before {
		t.Errorf("the main thread lost rights:\n%s\n%s", before, after)
	}
	done := make(chan string)
	for range 20 {
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			done <- status("/proc/thread-self/status")
		}()
	}
	for range 20 {
		if got := <-done; got != before {
			t.Fatalf("a thread lost rights:\n%s\n%s", before, got)
		}
	}
	if err := os.WriteFile(filepath.Join(t.TempDir(), "f"), nil, 0o644); err != nil {
		t.Error(err)
	}
}

// What the program is, as the kernel says.
func TestRights(t *testing.T) {
	out, err := sh(t, &Rights{Programs: programs, Read: []string{"/proc"}}, "cat /proc/self/status; ulimit -c; ulimit -n")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"NoNewPrivs:\t1", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapAmb:\t0000000000000000", "\n0\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	if _, err := os.Stat("/proc/sys/kernel/seccomp"); err == nil && !strings.Contains(out, "Seccomp:\t2") {
		t.Errorf("no filter: %s", out)
	}
	if os.Geteuid() != 0 {
		return
	}
	if !strings.Contains(out, "CapBnd:\t0000000000000000") {
		t.Errorf("the bounding set: %s", out)
	}
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.WriteFile(closed, []byte("x"), 0o400); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(closed, 1000, 1000); err != nil {
		t.Fatal(err)
	}
	for search, want := range map[bool]string{false: "", true: "x"} {
		if out, err := sh(t, &Rights{Programs: programs, Read: []string{closed}, Search: search}, "cat "+closed); out != want || (err == nil) != search {
			t.Errorf("%t: %q %v", search, out, err)
		}
	}
}

// Sockets of the machine's services cannot be used, unless they are needed.
func TestUnixSockets(t *testing.T) {
	if err := exec.Command("/usr/bin/perl", "-MSocket", "-e", "1").Run(); err != nil {
		t.Skip("needs perl")
	}
	for unixSockets, want := range map[bool]string{false: "Operation not permitted", true: "made"} {
		out, _ := sh(t, &Rights{Programs: programs, UnixSockets: unixSockets}, `LC_ALL=C perl -MSocket -e 'print socket(S, AF_UNIX, SOCK_STREAM, 0) ? "made" : "$!"'`)
		if out != want {
			t.Errorf("%t: %q", unixSockets, out)
		}
	}
	if out, err := sh(t, &Rights{Programs: programs}, `LC_ALL=C perl -MSocket -e 'socket(S, AF_INET, SOCK_STREAM, 0) or die "$!"'`); err != nil {
		t.Errorf("%v %s", err, out)
	}
}
