package buildkit

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/session/remote"
)

// DefaultAddress is where BuildKit's clients look.
const DefaultAddress = "unix:///run/buildkit/buildkitd.sock"

// TLSFiles name the files of mutual TLS: the server's certificate and key, and the authority of its clients.
type TLSFiles struct{ Cert, Key, CA string }

// Endpoint is a socket that is listened on.
type Endpoint struct {
	net.Listener
	tls *tls.Config // nil for a Unix socket
}

// Listen opens unix://PATH or tcp://HOST:PORT. A Unix socket belongs to a group, "" being the process's, and can be used by
// it and the owner; a stale one is replaced. TCP needs TLS with certificates of the clients.
func Listen(address, group string, files TLSFiles) (*Endpoint, error) {
	scheme, rest, ok := strings.Cut(address, "://")
	switch {
	case ok && scheme == "unix":
		l, err := listenUnix(rest, group)
		return &Endpoint{Listener: l}, err
	case ok && scheme == "tcp":
		conf, err := files.load()
		if err != nil {
			return nil, err
		}
		l, err := net.Listen("tcp", rest)
		if err != nil {
			return nil, diag.Errorf(diag.Unavailable, "%s: %w", address, err)
		}
		return &Endpoint{Listener: l, tls: conf}, nil
	}
	return nil, diag.Errorf(diag.Invalid, "%q is no address: it must be unix://PATH, tcp://HOST:PORT or fd://NAME", address)
}

func (f TLSFiles) load() (*tls.Config, error) {
	if f.Cert == "" || f.Key == "" || f.CA == "" {
		return nil, diag.Errorf(diag.Denied, "TCP is refused without certificates on both sides").
			WithHint("give --tlscert, --tlskey and --tlscacert, or use a unix:// address")
	}
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "the server's certificate: %w", err)
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, diag.Errorf(diag.NotFound, "the authority of the clients: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, diag.Errorf(diag.Invalid, "%s holds no certificate", f.CA)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
	}, nil
}

func listenUnix(path, group string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, diag.Errorf(diag.Denied, "the socket's directory: %w", err)
	}
	if err := replaceable(path); err != nil {
		return nil, err
	}
	if k, err := net.Dial("unix", path); err == nil {
		_ = k.Close()
		return nil, diag.Errorf(diag.Conflict, "another daemon serves %s", path)
	} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
		return nil, diag.Errorf(diag.Conflict, "%s is in the way: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	old := unix.Umask(0o777) // nobody connects before the mode is right
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, diag.Errorf(diag.Unavailable, "%s: %w", path, err)
	}
	gid := os.Getegid()
	if group != "" {
		if gid, err = groupID(group); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	if err := errors.Join(os.Chown(path, os.Geteuid(), gid), os.Chmod(path, 0o660)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// replaceable refuses a place for a socket where something else is, which would be removed, and directories in which other users
// could put a link in the socket's place while its owner is set.
func replaceable(path string) error {
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() != fs.ModeSocket {
		return diag.Errorf(diag.Conflict, "%s is in the way: it is not a socket", path)
	}
	dir := filepath.Dir(path)
	st, err := os.Stat(dir)
	if err != nil {
		return diag.Errorf(diag.Denied, "the socket's directory: %w", err)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || st.Mode().Perm()&0o022 != 0 && st.Mode()&fs.ModeSticky == 0 || sys.Uid != 0 && int(sys.Uid) != os.Geteuid() {
		return diag.Errorf(diag.Denied, "other users can change the socket's directory %s", dir).
			WithHint("choose a directory of the daemon's user, and take the right to write from others: chmod go-w %s", dir)
	}
	return nil
}

func groupID(name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, diag.Errorf(diag.NotFound, "group %q: %w", name, err)
	}
	return strconv.Atoi(g.Gid)
}

// credentials are the transport's own, without the identity.
func (e *Endpoint) credentials() credentials.TransportCredentials {
	if e.tls != nil {
		return credentials.NewTLS(e.tls)
	}
	return insecure.NewCredentials()
}

// identify is the transport of one connection whose server knows who connects: the connection has a number, and an identity that
// the kernel or a certificate vouches for.
type identify struct {
	base    credentials.TransportCredentials
	s       *Server
	link    *link
	greeted func()
}

// ClientHandshake implements credentials.TransportCredentials.
func (i identify) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return i.base.ClientHandshake(ctx, authority, raw)
}

// Info implements credentials.TransportCredentials.
func (i identify) Info() credentials.ProtocolInfo { return i.base.Info() }

// Clone implements credentials.TransportCredentials.
func (i identify) Clone() credentials.TransportCredentials {
	i.base = i.base.Clone()
	return i
}

// OverrideServerName implements credentials.TransportCredentials.
func (i identify) OverrideServerName(string) error { return nil }

// ServerHandshake implements credentials.TransportCredentials.
func (i identify) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	defer i.greeted()
	conn, info, err := i.base.ServerHandshake(raw)
	if err != nil {
		return conn, info, err
	}
	who := authInfo{AuthInfo: info, Peer: remote.Peer{Conn: strconv.FormatInt(i.s.conns.Add(1), 10)}, link: i.link}
	if t, ok := info.(credentials.TLSInfo); ok && len(t.State.PeerCertificates) > 0 {
		who.Identity = certificateIdentity(t.State.PeerCertificates[0])
	}
	if one, ok := raw.(solo); ok {
		raw = one.Conn
	}
	if u, ok := raw.(*net.UnixConn); ok {
		uid, err := uidOf(u)
		if err != nil {
			return nil, nil, errors.Join(err, raw.Close())
		}
		who.Identity = userIdentity(uid)
	}
	counted, err := i.s.quota.connect(conn, who.Identity)
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	i.s.quota.memory.open(i.link, who.Identity)
	return newWire(counted, i.link, asServer), who, nil
}

