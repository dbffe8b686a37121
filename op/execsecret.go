package op

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// secret asks the client for a secret; ok is false if there is none and the step can do without.
func (s *execStep) secret(ctx context.Context, id string, optional bool) (data []byte, ok bool, err error) {
	err = diag.Errorf(diag.NotFound, "secret %q: the build has no client that could give it", id)
	if s.env.Session != nil {
		data, err = s.env.Session.Secret(ctx, id)
	}
	switch {
	case err == nil:
		return data, true, nil
	case diag.KindOf(err) != diag.NotFound:
		return nil, false, err
	case optional:
		s.absent = append(s.absent, id)
		return nil, false, nil
	case diag.Flatten(err).Hint == "": // a client that only says no
		err = diag.Errorf(diag.NotFound, "the step needs the secret %q: %w", id, err).WithHint("give it with --secret id=%s,src=FILE", id)
	}
	return nil, false, err
}

// secretVars returns the variables that are secrets.
func (s *execStep) secretVars(ctx context.Context, want []graph.SecretEnv) ([]string, error) {
	var env []string
	for _, e := range want {
		data, ok, err := s.secret(ctx, e.ID, e.Optional)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if strings.ContainsRune(string(data), 0) {
			return nil, diag.Errorf(diag.Invalid, "the secret %q has a zero byte and cannot be a variable", e.ID).WithHint("mount it as a file")
		}
		env = append(env, e.Name+"="+string(data))
	}
	return env, nil
}

// agent makes a socket that leads to the client's ssh agent, and returns its path; "" if there is no agent and the step
// can do without.
func (s *execStep) agent(ctx context.Context, m graph.Mount) (string, error) {
	err := error(diag.Errorf(diag.NotFound, "no client"))
	if s.env.Session != nil {
		var conn io.Closer
		if conn, err = s.env.Session.SSH(ctx, m.ID); err == nil {
			conn.Close()
		}
	}
	if err != nil {
		if diag.KindOf(err) != diag.NotFound {
			return "", err
		}
		if m.Optional {
			return "", nil
		}
		id := m.ID
		if id == "" {
			id = "default"
		}
		return "", diag.Errorf(diag.NotFound, "no SSH key %q forwarded from the client: %w", id, err).WithHint("give it with --ssh %s", id)
	}
	dir, err := s.tempDir()
	if err != nil {
		return "", err
	}
	l, err := listenIn(dir)
	if err != nil {
		return "", diag.Errorf(diag.Unavailable, "cannot make a socket for the ssh agent: %w", err)
	}
	f := &agentForward{dial: func() (io.ReadWriteCloser, error) { return s.env.Session.SSH(ctx, m.ID) }, listener: l, conns: map[io.Closer]bool{}}
	f.wg.Go(f.serve)
	s.later(f.close)
	mode := m.Mode & 0o777
	if mode == 0 {
		mode = 0o600
	}
	socket := filepath.Join(dir, socketName)
	if err := os.Chown(socket, m.UID, m.GID); err != nil {
		return "", err
	}
	return socket, unix.Chmod(socket, mode)
}

const socketName = "agent"

// listenIn listens on a socket in a directory whose path may be longer than the 107 bytes that an address can have.
func listenIn(dir string) (*net.UnixListener, error) {
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), socketName)})
	if err == nil {
		l.SetUnlinkOnClose(false) // by then the name leads elsewhere
	}
	return l, err
}

// agentForward connects each client of a socket with the ssh agent.
type agentForward struct {
	dial     func() (io.ReadWriteCloser, error)
	listener *net.UnixListener
	wg       sync.WaitGroup

	mu     sync.Mutex
	conns  map[io.Closer]bool
	closed bool
}

func (f *agentForward) serve() {
	for {
		client, err := f.listener.AcceptUnix()
		if err != nil {
			return
		}
		f.wg.Go(func() { f.forward(client) })
	}
}

func (f *agentForward) forward(client *net.UnixConn) {
	if !f.track(client) {
		return
	}
	defer f.done(client)
	agent, err := f.dial()
	if err != nil || !f.track(agent) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { io.Copy(agent, client); f.done(agent) }) // the agent's protocol has no half-closed connections
	both.Go(func() { io.Copy(client, agent); f.done(client) })
	both.Wait()
}

// track keeps a connection for close; it closes one that comes too late.
func (f *agentForward) track(c io.Closer) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		c.Close()
		return false
	}
	f.conns[c] = true
	return true
}

func (f *agentForward) done(c io.Closer) {
	f.mu.Lock()
	delete(f.conns, c)
	f.mu.Unlock()
	c.Close()
}

// close ends all connections and waits for them.
func (f *agentForward) close() error {
	f.listener.Close()
	f.mu.Lock()
	f.closed = true
	for c := range f.conns {
		c.Close()
	}
	f.mu.Unlock()
	f.wg.Wait()
	return nil
}
