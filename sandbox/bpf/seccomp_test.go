package bpf

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// vm runs a filter as the kernel does.
func vm(t *testing.T, prog []unix.SockFilter) *bpf.VM {
	t.Helper()
	raw := make([]bpf.RawInstruction, len(prog))
	for i, p := range prog {
		raw[i] = bpf.RawInstruction{Op: p.Code, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	insns, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("unknown instructions")
	}
	v, err := bpf.NewVM(insns)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// ask answers a system call. The VM reads words in network order.
func ask(t *testing.T, v *bpf.VM, nr, audit uint32, args [6]uint64) uint32 {
	t.Helper()
	var data [64]byte
	words := []uint32{nr, audit, 0, 0}
	for _, a := range args {
		words = append(words, uint32(a), uint32(a>>32))
	}
	for i, w := range words {
		binary.BigEndian.PutUint32(data[4*i:], w)
	}
	got, err := v.Run(data[:])
	if err != nil {
		t.Fatal(err)
	}
	return uint32(got)
}

// named maps the numbers that a profile names to their names, and returns the highest one.
func named(p *specs.LinuxSeccomp, a *arch) (map[uint32]string, uint32) {
	names, last := map[uint32]string{}, uint32(0)
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			if no, ok := a.numbers[n]; ok {
				names[no], last = n, max(last, no)
			}
		}
	}
	return names, last
}

// direct answers the system call of a name by reading the profile, rule after rule.
func direct(p *specs.LinuxSeccomp, name string, args [6]uint64) uint32 {
	for _, s := range p.Syscalls {
		if slices.Contains(s.Names, name) && holds(s.Args, args) {
			got, _ := answer(s.Action, s.ErrnoRet)
			return got
		}
	}
	def, _ := answer(p.DefaultAction, p.DefaultErrnoRet)
	return def
}

func holds(conds []specs.LinuxSeccompArg, args [6]uint64) bool {
	count := map[uint]int{}
	for _, c := range conds {
		count[c.Index]++
	}
	any, all := false, true
	for _, c := range conds {
		v := args[c.Index]
		ok := map[specs.LinuxSeccompOperator]bool{
			specs.OpEqualTo: v == c.Value, specs.OpNotEqual: v != c.Value, specs.OpGreaterThan: v > c.Value, specs.OpGreaterEqual: v >= c.Value,
			specs.OpLessThan: v < c.Value, specs.OpLessEqual: v <= c.Value, specs.OpMaskedEqual: v&c.Value == c.ValueTwo,
		}[c.Op]
		any, all = any || ok, all && ok
	}
	for _, n := range count {
		if n > 1 {
			return any
		}
	}
	return all
}

// argsFor are arguments around all values that a profile compares with.
func argsFor(p *specs.LinuxSeccomp) [][6]uint64 {
	out := [][6]uint64{{}}
	for _, s := range p.Syscalls {
		for _, c := range s.Args {
			for _, v := range []uint64{c.Value, c.ValueTwo} {
				for _, w := range []uint64{v, v - 1, v + 1, v | 1<<32, v | 1<<63, v ^ 0xffffffff, ^v} {
					var a [6]uint64
					a[c.Index] = w
					out = append(out, a)
				}
			}
		}
	}
	return out
}

func compare(t *testing.T, p *specs.LinuxSeccomp, goarch string) {
	t.Helper()
	prog, err := Seccomp(p, goarch)
	if err != nil {
		t.Fatal(err)
	}
	v, inputs := vm(t, prog), argsFor(p)
	conditional := map[string]bool{}
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			conditional[n] = conditional[n] || len(s.Args) > 0
		}
	}
	for _, name := range p.Architectures {
		a := archOf(name)
		a.load()
		numbers := []uint32{x32Bit, x32Bit + 1, x32Bit + 512, 1<<31 - 1, 1 << 31, 1<<32 - 2, 1<<32 - 1}
		for n := range uint32(1200) {
			numbers = append(numbers, n)
		}
		for _, n := range a.numbers {
			numbers = append(numbers, n)
		}
		names, last := named(p, a)
		for _, nr := range numbers {
			for i, args := range inputs {
				if i > 0 && !conditional[names[nr]] {
					break
				}
				want := direct(p, names[nr], args)
				switch {
				case a.x32 && nr == 1<<32-1: // skipped by a tracer
				case a.x32 && nr >= x32Bit:
					want = retKillThread
				case nr > last:
					want = retErrno | uint32(unix.ENOSYS)
				}
				if got := ask(t, v, nr, a.audit, args); got != want {
					t.Fatalf("%s: call %d %x is answered with %#x, not %#x", name, nr, args, got, want)
				}
			}
		}
	}
	if got := ask(t, v, 0, unix.AUDIT_ARCH_S390X, [6]uint64{}); got != retKillThread {
		t.Errorf("a foreign call is answered with %#x", got)
	}
}

