package bpf

import (
	"errors"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// allowed interprets a device program.
func allowed(t *testing.T, prog []Insn, kind, access, major, minor int64) bool {
	t.Helper()
	r := [11]int64{}
	ctx := map[int16]int64{0: access<<16 | kind, 4: major, 8: minor}
	for pc := 0; pc < len(prog); pc++ {
		in := prog[pc]
		dst, src := in.Regs&15, in.Regs>>4
		switch in.Code {
		case loadWord:
			r[dst] = ctx[in.Off]
		case moveReg:
			r[dst] = r[src]
		case moveImm:
			r[dst] = int64(in.Imm)
		case andImm:
			r[dst] &= int64(in.Imm)
		case shiftImm:
			r[dst] >>= in.Imm
		case notEqual:
			if r[dst] != int64(in.Imm) {
				pc += int(in.Off)
			}
		case notEqualR:
			if r[dst] != r[src] {
				pc += int(in.Off)
			}
		case exit:
			return r[0] == 1
		default:
			t.Fatalf("unknown code %#x", in.Code)
		}
	}
	t.Fatal("the program does not end")
	return false
}

func TestDevices(t *testing.T) {
	n := func(v int64) *int64 { return &v }
	rules := []specs.LinuxDeviceCgroup{
		{Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "c", Major: n(1), Minor: n(3), Access: "rwm"},
		{Allow: true, Type: "c", Major: n(136), Access: "rw"},
		{Allow: true, Type: "b", Major: n(8), Minor: n(0), Access: "r"},
	}
	prog, err := Devices(rules)
	if err != nil {
		t.Fatal(err)
	}
	const block, char, mknod, read, write = 1, 2, 1, 2, 4
	for _, c := range []struct {
		kind, access, major, minor int64
		want                       bool
	}{
		{char, mknod, 9, 9, true},
		{block, mknod, 9, 9, false},
		{char, read, 9, 9, false},
		{char, read | mknod, 9, 9, false},
		{char, read | write | mknod, 1, 3, true},
		{char, read, 1, 4, false},
		{block, read, 1, 3, false},
		{char, read | write, 136, 77, true},
		{char, read | write | mknod, 136, 77, false},
		{block, read, 8, 0, true},
		{block, write, 8, 0, false},
		{block, read | write, 8, 0, false},
		{block, read, 8, 1, false},
	} {
		if got := allowed(t, prog, c.kind, c.access, c.major, c.minor); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	all, err := Devices([]specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}, {Allow: true, Type: "b", Access: "r"}})
	if err != nil || !allowed(t, all, block, write, 5, 5) {
		t.Errorf("%v %v", all, err)
	}
	for _, bad := range [][]specs.LinuxDeviceCgroup{
		nil, {{Allow: true, Type: "c", Access: "r"}}, {{Access: "rwm"}, {Type: "c", Access: "r"}}, {{Access: "rwm"}, {Allow: true, Type: "c", Access: "x"}}, {{Access: "rwm"}, {Allow: true, Access: "rwm"}},
	} {
		if _, err := Devices(bad); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
