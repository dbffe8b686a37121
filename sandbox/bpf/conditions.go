package bpf

import (
	"errors"
	"fmt"
	"math"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Where a comparison goes, until its place is known.
const (
	next = 0
	fail = math.MaxUint8     // the end of the rule
	pass = math.MaxUint8 - 1 // the end of the condition
)

// compile answers a call by the arguments. Every path ends with an answer.
func (r *rule) compile(def uint32) ([]unix.SockFilter, error) {
	if len(r.conds) == 0 {
		return []unix.SockFilter{ret(r.ret)}, nil
	}
	var out []unix.SockFilter
	for _, all := range r.conds {
		var code []unix.SockFilter
		for _, c := range all {
			one, err := condition(c)
			if err != nil {
				return nil, err
			}
			place(one, pass, len(one))
			code = append(code, one...)
		}
		code = append(code, ret(r.ret))
		if len(code) >= pass {
			return nil, fmt.Errorf("a seccomp rule with %d conditions: %w", len(all), errors.ErrUnsupported)
		}
		place(code, fail, len(code))
		out = append(out, code...)
	}
	return append(out, ret(def)), nil
}

// place resolves jumps to the end of code.
func place(code []unix.SockFilter, label uint8, end int) {
	for i := range code {
		if code[i].Code&0x07 != unix.BPF_JMP {
			continue
		}
		for _, to := range []*uint8{&code[i].Jt, &code[i].Jf} {
			if *to == label {
				*to = uint8(end - i - 1)
			}
		}
	}
}

// condition compares an argument of 64 bits in two halves. It goes on at its end, or to fail.
func condition(c specs.LinuxSeccompArg) ([]unix.SockFilter, error) {
	if c.Index > 5 {
		return nil, fmt.Errorf("seccomp argument %d: %w", c.Index, errors.ErrUnsupported)
	}
	low, high := load(offArgs+8*uint32(c.Index)), load(offArgs+8*uint32(c.Index)+4)
	l, h := uint32(c.Value), uint32(c.Value>>32)
	switch c.Op {
	case specs.OpEqualTo:
		return []unix.SockFilter{high, jump(unix.BPF_JEQ, h, next, fail), low, jump(unix.BPF_JEQ, l, next, fail)}, nil
	case specs.OpNotEqual:
		return []unix.SockFilter{high, jump(unix.BPF_JEQ, h, next, pass), low, jump(unix.BPF_JEQ, l, fail, next)}, nil
	case specs.OpMaskedEqual:
		l2, h2 := uint32(c.ValueTwo), uint32(c.ValueTwo>>32)
		and := func(k uint32) unix.SockFilter {
			return unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: k}
		}
		return []unix.SockFilter{high, and(h), jump(unix.BPF_JEQ, h2, next, fail), low, and(l), jump(unix.BPF_JEQ, l2, next, fail)}, nil
	case specs.OpGreaterThan:
		return []unix.SockFilter{high, jump(unix.BPF_JGT, h, pass, next), jump(unix.BPF_JEQ, h, next, fail), low, jump(unix.BPF_JGT, l, next, fail)}, nil
	case specs.OpGreaterEqual:
		return []unix.SockFilter{high, jump(unix.BPF_JGT, h, pass, next), jump(unix.BPF_JEQ, h, next, fail), low, jump(unix.BPF_JGE, l, next, fail)}, nil
	case specs.OpLessThan:
		return []unix.SockFilter{high, jump(unix.BPF_JGT, h, fail, next), jump(unix.BPF_JEQ, h, next, pass), low, jump(unix.BPF_JGE, l, fail, next)}, nil
	case specs.OpLessEqual:
		return []unix.SockFilter{high, jump(unix.BPF_JGT, h, fail, next), jump(unix.BPF_JEQ, h, next, pass), low, jump(unix.BPF_JGT, l, fail, next)}, nil
	}
	return nil, fmt.Errorf("seccomp operator %s: %w", c.Op, errors.ErrUnsupported)
}
