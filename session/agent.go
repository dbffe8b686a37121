package session

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"slices"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/strata-build/strata/diag"
)

// maxKey is the size of the largest private key file, in bytes.
const maxKey = 100 << 10

// agentSource is where an agent's keys are: behind a socket, or in memory.
type agentSource struct {
	socket string
	keys   agent.Agent
}

// newAgentSource tells a socket from key files by the first path's type.
func newAgentSource(id string, paths []string) (agentSource, error) {
	if len(paths) == 0 {
		sock := os.Getenv("SSH_AUTH_SOCK")
		if sock == "" {
			return agentSource{}, diag.Errorf(diag.NotFound, "ssh agent %q: SSH_AUTH_SOCK is not set", id).
				WithHint("start an agent (eval $(ssh-agent); ssh-add), or give a key: --ssh %s=$HOME/.ssh/id_ed25519", id)
		}
		return agentSource{socket: sock}, nil
	}
	keys := agent.NewKeyring()
	for i, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			return agentSource{}, fileError(err, "ssh agent %q", id)
		}
		if st.Mode().Type() == os.ModeSocket {
			if len(paths) > 1 {
				return agentSource{}, diag.Errorf(diag.Invalid, "ssh agent %q: %s is a socket: it must be the only path", id, paths[i])
			}
			return agentSource{socket: p}, nil
		}
		if err := addKey(keys, id, p); err != nil {
			return agentSource{}, err
		}
	}
	return agentSource{keys: keys}, nil
}

func addKey(keys agent.Agent, id, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fileError(err, "ssh agent %q", id)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKey+1))
	if err != nil {
		return fileError(err, "ssh agent %q", id)
	}
	if len(b) > maxKey {
		return diag.Errorf(diag.Invalid, "ssh agent %q: %s is too large for a private key", id, path)
	}
	key, err := ssh.ParseRawPrivateKey(bytes.TrimSpace(b))
	if _, ok := errors.AsType[*ssh.PassphraseMissingError](err); ok {
		return diag.Errorf(diag.Denied, "ssh agent %q: the key %s has a passphrase", id, path).
			WithHint("add it to an agent with ssh-add, and give the agent: --ssh %s", id)
	}
	if err != nil {
		return diag.Errorf(diag.Invalid, "ssh agent %q: %s is neither a socket nor a private key: %w", id, path, err)
	}
	if err := keys.Add(agent.AddedKey{PrivateKey: key, Comment: path}); err != nil {
		return diag.Errorf(diag.Invalid, "ssh agent %q: %s: %w", id, path, err)
	}
	return nil
}

// SSH opens a connection to an agent that can list its keys and sign with them, and nothing else: a build must not be
// able to add to, remove from or lock the agent of its user. The connection ends with ctx or when it is closed.
func (l *Local) SSH(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	if id == "" {
		id = "default"
	}
	src, ok := l.agents[id]
	if !ok {
		return nil, missing("ssh agent", id, slices.Sorted(maps.Keys(l.agents)), "--ssh "+id)
	}
	keys, up := src.keys, io.Closer(nil)
	if src.socket != "" {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", src.socket)
		if err != nil {
			return nil, diag.Errorf(diag.Unavailable, "ssh agent %q: %w", id, err).WithHint("is the agent at %s running?", src.socket)
		}
		keys, up = agent.NewClient(conn), conn
	}
	client, server := net.Pipe()
	stop := context.AfterFunc(ctx, func() { server.Close() })
	go func() {
		defer stop()
		defer server.Close()
		if up != nil {
			defer up.Close()
		}
		// It ends with EOF when the client closes; there is nobody to tell of any other end.
		_ = agent.ServeAgent(signOnly{keys}, server)
	}()
	return client, nil
}

var errSignOnly = errors.New("the agent of a build only lists keys and signs")

// signOnly refuses everything that changes an agent.
type signOnly struct{ agent.Agent }

func (signOnly) Add(agent.AddedKey) error   { return errSignOnly }
func (signOnly) Remove(ssh.PublicKey) error { return errSignOnly }
func (signOnly) RemoveAll() error           { return errSignOnly }
func (signOnly) Lock([]byte) error          { return errSignOnly }
func (signOnly) Unlock([]byte) error        { return errSignOnly }

// SignWithFlags passes the wanted hash on (rsa-sha2-256 and -512), which most servers insist on.
func (s signOnly) SignWithFlags(key ssh.PublicKey, data []byte, flags agent.SignatureFlags) (*ssh.Signature, error) {
	if x, ok := s.Agent.(agent.ExtendedAgent); ok {
		return x.SignWithFlags(key, data, flags)
	}
	return s.Sign(key, data)
}

// Extension supports none.
func (signOnly) Extension(string, []byte) ([]byte, error) { return nil, agent.ErrExtensionUnsupported }
