package progress

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/strata-build/strata/event"
)

const (
	// liveLogs is how many lines of output a running step shows, if the terminal is high enough.
	liveLogs = 6
	// liveItems is how many of its transfers.
	liveItems = 4
	// refresh is how often the clock of the running steps moves on.
	refresh = 100 * time.Millisecond
	// noticeable is how long a step must take for people to ask what it was.
	noticeable = 500 * time.Millisecond
	// ruler is the column that times end at in a wide terminal.
	ruler = 110
)

// Styles of ECMA-48; "" is the terminal's own.
const (
	plainText = ""
	bold      = "1"
	dim       = "2"
	red       = "31"
	green     = "32"
	yellow    = "33"
	cyan      = "36"
)

// span is a piece of a line.
type span struct{ style, text string }

// terminal draws live lines below those that are settled. A frame is one write: it goes up over the live lines, prints
// what settled since, draws the live lines again and clears the rest; nothing is erased before it is overwritten, so
// nothing flickers.
type terminal struct {
	board   *board
	opt     Options
	settled [][]span
	live    []int // widths of the live lines on the screen
	dirty   bool
	drawn   time.Time
}

func newTerminal(b *board, opt Options) *terminal {
	return &terminal{board: b, opt: opt, dirty: true}
}

func (t *terminal) show(_ time.Time, _ event.Event, c change) {
	t.dirty = true
	if c.message != "" {
		t.settled = append(t.settled, []span{{plainText, c.message}})
	}
	if c.ended {
		t.settle(c.step)
	}
}

// settle keeps a step that ended in the scroll-back. Cached ones, and the quick ones that are no part of the Dockerfile, are
// only counted.
func (t *terminal) settle(s *step) {
	switch s.state {
	case done:
		aside := strings.HasPrefix(s.name, "[internal]") || strings.HasPrefix(s.name, "[context ")
		if aside && s.spent < noticeable {
			return
		}
		t.settled = append(t.settled, t.stepLine(span{green, " ✔ "}, plainText, s.name, s.spent))
		if s.reason != "" && !strings.HasPrefix(s.reason, event.Follows) {
			t.settled = append(t.settled, []span{{dim, "   not cached: " + clean([]byte(s.reason))}})
		}
		for _, it := range s.items {
			if name, ok := strings.CutPrefix(it.name, "naming to "); ok { // where to find the image
				t.settled = append(t.settled, []span{{dim, "   → " + clean([]byte(name))}})
			}
		}
	case canceled:
		t.settled = append(t.settled, t.stepLine(span{yellow, " ○ "}, dim, s.name+" (canceled)", s.spent))
	}
	// A step that failed stays among the live lines, with its output, until the display ends.
}

func (t *terminal) tick(now time.Time) {
	if t.dirty || now.Sub(t.drawn) >= refresh {
		cols, rows := t.opt.Size()
		t.draw(now, cols, t.liveLines(now, cols, rows))
	}
}

func (t *terminal) finish(now time.Time, err error) {
	cols, _ := t.opt.Size()
	mark := span{green, " ✔ "}
	if err != nil {
		mark = span{red, " ✘ "}
	}
	for _, s := range t.board.steps {
		if s.state == failed {
			t.settled = append(t.settled, t.failedLine(s))
		}
	}
	if head := headline(err); head != "" {
		t.settled = append(t.settled, []span{mark, {bold, head}}, []span{{plainText, "   " + summary(t.board, now, err)}})
	} else {
		t.settled = append(t.settled, []span{mark, {bold, summary(t.board, now, err)}})
	}
	for _, w := range t.board.warnings {
		t.settled = append(t.settled, []span{{yellow, " ! "}, {plainText, warningText(w)}})
	}
	t.draw(now, cols, nil)
}

// draw writes one frame.
func (t *terminal) draw(now time.Time, cols int, live [][]span) {
	var b bytes.Buffer
	b.WriteString("\x1b[?25l")
	if up := t.height(cols); up > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", up)
	}
	b.WriteByte('\r')
	// A settled line may be longer than a row: it is not drawn again.
	for _, l := range t.settled {
		t.line(&b, l, unbounded)
	}
	t.settled, t.live = nil, t.live[:0]
	for _, l := range live {
		t.live = append(t.live, t.line(&b, l, cols-1))
	}
	b.WriteString("\x1b[J\x1b[?25h")
	t.dirty, t.drawn = false, now
	out := b.Bytes()
	if t.opt.ASCII {
		out = []byte(ascii.Replace(b.String()))
	}
	// There is nobody to tell that the terminal is gone.
	_, _ = t.opt.Out.Write(out)
}

// ascii has a character of the same width for each that the display draws with.
var ascii = strings.NewReplacer("✔", "+", "✘", "x", "○", "o", "▸", ">", "│", "|", "…", "~", "█", "#", "░", ".", "·", ",", "↓", "v", "→", ">")

// height is how many rows the live lines take now: a terminal that became narrower has wrapped them.
func (t *terminal) height(cols int) int {
	n := 0
	for _, w := range t.live {
		n += max(1, (w+cols-1)/max(cols, 1))
	}
	return n
}

// unbounded is the width of a line that may be longer than a row.
const unbounded = -1

// line writes a line of at most width cells and returns its width.
func (t *terminal) line(b *bytes.Buffer, l []span, width int) int {
	used := 0
	for _, s := range l {
		text := s.text
		if width != unbounded {
			text = clip(text, width-used)
		}
		used += textWidth(text)
		if s.style == plainText || !t.opt.Color {
			b.WriteString(text)
			continue
		}
		fmt.Fprintf(b, "\x1b[%sm%s\x1b[0m", s.style, text)
	}
	b.WriteString("\x1b[K\n")
	return used
}

