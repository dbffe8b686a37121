package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// environ is what builders see: nothing of the user's own settings.
func environ(home string) []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + home, "TMPDIR=" + home, "DOCKER_BUILDKIT=0", "LC_ALL=C"}
}

// call runs a command to its end. What it printed is part of the error.
func (w *world) call(args ...string) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(w.ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &out, environ(w.disk.path("home"))
	cmd.Dir = w.disk.dir
	err := cmd.Run()
	if w.verbose {
		fmt.Fprintf(os.Stderr, "$ %s\n%s", strings.Join(args, " "), out.String())
	}
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, tail(out.String(), 2000))
	}
	return nil
}

// time runs a command and returns how long that took.
func (w *world) time(args ...string) (time.Duration, error) {
	w.disk.settle()
	start := time.Now()
	err := w.call(args...)
	return time.Since(start), err
}

func tail(s string, n int) string {
	if len(s) > n {
		s = "…" + s[len(s)-n:]
	}
	return s
}

// daemon is a server that bench started.
type daemon struct {
	cmd   *exec.Cmd
	log   *bytes.Buffer
	ended chan struct{}
	err   error
}

// listening reports whether a socket takes connections.
func listening(network, address string) func() bool {
	return func() bool {
		c, err := net.Dial(network, address)
		if err == nil {
			_ = c.Close() // nothing was written
		}
		return err == nil
	}
}

// startDaemon starts a server and waits until it is ready.
func (w *world) startDaemon(ready func() bool, args ...string) (*daemon, error) {
	d := &daemon{cmd: exec.Command(args[0], args[1:]...), log: &bytes.Buffer{}, ended: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr, d.cmd.Env, d.cmd.Dir = d.log, d.log, environ(w.disk.path("home")), w.disk.dir
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is for bench, which stops it
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.ended)
	}()
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	for !ready() {
		select {
		case <-d.ended:
			return nil, fmt.Errorf("%s ended: %w\n%s", args[0], d.err, tail(d.log.String(), 2000))
		case <-ctx.Done():
			d.stop()
			return nil, fmt.Errorf("%s does not begin to serve\n%s", args[0], tail(d.log.String(), 2000))
		case <-time.After(20 * time.Millisecond):
		}
	}
	return d, nil
}

// stop ends the server, with force if it does not go.
func (d *daemon) stop() {
	if d == nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may be gone already
	select {
	case <-d.ended:
	case <-time.After(30 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.ended
	}
}

// wipe removes a directory of a builder's state, with what is still mounted in it.
func wipe(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	lines := strings.Split(string(mounts), "\n")
	for i := len(lines) - 1; i >= 0; i-- { // the last one mounted first
		if f := strings.Fields(lines[i]); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			if err := unix.Unmount(f[1], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("umount %s: %w", f[1], err)
			}
		}
	}
	return os.RemoveAll(dir)
}
