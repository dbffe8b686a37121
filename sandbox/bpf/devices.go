package bpf

import (
	"errors"
	"fmt"
	"math"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Insn is an instruction of eBPF as bpf(2) takes it.
type Insn struct {
	Code uint8
	Regs uint8 // destination, and source in the upper half
	Off  int16
	Imm  int32
}

// Codes of instructions, from linux/bpf.h.
const (
	loadWord  = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	moveReg   = 0x07 | 0xb0 | unix.BPF_X // ALU64 MOV
	moveImm   = 0x07 | 0xb0 | unix.BPF_K
	andImm    = 0x07 | unix.BPF_AND | unix.BPF_K
	shiftImm  = 0x07 | unix.BPF_RSH | unix.BPF_K
	notEqual  = unix.BPF_JMP | 0x50 | unix.BPF_K
	notEqualR = unix.BPF_JMP | 0x50 | unix.BPF_X
	exit      = unix.BPF_JMP | 0x90
)

// deviceAccess are the bits of BPF_DEVCG_ACC_….
var deviceAccess = map[rune]int32{'m': 1, 'r': 2, 'w': 4}

// Devices compiles the device rules of a container: the first allows or denies all, and what follows allows more. The program
// answers 1 if an access is allowed.
func Devices(rules []specs.LinuxDeviceCgroup) ([]Insn, error) {
	if err := CheckDevices(rules); err != nil {
		return nil, err
	}
	out := []Insn{
		{loadWord, 2 | 1<<4, 0, 0}, // r2 = access << 16 | type
		{moveReg, 3 | 2<<4, 0, 0},
		{andImm, 2, 0, math.MaxUint16}, // r2: type
		{shiftImm, 3, 0, 16},           // r3: access
		{loadWord, 4 | 1<<4, 4, 0},     // r4: major
		{loadWord, 5 | 1<<4, 8, 0},     // r5: minor
	}
	if !rules[0].Allow {
		for _, r := range rules[1:] {
			out = append(out, deviceRule(r)...)
		}
	}
	verdict := int32(0)
	if rules[0].Allow {
		verdict = 1
	}
	return append(out, Insn{moveImm, 0, 0, verdict}, Insn{exit, 0, 0, 0}), nil
}

// CheckDevices reports rules that are not of the supported form.
func CheckDevices(rules []specs.LinuxDeviceCgroup) error {
	for i, r := range rules {
		all := (r.Type == "" || r.Type == "a") && r.Major == nil && r.Minor == nil && len(r.Access) == 3
		if (i == 0) != all || i > 0 && (!r.Allow || r.Type != "c" && r.Type != "b") || r.Access == "" || strings.Trim(r.Access, "rwm") != "" {
			return fmt.Errorf("device rule %d: %w", i, errors.ErrUnsupported)
		}
	}
	if len(rules) == 0 {
		return fmt.Errorf("no device rules: %w", errors.ErrUnsupported)
	}
	return nil
}

func deviceRule(r specs.LinuxDeviceCgroup) []Insn {
	kind, access := int32(1), int32(0) // BPF_DEVCG_DEV_BLOCK
	if r.Type == "c" {
		kind = 2
	}
	for _, c := range r.Access {
		access |= deviceAccess[c]
	}
	out := []Insn{{notEqual, 2, 0, kind}}
	if access != 7 {
		out = append(out, Insn{moveReg, 1 | 3<<4, 0, 0}, Insn{andImm, 1, 0, access}, Insn{notEqualR, 1 | 3<<4, 0, 0})
	}
	for reg, n := range []*int64{r.Major, r.Minor} {
		if n != nil && *n >= 0 {
			out = append(out, Insn{notEqual, uint8(4 + reg), 0, int32(*n)})
		}
	}
	out = append(out, Insn{moveImm, 0, 0, 1}, Insn{exit, 0, 0, 0})
	for i := range out {
		if out[i].Code == notEqual || out[i].Code == notEqualR {
			out[i].Off = int16(len(out) - i - 1)
		}
	}
	return out
}
