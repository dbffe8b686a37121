package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/strictjson"
)

// runc drives the command line of an OCI runtime.
type runc struct {
	path    string
	name    string // "runc", "crun"
	version string
	state   string // where the runtime keeps its containers
	keep    bool   // it has "run --keep"
}

// container is one run of the runtime.
type container struct {
	bundle  *bundle
	cgroup  string
	cgroups *cgroups
	spec    *Spec
	started chan struct{} // closed when the runtime's process is there
	log     string        // file of the runtime's messages
	pidFile string        // where the runtime tells the process's id; "" = it does not
}

var versionLine = regexp.MustCompile(`^(\S+) version (\d+(?:\.\d+)*\S*)`)

// findRunc looks a runtime up and asks it for its version.
func findRunc(binary, state string) (*runc, error) {
	path, err := exec.LookPath(binary)
	if err != nil {
		return nil, diag.Errorf(diag.Unsupported, "build steps need a container runtime, and %s is not installed", binary).WithHint("apt-get install runc")
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	out, err := exec.Command(path, "--version").Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return nil, diag.Errorf(diag.Unsupported, "the container runtime cannot be started: %w", err).WithHint("apt-get install runc")
	}
	m := versionLine.FindSubmatch(out)
	if err != nil || m == nil {
		return nil, diag.Errorf(diag.Unsupported, "%s is no container runtime that can be used: it does not tell its version", path).WithHint("apt-get install runc")
	}
	r := &runc{path: path, name: string(m[1]), version: string(m[2]), state: state}
	r.keep = r.name == "runc" && !r.before(1, 1, 0)
	return r, nil
}

// before compares the version with another.
func (r *runc) before(want ...int) bool {
	for i, part := range strings.SplitN(r.version, ".", 3) {
		n, _ := strconv.Atoi(part[:len(part)-len(strings.TrimLeft(part, "0123456789"))])
		if i >= len(want) || n != want[i] {
			return i < len(want) && n < want[i]
		}
	}
	return false
}

// old reports whether this version of runc was made before the fixes for CVE-2025-31133, -52565 and -52881. Versions do not tell
// what a distribution has fixed in an older one.
func (r *runc) old() bool {
	return r.name == "runc" && (r.before(1, 2, 8) || !r.before(1, 3, 0) && r.before(1, 3, 3))
}

// run runs the container in the bundle. The runtime is told to keep it: its state is two directories and is removed here, which is
// cheaper than another process, and the control group can be asked about memory before it goes.
func (r *runc) run(ctx context.Context, c *container) (*Exit, error) {
	args := []string{"run", "--bundle", c.bundle.dir}
	if r.keep {
		args = append(args, "--keep")
	}
	cmd := r.command(c, args...)
	finish, err := c.attach(cmd)
	if err != nil {
		return nil, err
	}
	err = r.wait(ctx, cmd, c)
	finish()
	oom := c.cgroups.oomKilled(c.cgroup)
	gone := c.cgroups.remove(c.cgroup)
	if rerr := os.RemoveAll(filepath.Join(r.state, c.bundle.id)); gone == nil {
		gone = rerr
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if gone != nil {
		return nil, diag.Errorf(diag.Internal, "cannot clean up after the step: %w", gone)
	}
	return c.result(err, oom)
}

// command is the runtime's command line with what is always given.
func (r *runc) command(c *container, args ...string) *exec.Cmd {
	args = append([]string{"--root", r.state, "--log", c.log, "--log-format", "json"}, args...)
	if c.pidFile != "" {
		args = append(args, "--pid-file", c.pidFile)
	}
	cmd := exec.Command(r.path, append(args, c.bundle.id)...)
	cmd.Dir = c.bundle.dir
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 30 * time.Second // a descriptor of the output that got out of the container does not hold the build up
	return cmd
}

// wait starts the runtime and waits for its end. When ctx ends it kills the container's processes, and the runtime if that is
// not enough: it may not have made the container yet.
func (r *runc) wait(ctx context.Context, cmd *exec.Cmd, c *container) error {
	started, done := make(chan error), make(chan error, 1)
	go func() {
		// The death signal of the child is bound to the thread that starts it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			done <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	close(c.started)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		c.cgroups.kill(c.cgroup)
		if pause > 8*time.Millisecond {
			unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		}
		select {
		case err := <-done:
			c.cgroups.kill(c.cgroup)
			return err
		case <-time.After(pause):
		}
	}
}

// result reads how the runtime ended: its exit code is the command's, unless it says in its log that it failed.
func (c *container) result(err error, oom bool) (*Exit, error) {
	var exit *exec.ExitError
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return &Exit{}, nil
	}
	if !errors.As(err, &exit) {
		return nil, diag.Errorf(diag.Unavailable, "cannot run the container runtime: %w", err)
	}
	code := exit.ExitCode()
	if code < 0 { // the runtime itself was killed
		return nil, diag.Errorf(diag.Unavailable, "the container runtime ended early: %s", exit)
	}
	if msg := lastError(c.log); msg != "" {
		return nil, c.startError(msg)
	}
	e := &Exit{Code: code, OOMKilled: oom}
	if code > 128 && code <= 128+64 {
		e.Signal = syscall.Signal(code - 128)
	}
	return e, nil
}

