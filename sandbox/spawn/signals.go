package spawn

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// lastSignal is the greatest signal of Linux.
const lastSignal = 64

// sigaction is what rt_sigaction(2) takes; its mask has 8 bytes.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// DefaultSignals resets all signals that this process ignores: Start resets handlers only. What nohup or a shell
// has the builder ignore is no business of the new process.
func (p *Program) DefaultSignals() {
	reset := uintptr(0)
	for sig := uintptr(1); sig <= lastSignal; sig++ {
		var now sigaction
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&now)), unsafe.Sizeof(now.mask), 0, 0)
		if errno != 0 || now.handler != 1 { // SIG_IGN
			continue
		}
		if reset == 0 {
			reset = Value(p, new(sigaction))
		}
		p.Call("reset a signal", unix.SYS_RT_SIGACTION, sig, reset, 0, unsafe.Sizeof(now.mask))
	}
}
