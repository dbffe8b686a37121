package progress

import (
	"encoding/json"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
)

// Mode is the kind of display.
type Mode string

const (
	Auto    Mode = "auto" // TTY on a terminal that can move its cursor, else Plain
	TTY     Mode = "tty"
	Plain   Mode = "plain"
	RawJSON Mode = "rawjson"
	Quiet   Mode = "quiet"
)

// Modes lists the values that --progress takes.
func Modes() []string {
	return []string{string(Auto), string(TTY), string(Plain), string(RawJSON), string(Quiet)}
}

// Options say where and how to show.
type Options struct {
	Mode Mode
	Out  io.Writer
	// Size returns the terminal's columns and rows; nil asks Out's file descriptor before every frame.
	Size func() (cols, rows int)
	// Color allows colours. ASCII avoids other characters.
	Color, ASCII bool
	Now          func() time.Time // nil = time.Now
}

// renderer shows a board. Its methods are called from one goroutine.
type renderer interface {
	// show takes an event that the board has taken already.
	show(now time.Time, e event.Event, c change)
	// tick is called some 20 times a second while the build runs.
	tick(now time.Time)
	// finish shows the rest and the summary; the display is not used again.
	finish(now time.Time, err error)
}

// Display shows one build. Close must be called.
type Display struct {
	now    func() time.Time
	board  *board
	render renderer
	wake   chan struct{}
	quit   chan struct{}
	ended  chan struct{}

	mu    sync.Mutex
	queue []event.Event
	err   error
}

// frame is the least time between two redraws.
const frame = 50 * time.Millisecond

// New starts a display.
func New(opt Options) *Display {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Size == nil {
		opt.Size = sizeOf(opt.Out)
	}
	d := &Display{
		now: opt.Now, board: newBoard(opt.Now()),
		wake: make(chan struct{}, 1), quit: make(chan struct{}), ended: make(chan struct{}),
	}
	switch resolve(opt) {
	case TTY:
		d.render = newTerminal(d.board, opt)
	case Plain:
		d.render = newPlain(d.board, opt.Out)
	case RawJSON:
		d.render = raw{json.NewEncoder(opt.Out)}
	default:
		d.render = quiet{}
	}
	go d.loop()
	return d
}

// resolve decides what Auto is.
func resolve(opt Options) Mode {
	if opt.Mode != Auto && opt.Mode != "" {
		return opt.Mode
	}
	f, ok := opt.Out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || os.Getenv("TERM") == "dumb" {
		return Plain
	}
	return TTY
}

func sizeOf(w io.Writer) func() (int, int) {
	return func() (int, int) {
		if f, ok := w.(*os.File); ok {
			if cols, rows, err := term.GetSize(int(f.Fd())); err == nil && cols > 0 && rows > 0 {
				return cols, rows
			}
		}
		return 80, 24
	}
}

// Sink returns the function that takes the build's events. It never blocks: a slow terminal does not slow the build.
func (d *Display) Sink() event.Sink {
	return func(e event.Event) {
		d.mu.Lock()
		d.queue = append(d.queue, e)
		d.mu.Unlock()
		select {
		case d.wake <- struct{}{}:
		default:
		}
	}
}

// Close shows what is left and the summary for a build that ended with err, and gives the terminal back.
func (d *Display) Close(err error) {
	d.err = err
	close(d.quit)
	<-d.ended
}

// Say puts a line of the program's own among the settled ones. It returns false, and does nothing, if the display draws no
// live lines that would be in the way of somebody who just prints it, or draws them no more.
func (d *Display) Say(text string) bool {
	select {
	case <-d.quit:
		return false
	default:
	}
	if _, draws := d.render.(*terminal); !draws {
		return false
	}
	d.Sink()(event.Event{Kind: event.Message, Time: d.now(), Text: text})
	return true
}

// Tail returns the last lines of the output of the step that failed. It may be called after Close.
func (d *Display) Tail() []string {
	if s := d.board.failure(); s != nil {
		return s.tail
	}
	return nil
}

func (d *Display) loop() {
	defer close(d.ended)
	ticker := time.NewTicker(frame)
	defer ticker.Stop()
	for {
		select {
		case <-d.wake:
			d.drain()
		case <-ticker.C:
			d.drain()
			d.render.tick(d.now())
		case <-d.quit:
			d.drain()
			d.render.finish(d.now(), d.err)
			return
		}
	}
}

func (d *Display) drain() {
	d.mu.Lock()
	queue := d.queue
	d.queue = nil
	d.mu.Unlock()
	for _, e := range queue {
		d.render.show(d.now(), e, d.board.apply(e))
	}
}

// raw prints one event per line.
type raw struct{ enc *json.Encoder }

// There is nobody to tell that the standard error stream cannot be written.
func (r raw) show(_ time.Time, e event.Event, _ change) { _ = r.enc.Encode(e) }
func (raw) tick(time.Time)                              {}
func (raw) finish(time.Time, error)                     {}

// quiet prints nothing.
type quiet struct{}

func (quiet) show(time.Time, event.Event, change) {}
func (quiet) tick(time.Time)                      {}
func (quiet) finish(time.Time, error)             {}

// warningText is a warning on one line: "FromAsCasing: 'as' and 'FROM' keywords' casing do not match (Dockerfile:1)".
func warningText(w diag.Warning) string {
	s := w.Msg
	if w.Rule != "" && !strings.HasPrefix(s, w.Rule) {
		s = w.Rule + ": " + s
	}
	if len(w.At) > 0 && w.At[0].Source != nil {
		s += " (" + w.At[0].String() + ")"
	}
	return clean([]byte(strings.ReplaceAll(s, "\n", " ")))
}
