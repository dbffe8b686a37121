package progress

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
)

const (
	// turn is how long one step's lines are printed while others have something to say.
	turn = time.Second
	// itemEvery is the least time between two lines of one transfer.
	itemEvery = 5 * time.Second
)

// plain prints lines, in the form that BuildKit's plain progress made common:
//
//	#4 [build 2/3] RUN make
//	#4 not cached: it builds on [build 1/3] COPY . ., which changed
//	#4 0.123 cc -o app app.c
//	#4 DONE 1.2s
//
// Steps take turns, so that the lines of one stand together: what other steps print in the meantime waits.
type plain struct {
	board   *board
	out     io.Writer
	buf     bytes.Buffer
	last    int     // number of the last step that was announced
	ready   []*step // steps that have something to say, first come first
	current *step   // the one whose turn it is
	since   time.Time
	blank   bool // an empty line is due before the next step
}

func newPlain(b *board, out io.Writer) *plain { return &plain{board: b, out: out} }

func (p *plain) show(now time.Time, _ event.Event, c change) {
	if c.message != "" {
		fmt.Fprintln(&p.buf, c.message)
	}
	if s := c.step; s != nil {
		p.queue(now, s, c)
	}
	p.pump(now)
}

// queue turns a change into the step's lines.
func (p *plain) queue(now time.Time, s *step, c change) {
	n := len(s.pending)
	if c.explained {
		s.pending = append(s.pending, "not cached: "+clean([]byte(s.reason)))
	}
	for _, l := range c.lines {
		s.pending = append(s.pending, fmt.Sprintf("%.3f %s", l.at.Seconds(), l.text))
	}
	if it := c.item; it != nil && (it.done || now.Sub(it.printed) >= itemEvery) {
		// A transfer's first line is worth printing only if it takes long.
		if it.done || !it.printed.IsZero() {
			s.pending = append(s.pending, strings.TrimRight(it.label()+" "+it.amount(), " ")+itemEnd(it))
		}
		it.printed = now
	}
	if c.ended {
		s.pending = append(s.pending, endLine(s))
		s.closing = true
	}
	if (len(s.pending) > n || c.started && s.announced == 0) && s != p.current {
		for _, r := range p.ready {
			if r == s {
				return
			}
		}
		p.ready = append(p.ready, s)
	}
}

func itemEnd(it *item) string {
	if !it.done {
		return ""
	}
	return " " + seconds(it.last.Sub(it.began)) + " done"
}

func endLine(s *step) string {
	switch s.state {
	case cached:
		return "CACHED"
	case canceled:
		return "CANCELED"
	case failed:
		first, _, _ := strings.Cut(s.err, "\n")
		return "ERROR: " + clean([]byte(first))
	}
	return "DONE " + seconds(s.spent)
}

// pump prints what may be printed now.
func (p *plain) pump(now time.Time) {
	for {
		if p.current == nil {
			if len(p.ready) == 0 {
				break
			}
			p.take(now, p.ready[0])
			p.ready = p.ready[1:]
		}
		s := p.current
		for _, l := range s.pending {
			fmt.Fprintf(&p.buf, "#%d %s\n", s.announced, l)
		}
		s.pending = s.pending[:0]
		switch {
		case s.closing:
			s.closing, p.current = false, nil
		case len(p.ready) > 0 && now.Sub(p.since) >= turn:
			fmt.Fprintf(&p.buf, "#%d ...\n", s.announced)
			p.current = nil
		default:
			p.flush()
			return
		}
	}
	p.flush()
}

// take gives the turn to a step.
func (p *plain) take(now time.Time, s *step) {
	if p.blank {
		fmt.Fprintln(&p.buf)
	}
	p.blank = true
	if s.announced == 0 {
		p.last++
		s.announced = p.last
	}
	fmt.Fprintf(&p.buf, "#%d %s\n", s.announced, s.name)
	p.current, p.since = s, now
}

// flush writes whole lines with one call. An error has nobody to go to.
func (p *plain) flush() {
	if p.buf.Len() > 0 {
		_, _ = p.out.Write(p.buf.Bytes())
		p.buf.Reset()
	}
}

func (p *plain) tick(now time.Time) { p.pump(now) }

func (p *plain) finish(now time.Time, err error) {
	for p.current != nil || len(p.ready) > 0 {
		p.pump(now)
		if p.current != nil {
			p.current = nil
		}
	}
	if len(p.board.steps) > 0 || len(p.board.warnings) > 0 {
		fmt.Fprintf(&p.buf, "\n%s\n", summary(p.board, now, err))
	}
	for _, w := range p.board.warnings {
		fmt.Fprintf(&p.buf, "WARNING: %s\n", warningText(w))
	}
	p.flush()
}

var exitCode = regexp.MustCompile(`exit code: ([0-9]+)( \(SIG[A-Z0-9]+\))?$`)

// headline says which instruction ended a build, and where: "RUN failed with exit code 2 (Dockerfile:2)". It is "" for errors of
// other kinds, which say so themselves.
func headline(err error) string {
	d, ok := errors.AsType[*diag.Error](err)
	if !ok || d.Kind != diag.Failed || len(d.At) == 0 || d.At[0].Source == nil || d.At[0].First < 1 {
		return ""
	}
	first, _, _ := strings.Cut(d.Msg, "\n")
	code := exitCode.FindStringSubmatch(first)
	lines := bytes.Split(d.At[0].Source.Data, []byte("\n"))
	if code == nil || d.At[0].First > len(lines) {
		return ""
	}
	words := bytes.Fields(lines[d.At[0].First-1])
	if len(words) == 0 {
		return ""
	}
	return clean(fmt.Appendf(nil, "%s failed with exit code %s%s (%s:%d)", bytes.ToUpper(words[0]), code[1], code[2], d.At[0].Source.Name, d.At[0].First))
}

// summary is the last line of a display: "built in 12.3s: 14 steps, 12 cached, 1 warning".
func summary(b *board, now time.Time, err error) string {
	c := b.counts()
	verb := "built in"
	switch {
	case err != nil && c.failed == 0 && isCanceled(err.Error()):
		verb = "canceled after"
	case err != nil:
		verb = "failed after"
	}
	parts := []string{plural(c.ended, "step")}
	if c.cached > 0 {
		parts = append(parts, fmt.Sprintf("%d cached", c.cached))
	}
	if c.failed > 0 {
		parts = append(parts, fmt.Sprintf("%d failed", c.failed))
	}
	if n := len(b.warnings); n > 0 {
		parts = append(parts, plural(n, "warning"))
	}
	took := now.Sub(b.began)
	at := seconds(took)
	if took < 100*time.Millisecond {
		at = fmt.Sprintf("%dms", max(took.Milliseconds(), 1))
	}
	return fmt.Sprintf("%s %s: %s", verb, at, strings.Join(parts, ", "))
}
