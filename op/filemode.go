package op

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// modeChange is one operation of a symbolic mode: "g+w" is {who: 02070, op: '+', perms: "w"}.
type modeChange struct {
	who   uint32 // the bits that it may change
	op    byte
	perms string
}

// parseMode reads a mode as chmod(1) takes it: octal, or clauses such as "u=rwX,go-w" separated by commas. Without a
// letter for whom, all are meant: there is no umask.
func parseMode(s string) ([]modeChange, error) {
	bad := diag.Errorf(diag.Invalid, "invalid mode %q", s).WithHint("write an octal number such as 0755, or clauses such as u=rwX,go=rX")
	if n, err := strconv.ParseUint(s, 8, 12); err == nil {
		return []modeChange{{who: 0o7777, op: '0', perms: strconv.FormatUint(n, 8)}}, nil
	}
	var out []modeChange
	for clause := range strings.SplitSeq(s, ",") {
		i := strings.IndexAny(clause, "+-=")
		if i < 0 {
			return nil, bad
		}
		who := uint32(0)
		for _, c := range clause[:i] {
			switch c {
			case 'u':
				who |= 0o4700
			case 'g':
				who |= 0o2070
			case 'o':
				who |= 0o1007
			case 'a':
				who |= 0o7777
			default:
				return nil, bad
			}
		}
		if who == 0 {
			who = 0o7777
		}
		for rest := clause[i:]; rest != ""; {
			op := rest[0]
			rest = rest[1:]
			n := strings.IndexAny(rest, "+-=")
			if n < 0 {
				n = len(rest)
			}
			perms := rest[:n]
			rest = rest[n:]
			if strings.Trim(perms, "rwxXst") != "" && perms != "u" && perms != "g" && perms != "o" {
				return nil, bad
			}
			out = append(out, modeChange{who: who, op: op, perms: perms})
		}
	}
	return out, nil
}

// applyMode returns the permissions (07777) of a file whose st_mode is mode.
func applyMode(changes []modeChange, mode uint32) uint32 {
	isDir := mode&unix.S_IFMT == unix.S_IFDIR
	perm := mode & 0o7777
	for _, c := range changes {
		if c.op == '0' {
			n, _ := strconv.ParseUint(c.perms, 8, 12) // parseMode made it
			perm = uint32(n)
			continue
		}
		bits := c.bits(perm, isDir) & c.who
		switch c.op {
		case '+':
			perm |= bits
		case '-':
			perm &^= bits
		case '=':
			cleared := c.who
			if isDir { // a directory keeps what it was not asked about, as with GNU chmod
				cleared &^= 0o6000
			}
			perm = perm&^cleared | bits
		}
	}
	return perm
}

func (c modeChange) bits(perm uint32, isDir bool) uint32 {
	var b uint32
	for _, p := range c.perms {
		switch p {
		case 'r':
			b |= 0o444
		case 'w':
			b |= 0o222
		case 'x':
			b |= 0o111
		case 'X':
			if isDir || perm&0o111 != 0 {
				b |= 0o111
			}
		case 's':
			b |= 0o6000
		case 't':
			b |= 0o1000
		case 'u':
			b |= (perm >> 6 & 7) * 0o111
		case 'g':
			b |= (perm >> 3 & 7) * 0o111
		case 'o':
			b |= (perm & 7) * 0o111
		}
	}
	return b
}
