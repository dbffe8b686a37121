package progress

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// wide lists the ranges of runes that take two cells: the Wide and Fullwidth classes of Unicode's EastAsianWidth.txt,
// and the emoji that terminals draw wide.
var wide = &unicode.RangeTable{
	R16: []unicode.Range16{
		{0x1100, 0x115f, 1},
		{0x231a, 0x231b, 1},
		{0x23e9, 0x23ec, 1},
		{0x25fd, 0x25fe, 1},
		{0x2614, 0x2615, 1},
		{0x2648, 0x2653, 1},
		{0x26a1, 0x26a1, 1},
		{0x2705, 0x2705, 1},
		{0x2728, 0x2728, 1},
		{0x274c, 0x274c, 1},
		{0x2753, 0x2755, 1},
		{0x2795, 0x2797, 1},
		{0x2e80, 0x303e, 1},
		{0x3041, 0x33ff, 1},
		{0x3400, 0x4dbf, 1},
		{0x4e00, 0xa4cf, 1},
		{0xa960, 0xa97c, 1},
		{0xac00, 0xd7a3, 1},
		{0xf900, 0xfaff, 1},
		{0xfe30, 0xfe6f, 1},
		{0xff00, 0xff60, 1},
		{0xffe0, 0xffe6, 1},
	},
	R32: []unicode.Range32{
		{0x16fe0, 0x18cff, 1},
		{0x1aff0, 0x1b2fb, 1},
		{0x1f18e, 0x1f18e, 1},
		{0x1f191, 0x1f19a, 1},
		{0x1f200, 0x1f265, 1},
		{0x1f300, 0x1f64f, 1},
		{0x1f680, 0x1f6ff, 1},
		{0x1f7e0, 0x1f7eb, 1},
		{0x1f90c, 0x1f9ff, 1},
		{0x1fa70, 0x1faff, 1},
		{0x20000, 0x3fffd, 1},
	},
}

// runeWidth is the number of cells that a terminal gives to a rune.
func runeWidth(r rune) int {
	switch {
	case r < 0x20 || r == 0x7f:
		return 0
	case r < 0x300:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	case unicode.Is(wide, r):
		return 2
	}
	return 1
}

// textWidth is the number of cells of a text without escape sequences.
func textWidth(s string) int {
	n := 0
	for _, r := range s {
		n += runeWidth(r)
	}
	return n
}

// clip cuts a text to at most width cells; what is cut ends in an ellipsis.
func clip(s string, width int) string {
	if width <= 0 {
		return ""
	}
	if len(s) <= width || textWidth(s) <= width {
		return s
	}
	var b strings.Builder
	n := 0
	for _, r := range s {
		w := runeWidth(r)
		if n+w > width-1 {
			break
		}
		n += w
		b.WriteRune(r)
	}
	return b.String() + "…"
}

// clean makes one line of output safe to show: escape sequences and control characters are dropped, tabs become
// spaces, bytes that are no UTF-8 become U+FFFD.
func clean(line []byte) string {
	var b strings.Builder
	b.Grow(len(line))
	col := 0
	for i := 0; i < len(line); {
		c := line[i]
		switch {
		case c == 0x1b:
			i += escapeLen(line[i:])
			continue
		case c == '\t':
			n := 8 - col%8
			b.WriteString("        "[:n])
			col += n
		case c < 0x20 || c == 0x7f:
		case c < utf8.RuneSelf:
			b.WriteByte(c)
			col++
		default:
			r, n := utf8.DecodeRune(line[i:])
			// C1 controls are escape sequences too for some terminals; bidirectional overrides would reorder the line.
			if !unicode.Is(unicode.Cc, r) && !unicode.Is(unicode.Bidi_Control, r) {
				b.WriteRune(r)
				col += runeWidth(r)
			}
			i += n
			continue
		}
		i++
	}
	return strings.TrimRight(b.String(), " ")
}

// escapeLen returns the length of the escape sequence that b begins with. Source: ECMA-48.
func escapeLen(b []byte) int {
	if len(b) < 2 {
		return len(b)
	}
	switch b[1] {
	case '[': // CSI: parameters and intermediates, then one final byte
		for i := 2; i < len(b); i++ {
			if b[i] >= 0x40 && b[i] <= 0x7e {
				return i + 1
			}
		}
		return len(b)
	case ']', 'P', 'X', '^', '_': // strings: up to BEL or ST
		for i := 2; i < len(b); i++ {
			if b[i] == 0x07 {
				return i + 1
			}
			if b[i] == 0x1b && i+1 < len(b) && b[i+1] == '\\' {
				return i + 2
			}
		}
		return len(b)
	}
	i := 1
	for i < len(b) && b[i] >= 0x20 && b[i] <= 0x2f {
		i++
	}
	return min(i+1, len(b))
}

// lines cuts a stream of output into clean lines. A carriage return starts the line again, as on a terminal, so that
// of a command's own progress bar only the last state of each line remains.
type lines struct{ part []byte }

// maxLine bounds a line that has no end yet; what is longer is cut in pieces.
const maxLine = 64 << 10

// feed returns the lines that data completes.
func (l *lines) feed(data []byte) []string {
	var out []string
	for _, c := range data {
		switch {
		case c == '\n' || len(l.part) >= maxLine:
			out = append(out, l.take())
			if c != '\n' {
				l.part = append(l.part, c)
			}
		default:
			l.part = append(l.part, c)
		}
	}
	return out
}

// flush returns the line that has no end, if there is one.
func (l *lines) flush() (string, bool) {
	if len(l.part) == 0 {
		return "", false
	}
	return l.take(), true
}

func (l *lines) take() string {
	s := lastSegment(l.part)
	l.part = l.part[:0]
	return s
}

// peek shows the unfinished line as it stands.
func (l *lines) peek() string { return lastSegment(l.part) }

func lastSegment(b []byte) string {
	for len(b) > 0 && b[len(b)-1] == '\r' {
		b = b[:len(b)-1]
	}
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] == '\r' {
			b = b[i+1:]
			break
		}
	}
	return clean(b)
}
