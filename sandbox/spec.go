package sandbox

import (
	"context"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// Runtime runs commands in containers. [Sandbox] is the one of this package; tests have others.
type Runtime interface {
	Run(ctx context.Context, spec *Spec) (*Exit, error)
}

// DefaultHostname is the host name of a container that asks for none. It is BuildKit's, because builds can see it.
const DefaultHostname = "buildkitsandbox"

// Spec is one command to run. RootFS and Args are required.
type Spec struct {
	RootFS       string // host path of the mounted root file system; nobody else may write to it during the run
	ReadOnlyRoot bool
	Args         []string
	Env          []string // NAME=value, all of it: nothing is inherited. HOME is added from /etc/passwd if it is missing
	Cwd          string   // "" = "/"; made with mode 0755 for the user if it does not exist
	User         string   // as in USER, see ResolveUser; "" = root
	Hostname     string   // "" = DefaultHostname
	Mounts       []Mount  // parents are mounted before children, whatever the order here
	Network      graph.Network
	Proxy        Proxy          // of a step whose network is one
	Security     graph.Security // the caller checks that the build may have what it asks for
	ExtraHosts   []graph.HostIP // an IP of "host-gateway" is the address of this machine
	Devices      []graph.Device
	Limits       graph.Limits
	Client       string // whose step it is: the steps of one client share the processor and the memory as one; "" = nobody's

	Stdin          io.Reader // nil = empty. Not closed, and may still be read for a moment after the run
	Stdout, Stderr io.Writer // nil = dropped
	TTY            bool      // give the command a terminal; its output is all on Stdout
	Resize         <-chan WinSize

	live func(*runc, *container, *specs.Spec) (*Exit, error) // runs the container in place of Run: see Live
}

// MountType is the kind of a mount.
type MountType string

const (
	Bind  MountType = "bind"  // Source, a file or directory of the host
	Tmpfs MountType = "tmpfs" // an empty directory in memory
	Data  MountType = "data"  // a file in memory that holds Data, never on a disk
)

// Mount puts something at an absolute path of the container. Missing mount points are made, and removed after the run.
type Mount struct {
	Type     MountType
	Source   string   // Bind: host path
	File     *os.File // Bind: what to mount, in place of Source: a file or directory that OpenInRoot opened, wherever its name leads by now
	Target   string
	ReadOnly bool
	Options  []string // further mount options, such as "nosuid"
	Size     int64    // Tmpfs: bytes; 0 = the kernel's default
	Data     []byte   // Data: what the file holds
	UID, GID int      // Data: the owner of the file
	Mode     uint32   // Data: its permissions; Tmpfs: those of its root; 0 = 0400 and 1777
}

// DNS overrides what containers find in /etc/resolv.conf; empty fields come from the host's.
type DNS struct {
	Servers, Search, Options []string
}

// WinSize is the size of a terminal in characters.
type WinSize struct{ Rows, Cols uint16 }

// Exit says how a command ended. Signal is set if Code, as shells count, stands for one: 137 is SIGKILL. OOMKilled means
// that the kernel killed a process of the container for lack of memory, not always the one that gave Code.
type Exit struct {
	Code      int
	Signal    syscall.Signal
	OOMKilled bool
	Unclean   error // what is left in the root file system of what was put there for the run; nil = nothing
}

// Proxy is an HTTP proxy that is all that a step can reach.
type Proxy interface {
	// Serve answers on a listener, with connections that dial makes, until stop is called.
	Serve(l net.Listener, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (stop func())
	CA() []byte // a certificate in PEM that the step is to trust
}

// normal returns a copy of the spec with the defaults filled in, or why it cannot be run.
func (s *Spec) normal() (*Spec, error) {
	c := *s
	if len(c.Args) == 0 || c.Args[0] == "" {
		return nil, diag.Errorf(diag.Invalid, "there is no command to run")
	}
	if c.Cwd == "" {
		c.Cwd = "/"
	}
	if c.Hostname == "" {
		c.Hostname = DefaultHostname
	}
	switch {
	case !strings.HasPrefix(c.RootFS, "/"):
		return nil, diag.Errorf(diag.Internal, "the root file system %q is not an absolute path", c.RootFS)
	case !strings.HasPrefix(c.Cwd, "/"):
		return nil, diag.Errorf(diag.Invalid, "the working directory %q is not an absolute path", c.Cwd)
	case len(c.Hostname) > 64 || strings.ContainsAny(c.Hostname, " \t\n/"):
		return nil, diag.Errorf(diag.Invalid, "invalid host name %q", c.Hostname)
	}
	switch c.Network {
	case graph.NetworkDefault, graph.NetworkNone, graph.NetworkHost:
	case graph.NetworkProxy, graph.NetworkHostBy:
		if c.Proxy == nil {
			return nil, diag.Errorf(diag.Internal, "a step is to use a proxy, but there is none")
		}
	default:
		return nil, diag.Errorf(diag.Invalid, "unknown network mode %q", c.Network)
	}
	if c.Security != graph.SecuritySandbox && c.Security != graph.SecurityInsecure {
		return nil, diag.Errorf(diag.Invalid, "unknown security mode %q", c.Security)
	}
	for _, text := range [][]string{c.Args, c.Env, {c.Cwd, c.User}} {
		for _, t := range text {
			if strings.ContainsRune(t, 0) {
				return nil, diag.Errorf(diag.Invalid, "%q has a zero byte", t)
			}
		}
	}
	return &c, checkMounts(c.Mounts)
}

func checkMounts(mounts []Mount) error {
	for _, m := range mounts {
		if !strings.HasPrefix(m.Target, "/") || strings.ContainsRune(m.Target, 0) {
			return diag.Errorf(diag.Invalid, "the mount target %q is not an absolute path", m.Target)
		}
		if cleanPath(m.Target) == "/" {
			return diag.Errorf(diag.Invalid, "nothing can be mounted over the root of a container")
		}
		if dir := inKernelFiles(cleanPath(m.Target)); dir != "" {
			return kernelTarget(m.Target, dir)
		}
		if m.Size < 0 {
			return diag.Errorf(diag.Invalid, "the mount at %s has a negative size", m.Target)
		}
		switch m.Type {
		case Bind:
			if m.File != nil {
				continue
			}
			if _, err := os.Stat(m.Source); err != nil {
				return diag.Errorf(diag.NotFound, "the source of the mount at %s: %w", m.Target, err)
			}
		case Tmpfs, Data:
		default:
			return diag.Errorf(diag.Invalid, "unknown mount type %q", m.Type)
		}
	}
	return nil
}
