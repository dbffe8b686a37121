package sandbox

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/sandbox/bpf"
)

// devicePrograms are the filters of devices that the kernel has by now.
type devicePrograms struct {
	mu     sync.Mutex
	loaded map[string]int // descriptors, by the instructions
}

// attach has the kernel ask a filter for each access to a device by a group of version 2.
func (p *devicePrograms) attach(group string, rules []specs.LinuxDeviceCgroup) error {
	if !filters(rules) {
		return nil // as without
	}
	insns, err := bpf.Devices(rules)
	if err != nil {
		return err
	}
	prog, err := p.load(insns)
	if err != nil {
		return fmt.Errorf("load the filter of devices: %w", err)
	}
	dir, err := os.Open(group)
	if err != nil {
		return err
	}
	defer dir.Close()
	attr := struct{ target, prog, kind, flags uint32 }{uint32(dir.Fd()), uint32(prog), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_ATTACH, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)); errno != 0 {
		return fmt.Errorf("attach the filter of devices: %w", errno)
	}
	return nil
}

func (p *devicePrograms) load(insns []bpf.Insn) (int, error) {
	raw := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(insns))), len(insns)*int(unsafe.Sizeof(bpf.Insn{})))
	p.mu.Lock()
	defer p.mu.Unlock()
	if fd, ok := p.loaded[string(raw)]; ok {
		return fd, nil
	}
	license := []byte("Apache-2.0\x00")
	attr := struct {
		kind, count    uint32
		insns, license uintptr
	}{unix.BPF_PROG_TYPE_CGROUP_DEVICE, uint32(len(insns)), uintptr(unsafe.Pointer(&insns[0])), uintptr(unsafe.Pointer(&license[0]))}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(insns)
	runtime.KeepAlive(license)
	if errno != 0 {
		return 0, errno
	}
	if p.loaded == nil {
		p.loaded = map[string]int{}
	}
	p.loaded[string(raw)] = int(fd)
	return int(fd), nil
}

// close forgets the filters. Groups that they are attached to keep them.
func (p *devicePrograms) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, fd := range p.loaded {
		unix.Close(fd)
	}
	p.loaded = nil
}
