package progress

import (
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// screen is a small terminal: what the display writes is drawn into cells, with wrapping, scrolling and the control
// sequences that the display uses. Any other sequence is an error.
type screen struct {
	t          *testing.T
	cols, rows int
	cells      [][]rune // scroll-back and screen; the last rows are the screen
	top        int      // index of the screen's first row
	x, y       int      // y counts from the first row of all
	hidden     bool
	styled     bool
}

func newScreen(t *testing.T, cols, rows int) *screen {
	return &screen{t: t, cols: cols, rows: rows, cells: [][]rune{nil}}
}

func (s *screen) Write(b []byte) (int, error) {
	for i := 0; i < len(b); {
		switch c := b[i]; {
		case c == 0x1b:
			n := escapeLen(b[i:])
			s.escape(string(b[i : i+n]))
			i += n
			continue
		case c == '\r':
			s.x = 0
		case c == '\n':
			s.x = 0
			s.down()
		case c < 0x20 || c == 0x7f:
			s.t.Errorf("the display wrote control character %#x", c)
		default:
			r, n := utf8.DecodeRune(b[i:])
			s.put(r)
			i += n
			continue
		}
		i++
	}
	return len(b), nil
}

func (s *screen) down() {
	s.y++
	for len(s.cells) <= s.y {
		s.cells = append(s.cells, nil)
	}
	s.top = max(s.top, s.y-s.rows+1)
}

func (s *screen) put(r rune) {
	w := runeWidth(r)
	if w == 0 {
		return
	}
	if s.x+w > s.cols {
		s.x = 0
		s.down()
	}
	row := s.cells[s.y]
	for len(row) < s.x+w {
		row = append(row, ' ')
	}
	row[s.x] = r
	if w == 2 {
		row[s.x+1] = 0
	}
	s.cells[s.y] = row
	s.x += w
}

func (s *screen) escape(seq string) {
	switch {
	case seq == "\x1b[?25l":
		s.hidden = true
	case seq == "\x1b[?25h":
		s.hidden = false
	case seq == "\x1b[K":
		s.cells[s.y] = s.cells[s.y][:min(s.x, len(s.cells[s.y]))]
	case seq == "\x1b[J":
		s.cells[s.y] = s.cells[s.y][:min(s.x, len(s.cells[s.y]))]
		s.cells = s.cells[:s.y+1]
	case strings.HasSuffix(seq, "A"):
		n, err := strconv.Atoi(seq[2 : len(seq)-1])
		if err != nil || s.y-n < s.top {
			s.t.Errorf("the cursor went up %d rows from row %d of the screen", n, s.y-s.top)
		}
		s.y -= n
	case strings.HasSuffix(seq, "m"):
		s.styled = seq != "\x1b[0m"
	default:
		s.t.Errorf("unknown sequence %q", seq)
	}
}

// resize makes the terminal another width and wraps what is on it again, as terminals do.
func (s *screen) resize(cols int) {
	old := s.cells
	s.cols = cols
	s.cells, s.y = nil, 0
	for _, row := range old {
		for len(row) > cols {
			s.cells = append(s.cells, row[:cols])
			row = row[cols:]
		}
		s.cells = append(s.cells, row)
	}
	s.y = len(s.cells) - 1
	s.top = max(0, s.y-s.rows+1)
}

// text is all that was ever shown, without the spaces at line ends.
func (s *screen) text() string {
	var b strings.Builder
	for _, row := range s.cells {
		line := strings.ReplaceAll(string(row), "\x00", "")
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}