// stepLine has the time at its right end.
func (t *terminal) stepLine(mark span, style, name string, d time.Duration) []span {
	cols, _ := t.opt.Size()
	width := min(cols-1, ruler)
	at := " " + seconds(d)
	room := width - textWidth(mark.text) - len(at)
	if room < 10 {
		return []span{mark, {style, clip(name, width-textWidth(mark.text))}}
	}
	name = clip(name, room)
	return []span{mark, {style, name}, {plainText, strings.Repeat(" ", room-textWidth(name))}, {dim, at}}
}

func (t *terminal) failedLine(s *step) []span {
	return t.stepLine(span{red, " ✘ "}, red, s.name, s.spent)
}

// failures are the steps that failed, with the end of their output, in at most n lines. They stay in sight while others end.
func (t *terminal) failures(n int) [][]span {
	var out [][]span
	for _, s := range t.board.steps {
		if s.state != failed || len(out) == n {
			continue
		}
		out = append(out, t.failedLine(s))
		tail := s.tail[max(0, len(s.tail)-min(liveLogs, n-len(out))):]
		for _, l := range tail {
			out = append(out, []span{{red, "   │ "}, {plainText, l}})
		}
	}
	return out
}

// liveLines is the header, the steps that failed and the running ones, in at most rows-1 lines.
func (t *terminal) liveLines(now time.Time, cols, rows int) [][]span {
	if rows < 2 || cols < 2 {
		return nil // no room but for the cursor
	}
	out := append(t.failures(rows-2), t.header(now, cols-1))
	var steps []*step
	for _, s := range t.board.steps {
		if s.state == running {
			steps = append(steps, s)
		}
	}
	room := max(rows-1-len(out), 0)
	more := 0
	if len(steps) > room {
		more = len(steps) - max(room-1, 0)
		steps = steps[:max(room-1, 0)]
	}
	room -= len(steps)
	for i, s := range steps {
		out = append(out, t.stepLine(span{cyan, " ▸ "}, bold, s.name, now.Sub(s.began)))
		body := t.body(s, now, cols, room/(len(steps)-i))
		room -= len(body)
		out = append(out, body...)
	}
	if more > 0 && room > 0 {
		out = append(out, []span{{dim, fmt.Sprintf("   … %d more running", more)}})
	}
	return out
}

// header is "Building 12.3s  9/14 steps · 12 cached · 2 running", or as much of it as there is room for.
func (t *terminal) header(now time.Time, width int) []span {
	c := t.board.counts()
	head := []span{{bold, "Building " + seconds(now.Sub(t.board.began))}, {plainText, fmt.Sprintf("  %d/%s", c.ended, plural(c.total, "step"))}}
	width -= textWidth(head[0].text) + textWidth(head[1].text)
	for _, part := range []struct {
		n           int
		word, style string
	}{{c.cached, "cached", green}, {c.running, "running", cyan}, {c.failed, "failed", red}} {
		text := fmt.Sprintf("%d %s", part.n, part.word)
		if part.n == 0 {
			continue
		}
		if width -= textWidth(" · " + text); width >= 0 {
			head = append(head, span{dim, " · "}, span{part.style, text})
		}
	}
	return head
}

// body is what stands below a running step: its transfers and the end of its output, in at most n lines.
func (t *terminal) body(s *step, now time.Time, cols, n int) [][]span {
	var out [][]span
	ended := 0
	var active []*item
	for _, it := range s.items {
		if it.done {
			ended++
		} else {
			active = append(active, it)
		}
	}
	for i, it := range active {
		if len(out) == min(n, liveItems) {
			break
		}
		if len(out) == min(n, liveItems)-1 && i < len(active)-1 {
			out = append(out, []span{{dim, fmt.Sprintf("   ↓ %d more, %d done", len(active)-i, ended)}})
			break
		}
		out = append(out, itemLine(it, now, min(cols-1, ruler)))
	}
	var logs []string
	for i := range s.streams {
		if part := s.streams[i].peek(); part != "" {
			logs = append(logs, part)
		}
	}
	room := min(n-len(out), liveLogs)
	tail := s.tail[max(0, len(s.tail)-max(room-len(logs), 0)):]
	logs = append(append([]string(nil), tail...), logs...)
	for _, l := range logs[max(0, len(logs)-max(room, 0)):] {
		out = append(out, []span{{dim, "   │ " + l}})
	}
	return out
}

// itemLine is "   ↓ downloading 1f2e3d4c5b6a ████████░░░░ 12.3MB / 45.0MB 8.10MB/s".
func itemLine(it *item, now time.Time, width int) []span {
	text := strings.TrimRight(it.amount(), " ")
	if r := it.rate(); r > 0 && it.isBytes() && now.Sub(it.last) < 2*time.Second {
		text += " " + size(r) + "/s"
	}
	const label = 36
	bar := ""
	if room := width - 3 - label - 4 - len(text); it.total > 0 && room >= 8 {
		bar = drawBar(it.current, it.total, min(room, 24)) + " "
	}
	name := clip(it.label(), label)
	pad := strings.Repeat(" ", max(0, label-textWidth(name)))
	return []span{{dim, "   ↓ "}, {plainText, name + pad + " "}, {cyan, bar}, {plainText, text}}
}

func drawBar(current, total int64, width int) string {
	full := int(float64(width) * min(1, max(0, float64(current)/float64(total))))
	return strings.Repeat("█", full) + strings.Repeat("░", width-full)
}
