package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data of a little-endian machine, see seccomp(2).
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// Answers of a filter, see seccomp(2).
const (
	retKillThread = 0x00000000
	retTrap       = 0x00030000
	retErrno      = 0x00050000
	retTrace      = 0x7ff00000
	retLog        = 0x7ffc0000
	retAllow      = 0x7fff0000
	retKill       = 0x80000000
)

// span says that numbers from first on, up to the next span, are answered by code.
type span struct {
	first uint32
	code  []unix.SockFilter
}

// Seccomp compiles a profile for a GOARCH as runc with libseccomp does:
//
//   - calls by an ABI that is not in the profile, x32 included, kill the thread
//   - names that the table of an ABI does not have are left out
//   - if calls are refused by default, numbers above all that the profile names are answered with ENOSYS, not with the default: C
//     libraries try what a newer kernel may have, and take EPERM for the last word
//   - conditions of one rule are all needed, unless two of them are about the same argument: then one is enough
//
// Notifications, flags, and different actions for one system call are not supported.
func Seccomp(p *specs.LinuxSeccomp, goarch string) ([]unix.SockFilter, error) {
	if p.ListenerPath != "" || len(p.Flags) > 0 {
		return nil, fmt.Errorf("seccomp notification or flags: %w", errors.ErrUnsupported)
	}
	def, err := answer(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	names := slices.Clone(p.Architectures)
	if nat := native(goarch); nat == "" {
		return nil, fmt.Errorf("seccomp for %s: %w", goarch, errors.ErrUnsupported)
	} else if !slices.Contains(names, nat) {
		names = append(names, nat)
	}
	out := []unix.SockFilter{load(offArch)}
	for _, name := range names {
		a := archOf(name)
		if a == nil {
			return nil, fmt.Errorf("seccomp architecture %s: %w", name, errors.ErrUnsupported)
		}
		a.load()
		code, err := a.compile(p, def)
		if err != nil {
			return nil, err
		}
		out = append(out, jump(unix.BPF_JEQ, a.audit, 1, 0), unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(code))})
		out = append(out, code...)
	}
	if out = append(out, ret(retKillThread)); len(out) > 4096 {
		return nil, fmt.Errorf("a seccomp filter of %d instructions: %w", len(out), errors.ErrUnsupported)
	}
	return out, nil
}

// answer is what a filter returns for an action.
func answer(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint32(unix.EPERM)
	if errno != nil {
		data = uint32(*errno) & 0xffff
	}
	switch a {
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKill, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActErrno:
		return retErrno | data, nil
	case specs.ActTrace:
		return retTrace | data, nil
	case specs.ActLog:
		return retLog, nil
	case specs.ActAllow:
		return retAllow, nil
	}
	return 0, fmt.Errorf("seccomp action %s: %w", a, errors.ErrUnsupported)
}

// rule is what a profile says about one number.
type rule struct {
	ret   uint32
	conds [][]specs.LinuxSeccompArg // any of these lists; none = always
}

// compile makes the part of the filter for one ABI. Nothing goes beyond its end.
func (a *arch) compile(p *specs.LinuxSeccomp, def uint32) ([]unix.SockFilter, error) {
	rules, last, err := a.rules(p, def)
	if err != nil {
		return nil, err
	}
	spans := []span{{0, []unix.SockFilter{ret(def)}}}
	end := uint32(0) // first number without a rule yet
	for _, n := range sortedKeys(rules) {
		if n > end {
			spans = add(spans, span{end, []unix.SockFilter{ret(def)}})
		}
		code, err := rules[n].compile(def)
		if err != nil {
			return nil, err
		}
		spans = add(spans, span{n, code})
		end = n + 1
	}
	spans = add(spans, span{end, []unix.SockFilter{ret(def)}})
	if def != retAllow && def != retLog && def&0xffff0000 != retTrace && last > 0 {
		spans = add(spans, span{last + 1, []unix.SockFilter{ret(retErrno | uint32(unix.ENOSYS))}})
	}
	if a.x32 {
		spans = add(spans, span{x32Bit, []unix.SockFilter{ret(retKillThread)}})
		spans = add(spans, span{math.MaxUint32, []unix.SockFilter{ret(def)}}) // -1: a tracer has it skipped
	}
	return append([]unix.SockFilter{load(offNumber)}, search(spans)...), nil
}

// rules collects what the profile says about each number, and the highest number that it names.
func (a *arch) rules(p *specs.LinuxSeccomp, def uint32) (map[uint32]*rule, uint32, error) {
	rules, last := map[uint32]*rule{}, uint32(0)
	for _, s := range p.Syscalls {
		act, err := answer(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, 0, err
		}
		for _, name := range s.Names {
			n, ok := a.numbers[name]
			if !ok {
				continue
			}
			last = max(last, n)
			if act == def {
				continue
			}
			r := rules[n]
			if r == nil {
				r = &rule{ret: act, conds: alternatives(s.Args)}
				rules[n] = r
				continue
			}
			if r.ret != act {
				return nil, 0, fmt.Errorf("different seccomp actions for %s: %w", name, errors.ErrUnsupported)
			}
			if more := alternatives(s.Args); len(r.conds) > 0 && len(more) > 0 {
				r.conds = append(r.conds, more...)
			} else {
				r.conds = nil
			}
		}
	}
	return rules, last, nil
}

// alternatives splits conditions of which several are about one argument.
func alternatives(args []specs.LinuxSeccompArg) [][]specs.LinuxSeccompArg {
	if len(args) == 0 {
		return nil
	}
	seen, twice := map[uint]bool{}, false
	for _, c := range args {
		twice = twice || seen[c.Index]
		seen[c.Index] = true
	}
	if !twice {
		return [][]specs.LinuxSeccompArg{args}
	}
	var out [][]specs.LinuxSeccompArg
	for _, c := range args {
		out = append(out, []specs.LinuxSeccompArg{c})
	}
	return out
}

// add appends a span, unless it says what the last one says.
func add(spans []span, s span) []span {
	last := &spans[len(spans)-1]
	if slices.Equal(last.code, s.code) {
		return spans
	}
	if last.first == s.first {
		last.code = s.code
		return spans
	}
	return append(spans, s)
}

// search finds the span of a number by halves.
func search(spans []span) []unix.SockFilter {
	if len(spans) == 1 {
		return spans[0].code
	}
	mid := len(spans) / 2
	low, high := search(spans[:mid]), search(spans[mid:])
	var out []unix.SockFilter
	if len(low) <= math.MaxUint8 {
		out = []unix.SockFilter{jump(unix.BPF_JGE, spans[mid].first, uint8(len(low)), 0)}
	} else {
		out = []unix.SockFilter{jump(unix.BPF_JGE, spans[mid].first, 0, 1), {Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(low))}}
	}
	return slices.Concat(out, low, high)
}

func sortedKeys[V any](m map[uint32]V) []uint32 {
	out := make([]uint32, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.SortFunc(out, cmp.Compare[uint32])
	return out
}

func load(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

func ret(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }

func jump(op uint16, k uint32, jt, jf uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: jt, Jf: jf, K: k}
}