// lastError returns the last message of level error in a runtime's log, or "".
func lastError(name string) string {
	data, _ := os.ReadFile(name)
	last := ""
	for line := range bytes.Lines(data) {
		var entry struct{ Level, Msg string }
		if strictjson.Unmarshal(line, &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			last = entry.Msg
		}
	}
	return last
}

// notStarted is the exit code that shells and Docker have for a command that cannot be run: 127 if there is none, else 126.
type notStarted int

func (n notStarted) Error() string { return fmt.Sprintf("the command was not started (%d)", int(n)) }

// StartCode returns the exit code of shells for a command that could not be run; ok is false if err says nothing of that kind.
func StartCode(err error) (code int, ok bool) {
	n, ok := errors.AsType[notStarted](err)
	return int(n), ok
}

// startError explains why a container did not start.
func (c *container) startError(msg string) error {
	for _, prefix := range []string{"runc run failed: ", "exec failed: ", "unable to start container process: "} {
		msg = strings.TrimPrefix(msg, prefix)
	}
	name := c.spec.Args[0]
	switch {
	case strings.Contains(msg, "executable file not found"), strings.Contains(msg, "exec") && strings.Contains(msg, "no such file or directory") && strings.Contains(msg, name):
		err := &diag.Error{Kind: diag.Failed, Msg: fmt.Sprintf("cannot run %q: there is no such program in the image", name), Err: notStarted(127)}
		if strings.HasPrefix(name, "/bin/") && strings.HasSuffix(name, "sh") {
			return err.WithHint("the image has no shell; use the exec form, RUN [\"program\", \"argument\"]")
		}
		return err.WithHint("look at PATH, and whether the program's interpreter or loader is there")
	case strings.Contains(msg, "exec") && strings.Contains(msg, "permission denied"):
		err := &diag.Error{Kind: diag.Failed, Msg: fmt.Sprintf("cannot run %q: permission denied", name), Err: notStarted(126)}
		return err.WithHint("the file must be executable for the step's user")
	case strings.Contains(msg, "exec format error"):
		err := &diag.Error{Kind: diag.Failed, Msg: fmt.Sprintf("cannot run %q: exec format error", name), Err: notStarted(126)}
		return err.WithHint("the image may be for another processor than this machine's; a script needs a first line such as #!/bin/sh")
	}
	return diag.Errorf(diag.Unavailable, "cannot start the step: %s", msg)
}

// attach connects the command's input and output. The function that it returns ends what it began.
func (c *container) attach(cmd *exec.Cmd) (finish func(), err error) {
	spec := c.spec
	if spec.TTY {
		return c.attachTTY(cmd)
	}
	cmd.Stdout, cmd.Stderr = spec.Stdout, spec.Stderr
	if spec.Stdin == nil {
		return func() {}, nil
	}
	if f, ok := spec.Stdin.(*os.File); ok {
		cmd.Stdin = f
		return func() {}, nil
	}
	// The reader may block for ever, so that nobody waits for the copy.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdin = r
	go func() {
		io.Copy(w, spec.Stdin)
		w.Close()
	}()
	return func() { r.Close() }, nil
}

// attachTTY gives the runtime a terminal; it makes another one in the container and passes on what happens on its own.
func (c *container) attachTTY(cmd *exec.Cmd) (func(), error) {
	spec := c.spec
	ours, theirs, err := pty.Open()
	if err != nil {
		return nil, diag.Errorf(diag.Unavailable, "cannot open a terminal: %w", err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = false, true, true
	if spec.Stdin != nil {
		go io.Copy(ours, spec.Stdin)
	}
	out := spec.Stdout
	if out == nil {
		out = io.Discard
	}
	copied, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(copied)
		io.Copy(out, ours) // ends with EIO when the other side is closed
	}()
	go func() {
		for {
			select {
			case size := <-spec.Resize:
				pty.Setsize(ours, &pty.Winsize{Rows: size.Rows, Cols: size.Cols})
			case <-done:
				return
			}
			select {
			case <-c.started:
				cmd.Process.Signal(syscall.SIGWINCH)
			case <-done:
				return
			}
		}
	}()
	return func() {
		theirs.Close()
		<-copied
		close(done)
		ours.Close()
	}, nil
}
