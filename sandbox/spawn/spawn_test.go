//go:build linux && (amd64 || arm64)

package spawn

import (
	"errors"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestLayout(t *testing.T) {
	var o op
	for name, got := range map[string][2]uintptr{
		"op": {unsafe.Sizeof(o), 128}, "ok": {unsafe.Offsetof(o.ok), 56}, "known": {unsafe.Offsetof(o.known), 64}, "any": {unsafe.Offsetof(o.any), 112},
		"args": {unsafe.Sizeof(cloneArgs{}), 88}, "ops": {unsafe.Offsetof(state{}.ops), 16}, "errno": {unsafe.Offsetof(state{}.errno), 32},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %d, the assembly has %d", name, got[0], got[1])
		}
	}
}

// needed skips where there is nothing to test.
func needed(t *testing.T) {
	t.Helper()
	if !Available() {
		t.Skip("no clone3")
	}
}

// exitWith ends a program.
func exitWith(p *Program, code uintptr) { p.Call("exit", unix.SYS_EXIT_GROUP, code) }

// run starts a program on a thread of its own and returns its exit code.
func run(t *testing.T, p *Program, opt Options) (int, error) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid, err := p.Start(opt)
	if err != nil {
		return 0, err
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	return ws.ExitStatus(), nil
}

func TestForward(t *testing.T) {
	needed(t)
	p := &Program{}
	p.Call("fail at first", unix.SYS_CHDIR, p.String("/no/such")).On(unix.ENOTDIR, 9).On(unix.ENOENT, 2)
	exitWith(p, 1)
	p.Call("fail again", unix.SYS_CLOSE, ^uintptr(0)).OnAny(2)
	exitWith(p, 2)
	p.Call("succeed", unix.SYS_CHDIR, p.String("/")).OK(2)
	exitWith(p, 3)
	exitWith(p, 42)
	if code, err := run(t, p, Options{}); code != 42 || err != nil {
		t.Errorf("%d %v", code, err)
	}
}

func TestError(t *testing.T) {
	needed(t)
	p := &Program{}
	p.Call("go to the root", unix.SYS_CHDIR, p.String("/")).On(unix.EPERM, 1)
	p.Call("do the impossible", unix.SYS_CHDIR, p.String("/no/such")).On(unix.EACCES, 1)
	exitWith(p, 0)
	_, err := run(t, p, Options{})
	var e *Error
	if !errors.As(err, &e) || e.What != "do the impossible" || !errors.Is(err, unix.ENOENT) {
		t.Errorf("%v", err)
	}
	if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("a child is left: %v", err)
	}
	if _, err := (&Program{}).Start(Options{}); err == nil {
		t.Error("an empty program runs")
	}
}

// What the process inherits is what was asked for: a program, its environment, its output, no signal blocked.
func TestExec(t *testing.T) {
	needed(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := &Program{}
	var mask uint64
	p.Call("connect the output", unix.SYS_DUP3, w.Fd(), 1, 0)
	p.Call("let signals through", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, Value(p, &mask), 0, 8)
	p.Call("run", unix.SYS_EXECVE, p.String("/bin/sh"), p.Strings([]string{"sh", "-c", "echo $A; grep SigBlk /proc/self/status"}), p.Strings([]string{"A=b c", "PATH=/bin:/usr/bin"}))
	code, err := run(t, p, Options{})
	w.Close()
	buf := make([]byte, 100)
	n, _ := r.Read(buf)
	m, _ := r.Read(buf[n:])
	if want := "b c\nSigBlk:\t0000000000000000\n"; code != 0 || err != nil || string(buf[:n+m]) != want {
		t.Errorf("%d %v %q", code, err, buf[:n+m])
	}
}

// A builder that was started with nohup ignores SIGHUP; its steps do not.
func TestDefaultSignals(t *testing.T) {
	needed(t)
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGUSR2} {
		signal.Ignore(sig)
		defer signal.Reset(sig)
	}
	p := &Program{}
	p.DefaultSignals()
	p.Call("run", unix.SYS_EXECVE, p.String("/bin/sh"), p.Strings([]string{"sh", "-c", "exec grep -q 'SigIgn:.0000000000000000' /proc/self/status"}), p.Strings([]string{"PATH=/bin:/usr/bin"}))
	if code, err := run(t, p, Options{}); code != 0 || err != nil {
		t.Errorf("signals are ignored: %d %v", code, err)
	}
}

func TestPIDFD(t *testing.T) {
	needed(t)
	p := &Program{}
	p.Call("run", unix.SYS_EXECVE, p.String("/bin/sleep"), p.Strings([]string{"sleep", "100"}), p.Strings(nil))
	var fd atomic.Int32
	fd.Store(-1)
	pid, err := p.Start(Options{PIDFD: &fd})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(int(fd.Load()))
	if err := unix.PidfdSendSignal(int(fd.Load()), unix.SIGKILL, nil, 0); err != nil {
		t.Error(err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil || ws.Signal() != syscall.SIGKILL {
		t.Errorf("%v %v", err, ws)
	}
}

// Programs start in many threads while others allocate and collect.
func TestMany(t *testing.T) {
	needed(t)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		go func() {
			for {
				select {
				case <-stop:
					return
				default:
					runtime.GC()
				}
			}
		}()
	}
	for range 8 {
		wg.Go(func() {
			for i := range 50 {
				p := &Program{}
				for j := range 20 {
					p.Call("go somewhere", unix.SYS_CHDIR, p.String("/nowhere/"+string(rune('a'+j)))).On(unix.ENOENT, 1)
				}
				if i%2 == 0 {
					exitWith(p, 7)
				} else {
					p.Call("run", unix.SYS_EXECVE, p.String("/bin/sh"), p.Strings([]string{"sh", "-c", "exit 7"}), p.Strings(nil))
				}
				if code, err := run(t, p, Options{}); code != 7 || err != nil {
					t.Errorf("%d %v", code, err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
}
