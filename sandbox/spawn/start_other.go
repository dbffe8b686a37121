//go:build !linux || (!amd64 && !arm64)

package spawn

import (
	"sync/atomic"
	"syscall"
)

// Options are about the clone itself.
type Options struct {
	Flags  uint64
	Cgroup int
	PIDFD  *atomic.Int32
}

// Available is false: there is no assembly for this processor.
func Available() bool { return false }

// Start fails.
func (p *Program) Start(Options) (int, error) { return 0, syscall.ENOSYS }
