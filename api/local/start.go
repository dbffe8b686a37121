package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/sandbox/reexec"
)

// SocketPath is where the engine of a root listens. Paths of roots may be too long for a socket's name.
func SocketPath(root string) (string, error) {
	id, err := engine.RootID(root)
	return filepath.Join(engine.RunDir(), id+".sock"), err
}

// Listen makes the socket of a root whose owner this process is; a socket that a dead owner left is replaced.
func Listen(root string) (*net.UnixListener, error) {
	path, err := SocketPath(root)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return l, os.Chmod(path, 0o600)
}

// Executable identifies this program: another build of it has another value.
func Executable() string {
	path, err := reexec.Executable()
	if err != nil {
		return ""
	}
	st, err := os.Stat("/proc/self/exe") // path may lead to another program by now
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s %d %d", path, st.Size(), st.ModTime().UnixNano())
}

// Dial returns the engine that owns a root, whichever program serves it. Calls are diag.NotFound errors if there is none.
func Dial(root string) (*Client, error) {
	path, err := SocketPath(root)
	return &Client{root: root, path: path}, err
}

// Connect returns the engine that owns a root. A call for which there is none, or one that is about to end, starts one
// with this program and args. Args are those of a process that calls Ready. Say is told what a call waits for.
func Connect(root string, args []string, say func(string)) (*Client, error) {
	c, err := Dial(root)
	if err == nil {
		c.exe, c.args, c.say = Executable(), args, say
	}
	return c, err
}

// readiness is what a started engine's process says once: how it went.
type readiness struct{ Error *diag.Error }

// Ready tells the process that started this one, through descriptor 3, that the engine listens or why it does not.
func Ready(pipe *os.File, err error) {
	r := readiness{Error: diag.Flatten(err)}
	if r.Error != nil {
		r.Error.Err = nil
	}
	_ = json.NewEncoder(pipe).Encode(r) // nobody may be listening any more
	_ = pipe.Close()
}

// start starts an engine in the background and waits until it is ready.
func (c *Client) start(ctx context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		return diag.Errorf(diag.Exhausted, "the engine's process cannot be started: %w", err)
	}
	defer r.Close()
	log, err := openLog(c.root)
	if err != nil {
		return errors.Join(err, w.Close())
	}
	defer log.Close()
	before := c.logSize()
	cmd, started, err := reexec.Command(c.args...)
	if err != nil {
		return errors.Join(err, w.Close())
	}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	started()
	_ = w.Close()
	if err != nil {
		return diag.Errorf(diag.Internal, "the engine's process cannot be started: %w", err)
	}
	go func() { _ = cmd.Wait() }()
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	defer stop()
	said, err := io.ReadAll(r)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var ready readiness
	if err == nil {
		err = json.Unmarshal(said, &ready)
	}
	if err != nil {
		d := diag.Errorf(diag.Internal, "the engine's process ended before it was ready")
		d.Log = c.logTail(before)
		return d
	}
	if ready.Error != nil {
		return ready.Error
	}
	return nil
}
