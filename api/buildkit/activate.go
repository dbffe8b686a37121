package buildkit

import (
	"errors"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// firstPassed is the number of the first descriptor that a service manager passes. Source: sd_listen_fds(3).
const firstPassed = 3

// maxPassed bounds the sockets that are passed.
const maxPassed = 64

// Passed are the sockets that the service manager has opened and passed to this process, by their names (sd_listen_fds(3)). They are
// for one caller: the environment that tells of them is removed, and programs that are started do not get them.
func Passed() ([]PassedSocket, error) {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	if pid != strconv.Itoa(os.Getpid()) { // nothing, or for another process
		return nil, nil
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > maxPassed {
		return nil, diag.Errorf(diag.Invalid, "the service manager passes %q sockets (LISTEN_FDS): it must be a number up to %d", count, maxPassed)
	}
	byIndex := strings.Split(names, ":")
	out := make([]PassedSocket, n)
	for i := range out {
		fd := firstPassed + i
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return nil, diag.Errorf(diag.Invalid, "the service manager passes descriptor %d, which is not open: %w", fd, err)
		}
		out[i].file = os.NewFile(uintptr(fd), "LISTEN_FD_"+strconv.Itoa(fd))
		if i < len(byIndex) && byIndex[i] != "unknown" {
			out[i].name = byIndex[i]
		}
	}
	return out, nil
}

// PassedSocket is a socket that the service manager has opened.
type PassedSocket struct {
	file *os.File
	name string // FileDescriptorName= of the socket's unit; "" = unknown
}

// ListenPassed serves the passed sockets that fd://WHICH names: those of a name, the one of a descriptor's number, or all if WHICH
// is empty. TCP needs certificates, as in Listen; whoever can open a Unix socket may use the daemon, as its unit says.
func ListenPassed(which string, passed []PassedSocket, files TLSFiles) ([]*Endpoint, error) {
	if len(passed) == 0 {
		return nil, diag.Errorf(diag.NotFound, "fd://%s: no sockets were passed to this process", which).
			WithHint("start the service by its socket: systemctl start strata.socket")
	}
	var out []*Endpoint
	for i, p := range passed {
		if which != "" && which != p.name && which != strconv.Itoa(firstPassed+i) {
			continue
		}
		e, err := p.endpoint(files)
		if err != nil {
			for _, e := range out {
				err = errors.Join(err, e.Close())
			}
			return nil, err
		}
		out = append(out, e)
	}
	if out == nil {
		return nil, diag.Errorf(diag.NotFound, "fd://%s: no such socket was passed to this process", which).
			WithHint("the name is FileDescriptorName= of the socket's unit")
	}
	return out, nil
}

// endpoint checks that the descriptor is a socket that listens, before anybody waits for connections of it.
func (p PassedSocket) endpoint(files TLSFiles) (*Endpoint, error) {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	listens := 0
	cerr := raw.Control(func(fd uintptr) { listens, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN) })
	if err = errors.Join(cerr, err); err != nil || listens == 0 {
		return nil, diag.Errorf(diag.Invalid, "%s is not a socket that listens for streams", p.file.Name()).
			WithHint("use ListenStream= in the socket's unit, and Accept=no")
	}
	l, err := net.FileListener(p.file) // a copy
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "%s: %w", p.file.Name(), err)
	}
	e := &Endpoint{Listener: l}
	switch l.(type) {
	case *net.UnixListener:
	case *net.TCPListener:
		e.tls, err = files.load()
	default:
		err = diag.Errorf(diag.Invalid, "%s is a socket of %s, not of Unix or TCP", p.file.Name(), l.Addr().Network())
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return e, nil
}
