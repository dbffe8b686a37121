package buildkit

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/strata-build/strata/diag"
)

// passed is a socket as a service manager passes it.
func passed(t *testing.T, network, address, name string) PassedSocket {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return PassedSocket{file: f, name: name}
}

func TestPassedSockets(t *testing.T) {
	dir := t.TempDir()
	all := []PassedSocket{passed(t, "unix", filepath.Join(dir, "a"), "a"), passed(t, "unix", filepath.Join(dir, "b"), "b")}
	for which, want := range map[string][]string{"": {"a", "b"}, "a": {"a"}, "b": {"b"}, "4": {"b"}} {
		ends, err := ListenPassed(which, all, TLSFiles{})
		if err != nil || len(ends) != len(want) {
			t.Fatalf("fd://%s: %d %v", which, len(ends), err)
		}
		for i, e := range ends {
			if got := e.Addr().String(); got != filepath.Join(dir, want[i]) {
				t.Errorf("fd://%s: %s", which, got)
			}
			e.Close()
		}
		if _, err := os.Stat(filepath.Join(dir, "a")); err != nil {
			t.Errorf("the service manager's socket was removed: %v", err)
		}
	}
	if _, err := ListenPassed("c", all, TLSFiles{}); diag.KindOf(err) != diag.NotFound {
		t.Errorf("an unknown name: %v", err)
	}
	if _, err := ListenPassed("", nil, TLSFiles{}); diag.KindOf(err) != diag.NotFound {
		t.Errorf("nothing passed: %v", err)
	}
}

// A TCP socket that is passed is refused without certificates, as one that the daemon opens.
func TestPassedTCPWithoutCertificates(t *testing.T) {
	if _, err := ListenPassed("", []PassedSocket{passed(t, "tcp", "127.0.0.1:0", "")}, TLSFiles{}); diag.KindOf(err) != diag.Denied {
		t.Error(err)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := ListenPassed("", []PassedSocket{{file: f}}, TLSFiles{}); diag.KindOf(err) != diag.Invalid {
		t.Errorf("a file: %v", err)
	}
}

// Sockets of another process, and numbers that cannot be, are not taken.
func TestPassedToAnotherProcess(t *testing.T) {
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("LISTEN_PID", "1")
	if got, err := Passed(); got != nil || err != nil {
		t.Errorf("%v %v", got, err)
	}
	for _, n := range []string{"", "-1", "x", "65", "99999999999999999999"} {
		t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
		t.Setenv("LISTEN_FDS", n)
		if _, err := Passed(); diag.KindOf(err) != diag.Invalid {
			t.Errorf("%q: %v", n, err)
		}
	}
}
