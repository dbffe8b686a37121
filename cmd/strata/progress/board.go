package progress

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
)

// state is where a step stands.
type state int

const (
	waiting state = iota
	running
	done
	cached
	canceled
	failed
)

// tailLines is how many lines of a step's output are kept for the live view and for the end of a failed build.
const tailLines = 20

// logLine is a line of a step's output. A line without text from an item is a transfer's.
type logLine struct {
	at   time.Duration // since the step began
	text string
}

// step is a vertex, or the vertices of one group.
type step struct {
	name      string
	group     bool
	members   int // planned or started vertices
	ended     int
	hits      int // members that were cached
	state     state
	began     time.Time
	spent     time.Duration
	err       string
	reason    string // why it was not cached, if that is worth telling
	tail      []string
	streams   [3]lines
	items     []*item
	announced int // plain: the step's number; 0 = not printed yet
	pending   []string
	closing   bool
}

// item is a transfer or another counted activity of a step.
type item struct {
	name, action   string
	current, total int64
	began, last    time.Time
	base           int64 // current when it began: what a resumed transfer had already
	done           bool
	printed        time.Time // plain: when its line was last printed
}

// rate is in units per second, over the life of the item.
func (it *item) rate() float64 {
	d := it.last.Sub(it.began).Seconds()
	if d < 0.2 {
		return 0
	}
	return float64(it.current-it.base) / d
}

// countable lists the actions whose numbers are counts; of all others they are bytes.
func (it *item) isBytes() bool {
	switch it.action {
	case "counting", "resolving", "scanning", "running":
		return false
	}
	return true
}

// board is what is known of a build.
type board struct {
	began    time.Time
	steps    []*step
	byVertex map[graph.Digest]*step
	byGroup  map[string]*step
	isDone   map[graph.Digest]bool
	warnings []diag.Warning
}

func newBoard(now time.Time) *board {
	return &board{
		began: now, byVertex: map[graph.Digest]*step{}, byGroup: map[string]*step{}, isDone: map[graph.Digest]bool{},
	}
}

// change is what an event did to the board: the step it was about, and the lines that became complete.
type change struct {
	step      *step
	lines     []logLine
	item      *item
	started   bool
	ended     bool
	explained bool // the step's reason was learned
	message   string
	warning   *diag.Warning
}

// apply takes one event.
func (b *board) apply(e event.Event) change {
	switch e.Kind {
	case event.Message:
		return change{message: clean([]byte(e.Text))}
	case event.Warn:
		if e.Warning != nil {
			b.warnings = append(b.warnings, *e.Warning)
		}
		return change{warning: e.Warning}
	case event.Planned:
		return change{step: b.plan(e)}
	case event.Started:
		return b.start(e)
	case event.Explained:
		s := b.plan(e)
		s.reason = e.Reason
		return change{step: s, explained: true}
	case event.Log:
		return b.log(e)
	case event.Progress:
		return b.progress(e)
	case event.Done:
		return b.end(e)
	}
	return change{}
}

func (b *board) plan(e event.Event) *step {
	if s := b.byVertex[e.Vertex]; s != nil {
		return s
	}
	var s *step
	if e.Group != "" {
		s = b.byGroup[e.Group]
	}
	if s == nil {
		// The lines of an instruction become one, without their indentation.
		name := strings.Join(strings.Fields(cmp.Or(e.Name, e.Group, shortDigest(string(e.Vertex)))), " ")
		s = &step{name: strings.TrimSpace(clean([]byte(name)))}
		if e.Group != "" {
			s.name, s.group = clean([]byte(e.Group)), true
			b.byGroup[e.Group] = s
		}
		b.steps = append(b.steps, s)
	}
	s.members++
	b.byVertex[e.Vertex] = s
	return s
}

func (b *board) start(e event.Event) change {
	s := b.plan(e)
	c := change{step: s}
	// A step that ended may run again: shared work whose first owner left.
	if b.isDone[e.Vertex] {
		delete(b.isDone, e.Vertex)
		s.ended--
	}
	if s.state != running {
		if s.began.IsZero() || s.state != waiting {
			s.began = e.Time
		}
		s.state, c.started = running, true
	}
	if s.reason, c.explained = "", e.Reason != "" && e.Reason != event.NeverRun; c.explained {
		s.reason = e.Reason
	}
	return c
}

func (b *board) log(e event.Event) change {
	s := b.plan(e)
	stream := &s.streams[min(max(e.Stream, 0), len(s.streams)-1)]
	c := change{step: s}
	for _, l := range stream.feed(e.Data) {
		c.lines = append(c.lines, s.keep(e.Time, l))
	}
	return c
}

// keep remembers a line for the tail.
func (s *step) keep(at time.Time, text string) logLine {
	if len(s.tail) == tailLines {
		s.tail = append(s.tail[:0], s.tail[1:]...)
	}
	s.tail = append(s.tail, text)
	if s.began.IsZero() {
		return logLine{text: text}
	}
	return logLine{at: max(at.Sub(s.began), 0), text: text}
}

func (b *board) progress(e event.Event) change {
	s := b.plan(e)
	i := slices.IndexFunc(s.items, func(it *item) bool { return it.name == e.Item && it.action == e.Action })
	if i < 0 {
		i = len(s.items)
		s.items = append(s.items, &item{name: e.Item, action: e.Action, began: e.Time, base: e.Current})
	}
	it := s.items[i]
	it.current, it.total, it.last, it.done = e.Current, cmp.Or(e.Total, it.total), e.Time, e.Complete
	return change{step: s, item: it}
}

func (b *board) end(e event.Event) change {
	s := b.plan(e)
	c := change{step: s}
	for i := range s.streams {
		if l, ok := s.streams[i].flush(); ok {
			c.lines = append(c.lines, s.keep(e.Time, l))
		}
	}
	if b.isDone[e.Vertex] {
		return c
	}
	b.isDone[e.Vertex] = true
	s.ended++
	if e.Cached {
		s.hits++
	}
	if e.Error != "" && s.err == "" {
		s.err = e.Error
	}
	if s.ended < s.members && s.err == "" {
		return c
	}
	c.ended = s.state <= running
	if !s.began.IsZero() {
		s.spent = e.Time.Sub(s.began)
	}
	switch {
	case isCanceled(s.err):
		s.state = canceled
	case s.err != "":
		s.state = failed
	case s.hits == s.members:
		s.state = cached
	default:
		s.state = done
	}
	return c
}

// isCanceled tells a step that was stopped from one that failed: an event has no more than the error's text.
func isCanceled(err string) bool {
	return strings.HasPrefix(err, "canceled") || strings.HasSuffix(err, "context canceled")
}

// counts are the numbers of the header.
type counts struct{ total, ended, cached, running, failed int }

func (b *board) counts() counts {
	c := counts{total: len(b.steps)}
	for _, s := range b.steps {
		switch s.state {
		case running:
			c.running++
		case cached:
			c.cached++
			c.ended++
		case done:
			c.ended++
		case failed:
			c.failed++
			c.ended++
		}
	}
	return c
}

// failure is the first step that failed, or nil.
func (b *board) failure() *step {
	for _, s := range b.steps {
		if s.state == failed {
			return s
		}
	}
	return nil
}

func shortDigest(s string) string {
	_, hex, ok := strings.Cut(s, ":")
	if !ok || len(hex) < 12 {
		return s
	}
	return hex[:12]
}
