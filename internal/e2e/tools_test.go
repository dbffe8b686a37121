package e2e

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// needTools skips a test where a program is not installed.
func needTools(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
}

// tool is a program with the arguments that each call begins with.
type tool []string

// run runs the tool and returns what it prints to the standard output.
func (c tool) run(t *testing.T, args ...string) string {
	t.Helper()
	args = slices.Concat(c, args)
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// daemon starts a program that listens at an address, waits until it does, and stops it when the test ends. One that ends
// before it listens cannot run on this machine.
func daemon(t *testing.T, network, address string, args ...string) {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	said := func() string {
		b, _ := os.ReadFile(log.Name())
		return string(b[max(0, len(b)-4096):])
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	})
	for until := time.Now().Add(deadline); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial(network, address); err == nil {
			c.Close()
			return
		}
		select {
		case <-ended:
			t.Skipf("%s does not run here: %v\n%s", args[0], cmd.ProcessState, said())
		default:
		}
		if time.Now().After(until) {
			t.Fatalf("%s does not listen at %s\n%s", args[0], address, said())
		}
	}
}

// shortTemp makes a directory whose path fits into a socket's address. What a daemon leaves mounted there is unmounted.
func shortTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "x")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var last error
		for until := time.Now().Add(deadline); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
			mounts, _ := os.ReadFile("/proc/self/mounts")
			for line := range strings.Lines(string(mounts)) {
				if at := strings.Fields(line)[1]; strings.HasPrefix(at, dir+"/") {
					_ = syscall.Unmount(at, syscall.MNT_DETACH)
				}
			}
			// A shim may still be about to go.
			if last = os.RemoveAll(dir); !errors.Is(last, syscall.EBUSY) && !errors.Is(last, syscall.ENOTEMPTY) {
				break
			}
		}
		if last != nil {
			t.Errorf("left behind: %v", last)
		}
	})
	return dir
}

// freeAddress is an address of the loopback interface at which nobody listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
