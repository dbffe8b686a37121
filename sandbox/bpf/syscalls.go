package bpf

import (
	_ "embed"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// syscallTable has a line for each name with its numbers for x86-64, i386, arm64 and arm, as in the kernel's tables
// (arch/x86/entry/syscalls, include/uapi/asm-generic/unistd.h, arch/arm/tools/syscall.tbl of Linux 6.17).
//
//go:embed syscalls.txt
var syscallTable string

// arch is an ABI that programs can make system calls by.
type arch struct {
	audit   uint32 // AUDIT_ARCH_…
	column  int    // of syscallTable
	x32     bool   // numbers from x32Bit are another ABI
	numbers map[string]uint32
}

// x32Bit is set in the numbers of the x32 ABI, which has the audit arch of x86-64.
const x32Bit = 0x40000000

// arches are the ABIs that profiles for this program's processors name.
func archOf(name specs.Arch) *arch {
	switch name {
	case specs.ArchX86_64:
		return &arch{audit: unix.AUDIT_ARCH_X86_64, column: 1, x32: true}
	case specs.ArchX86:
		return &arch{audit: unix.AUDIT_ARCH_I386, column: 2}
	case specs.ArchAARCH64:
		return &arch{audit: unix.AUDIT_ARCH_AARCH64, column: 3}
	case specs.ArchARM:
		return &arch{audit: unix.AUDIT_ARCH_ARM, column: 4}
	}
	return nil
}

// native is the ABI of a GOARCH, or "".
func native(goarch string) specs.Arch {
	return map[string]specs.Arch{"amd64": specs.ArchX86_64, "arm64": specs.ArchAARCH64}[goarch]
}

// load reads the column of the ABI.
func (a *arch) load() {
	a.numbers = make(map[string]uint32, 500)
	for line := range strings.Lines(syscallTable) {
		f := strings.Fields(line)
		if n, err := strconv.ParseUint(f[a.column], 10, 32); err == nil {
			a.numbers[f[0]] = uint32(n)
		}
	}
}