func TestDefaultProfile(t *testing.T) {
	for _, caps := range [][]string{nil, {"CAP_SYS_ADMIN"}, {"CAP_CHOWN", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYSLOG", "CAP_BPF"}} {
		p, err := seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
		if err != nil {
			t.Fatal(err)
		}
		p.Architectures = []specs.Arch{specs.ArchX86_64, specs.ArchX86}
		compare(t, p, "amd64")
		p.Architectures = []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
		compare(t, p, "arm64")
	}
}

func TestConditions(t *testing.T) {
	errno := uint(99)
	for _, op := range []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpMaskedEqual} {
		for _, v := range []uint64{0, 5, 1 << 32, 1<<32 + 5, 1<<64 - 1} {
			c := specs.LinuxSeccompArg{Index: 3, Value: v, ValueTwo: v & 5, Op: op}
			other := specs.LinuxSeccompArg{Index: 1, Value: 0, Op: specs.OpEqualTo}
			p := &specs.LinuxSeccomp{
				DefaultAction: specs.ActKillProcess, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86},
				Syscalls: []specs.LinuxSyscall{
					{Names: []string{"read", "nosuch"}, Action: specs.ActErrno, ErrnoRet: &errno, Args: []specs.LinuxSeccompArg{c, other}},
					{Names: []string{"write"}, Action: specs.ActLog, Args: []specs.LinuxSeccompArg{c, {Index: 3, Value: 77, Op: specs.OpEqualTo}}},
					{Names: []string{"open"}, Action: specs.ActTrap, Args: []specs.LinuxSeccompArg{c}},
					{Names: []string{"open"}, Action: specs.ActTrap, Args: []specs.LinuxSeccompArg{other}},
					{Names: []string{"close"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{c}},
					{Names: []string{"close"}, Action: specs.ActAllow},
				},
			}
			compare(t, p, "amd64")
		}
	}
}

func TestUnsupportedSeccomp(t *testing.T) {
	one := func(s ...specs.LinuxSyscall) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64}, Syscalls: s}
	}
	read := []string{"read"}
	for name, p := range map[string]*specs.LinuxSeccomp{
		"notify":    one(specs.LinuxSyscall{Names: read, Action: specs.ActNotify}),
		"conflict":  one(specs.LinuxSyscall{Names: read, Action: specs.ActAllow}, specs.LinuxSyscall{Names: read, Action: specs.ActLog}),
		"operator":  one(specs.LinuxSyscall{Names: read, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Op: "?"}}}),
		"index":     one(specs.LinuxSyscall{Names: read, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}),
		"arch":      {DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchS390X}},
		"flags":     {DefaultAction: specs.ActErrno, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog}},
		"no action": {},
	} {
		if _, err := Seccomp(p, "amd64"); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Seccomp(one(), "riscv64"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v", err)
	}
}

// The table has what this machine's headers have.
func TestTable(t *testing.T) {
	a := archOf(native("amd64"))
	a.load()
	for name, want := range map[string]uint32{"read": 0, "mseal": 462, "clone3": 435, "newfstatat": 262, "execve": 59} {
		if a.numbers[name] != want {
			t.Errorf("%s: %d", name, a.numbers[name])
		}
	}
	a = archOf(specs.ArchAARCH64)
	a.load()
	if a.numbers["newfstatat"] != 79 || a.numbers["clone3"] != 435 {
		t.Errorf("%v", a.numbers)
	}
}

// AF_ALG lets a step write into the page cache of files of shared lower layers, on kernels without the fix. The default profile refuses it,
// whatever the half of the argument says that the kernel does not look at. By the 32-bit ABI it can be had all the same, with
// socketcall(2), unless that ABI is left out.
func TestPageCacheWritesByAFALG(t *testing.T) {
	p, err := seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
	if err != nil {
		t.Fatal(err)
	}
	refused := retErrno | uint32(unix.EPERM)
	for goarch, abis := range map[string][]specs.Arch{"amd64": {specs.ArchX86_64, specs.ArchX86}, "arm64": {specs.ArchAARCH64, specs.ArchARM}} {
		p.Architectures = abis
		both, err := Seccomp(p, goarch)
		if err != nil {
			t.Fatal(err)
		}
		p.Architectures = abis[:1]
		one, err := Seccomp(p, goarch)
		if err != nil {
			t.Fatal(err)
		}
		for i, name := range abis {
			a := archOf(name)
			a.load()
			for _, family := range []uint64{unix.AF_ALG, unix.AF_VSOCK} {
				for _, high := range []uint64{0, 1 << 32, unix.AF_INET << 32, 1 << 63, 0xffffffff << 32} {
					if got := ask(t, vm(t, both), a.numbers["socket"], a.audit, [6]uint64{high | family, unix.SOCK_SEQPACKET}); got != refused {
						t.Errorf("%s: family %#x: %#x", name, high|family, got)
					}
				}
			}
			if got := ask(t, vm(t, both), a.numbers["socket"], a.audit, [6]uint64{unix.AF_INET, unix.SOCK_STREAM}); got != retAllow {
				t.Errorf("%s: an ordinary socket: %#x", name, got)
			}
			if i == 0 {
				continue
			}
			for n := range uint32(500) {
				if got := ask(t, vm(t, one), n, a.audit, [6]uint64{unix.AF_ALG}); got != retKillThread {
					t.Fatalf("%s: call %d without the ABI: %#x", name, n, got)
				}
			}
		}
	}
}