// certificateIdentity is the identity of who has a certificate: whom the authority says it is, or, where it does not say, whose
// key it is.
func certificateIdentity(c *x509.Certificate) string {
	if len(c.Subject.Names) == 0 {
		return fmt.Sprintf("certificate of key %x", sha256.Sum256(c.RawSubjectPublicKeyInfo))
	}
	return "certificate " + c.Subject.String() + " of " + c.Issuer.String()
}

func uidOf(u *net.UnixConn) (uid uint32, err error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(cerr, err); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// authInfo is who is at the other end.
type authInfo struct {
	credentials.AuthInfo
	remote.Peer
	link *link
}

// linkOf is what the messages of the call's connection count for; nil for a call that did not come through an endpoint.
func linkOf(ctx context.Context) *link {
	if p, ok := peer.FromContext(ctx); ok {
		if a, ok := p.AuthInfo.(authInfo); ok {
			return a.link
		}
	}
	return nil
}

func peerOf(ctx context.Context) remote.Peer {
	if p, ok := peer.FromContext(ctx); ok {
		if a, ok := p.AuthInfo.(authInfo); ok {
			return a.Peer
		}
	}
	return remote.Peer{}
}

// Limits of connections whose client has not said yet who it is: of all of an endpoint, and of one address.
const (
	maxGreetings        = 1000
	maxAddressGreetings = 50
)

// greetings counts connections until their clients have said who they are, which nobody makes them do before [greetPatience].
type greetings struct {
	mu   sync.Mutex
	all  int
	from map[string]int // by host; users of a Unix socket are known at once and are not counted
}

func newGreetings() *greetings { return &greetings{from: map[string]int{}} }

// begin counts a connection, unless there are too many. end may be called several times.
func (g *greetings) begin(from net.Addr) (end func(), ok bool) {
	tcp, ok := from.(*net.TCPAddr)
	if !ok {
		return func() {}, true
	}
	host := tcp.IP.String()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all >= maxGreetings || g.from[host] >= maxAddressGreetings {
		return nil, false
	}
	g.all++
	g.from[host]++
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.all--
		if g.from[host]--; g.from[host] == 0 {
			delete(g.from, host)
		}
	}), true
}

// isTemporary reports whether the next connection may be accepted although this one could not.
func isTemporary(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED, unix.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
