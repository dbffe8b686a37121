package sandbox

import (
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// slot is a network namespace. It exists by its open descriptor only: when the process ends, however it ends, the kernel removes the
// namespace and what is in it.
type slot struct {
	ns     *os.File
	far    *os.File     // the namespace at the other end of a step that has a proxy alone
	detach func() error // takes it from its network, while it still exists; nil = nothing to do
	onEnd  func()       // gives back what the slot had of the host

	gateway string   // of a network that plugins made; "" = not known
	servers []string // of names there
}

// path names the namespace for other processes.
func (s *slot) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.ns.Fd()) }

func (s *slot) close() {
	if s.detach != nil {
		s.detach() // what stays is found by Sweep
	}
	s.ns.Close()
	if s.far != nil {
		s.far.Close()
	}
	if s.onEnd != nil {
		s.onEnd()
	}
}

// pool keeps slots between steps, because the kernel takes long to make and to remove a network namespace. A slot is
// clean when no process is left in it: steps have no right to configure networks.
type pool struct {
	create func() (*slot, error)
	max    int // idle slots to keep
	mu     sync.Mutex
	idle   []*slot
	closed bool
}

func (p *pool) get() (*slot, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		s := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return s, nil
	}
	p.mu.Unlock()
	return p.create()
}

// put gives a slot back. Dirty ones, of steps that could change their network, are not used again.
func (p *pool) put(s *slot, dirty bool) {
	p.mu.Lock()
	keep := !dirty && !p.closed && len(p.idle) < p.max
	if keep {
		p.idle = append(p.idle, s)
	}
	p.mu.Unlock()
	if !keep {
		s.close()
	}
}

func (p *pool) close() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	p.mu.Unlock()
	for _, s := range idle {
		s.close()
	}
}

// currentNS opens the network namespace of the calling thread.
func currentNS() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") }

// inNS runs f in a network namespace, on a thread of its own. Processes that f starts are in it too.
func inNS(ns *os.File, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		before, err := currentNS()
		if err != nil {
			done <- err
			return
		}
		defer before.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network namespace: %w", err)
			return
		}
		err = f()
		// A goroutine that ends while it is locked takes its thread along, so that no other one runs in the wrong place.
		if unix.Setns(int(before.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// newNS makes a network namespace with its loopback up.
func newNS() (*os.File, error) {
	here, err := currentNS()
	if err != nil {
		return nil, err
	}
	defer here.Close()
	var ns *os.File
	err = inNS(here, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if ns, err = currentNS(); err != nil {
			return err
		}
		return loopbackUp()
	})
	if err != nil && ns != nil {
		ns.Close()
	}
	return ns, err
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}
