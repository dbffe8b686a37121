package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/strata-build/strata/diag"
)

// SocketPath is where the engine of a root listens. Paths of roots may be too long for a socket's name.
func SocketPath(root string) (string, error) {
	abs, err := filepath.Abs(root)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	}
	dir := "/run/strata"
	if os.Geteuid() != 0 {
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("strata-%d", os.Geteuid()))
	}
	sum := sha256.Sum256([]byte(abs))
	return filepath.Join(dir, hex.EncodeToString(sum[:8])+".sock"), nil
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
	path, err := os.Executable()
	if err != nil {
		return ""
	}
	st, err := os.Stat(path)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s %d %d", path, st.Size(), st.ModTime().UnixNano())
}

// Dial returns the engine that owns a root, if there is one that listens.
func Dial(ctx context.Context, root string) (*Client, error) {
	path, err := SocketPath(root)
	if err != nil {
		return nil, err
	}
	c := &Client{path: path, exe: Executable()}
	if _, err := os.Stat(path); err != nil {
		return nil, diag.Errorf(diag.NotFound, "no engine serves %s", root)
	}
	u, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, diag.Errorf(diag.NotFound, "no engine serves %s: %w", root, err)
	}
	return c, u.Close()
}

// Ready is what a started engine's process writes to the pipe that it was given: nothing but its end if all is well.
type Ready struct{ Error *diag.Error }

// Start starts an engine for a root in the background, with this program and args, and waits until it listens. The process
// writes Ready to its descriptor 3.
func Start(ctx context.Context, root string, args []string) (*Client, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	log, err := logFile(root)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	defer log.Close()
	cmd := exec.Command(exe, args...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return nil, diag.Errorf(diag.Internal, "the engine's process cannot be started: %w", err)
	}
	go func() { _ = cmd.Wait() }()
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	defer stop()
	said, err := io.ReadAll(r)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var ready Ready
	if err == nil {
		err = json.Unmarshal(said, &ready)
	}
	if err != nil {
		return nil, diag.Errorf(diag.Internal, "the engine's process ended before it was ready")
	}
	if ready.Error != nil {
		return nil, ready.Error
	}
	return Dial(ctx, root)
}

// logFile is where an engine's process in the background writes what goes wrong.
func logFile(root string) (*os.File, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, diag.Errorf(diag.Unavailable, "the state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(root, "daemon.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, diag.Errorf(diag.Unavailable, "the engine's log: %w", err)
	}
	return f, nil
}
