package progress

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
)

var update = flag.Bool("update", false, "write the golden files")

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// player feeds a renderer with events at times that it counts itself.
type player struct {
	board  *board
	render renderer
	now    time.Time
}

func (p *player) at(ms int) *player {
	for p.now.Before(start.Add(time.Duration(ms) * time.Millisecond)) {
		p.now = p.now.Add(10 * time.Millisecond)
		p.render.tick(p.now)
	}
	return p
}

func (p *player) send(events ...event.Event) *player {
	for _, e := range events {
		e.Time = p.now
		p.render.show(p.now, e, p.board.apply(e))
	}
	return p
}

func id(n int) graph.Digest { return graph.Digest(fmt.Sprintf("sha256:%064d", n)) }

func planned(n int, name string) event.Event {
	return event.Event{Kind: event.Planned, Vertex: id(n), Name: name}
}
func started(n int) event.Event { return event.Event{Kind: event.Started, Vertex: id(n)} }
func logged(n int, text string) event.Event {
	return event.Event{Kind: event.Log, Vertex: id(n), Stream: 1, Data: []byte(text)}
}
func ended(n int) event.Event { return event.Event{Kind: event.Done, Vertex: id(n)} }
func hit(n int) event.Event   { return event.Event{Kind: event.Done, Vertex: id(n), Cached: true} }
func broke(n int, err string) event.Event {
	return event.Event{Kind: event.Done, Vertex: id(n), Error: err}
}

func moved(n int, item string, current, total int64) event.Event {
	return event.Event{Kind: event.Progress, Vertex: id(n), Item: item, Action: "downloading", Current: current, Total: total, Complete: current == total}
}

func newPlainPlayer() (*player, *bytes.Buffer) {
	var out bytes.Buffer
	b := newBoard(start)
	return &player{board: b, render: newPlain(b, &out), now: start}, &out
}

func newTerminalPlayer(t *testing.T, cols, rows int) (*player, *screen) {
	s := newScreen(t, cols, rows)
	b := newBoard(start)
	r := newTerminal(b, Options{Out: s, Color: true, Size: func() (int, int) { return s.cols, s.rows }})
	return &player{board: b, render: r, now: start}, s
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s\nwant:\n%s", name, got, want)
	}
}

// build is a build with a cached step, a download, two steps at once, a warning and a message.
func build(p *player) {
	p.send(planned(1, "[internal] load build definition from Dockerfile"), planned(2, "[base 1/2] FROM docker.io/library/debian:12"),
		planned(3, "[base 2/2] RUN apt-get update"), planned(4, "[build 1/2] COPY . /src"), planned(5, "[build 2/2] RUN make"))
	p.send(started(1)).at(40).send(ended(1))
	p.send(event.Event{Kind: event.Warn, Warning: &diag.Warning{Rule: "JSONArgsRecommended", Msg: "JSON arguments recommended for CMD"}})
	p.send(started(2), moved(2, "sha256:0123456789abcdef0123456789abcdef 45 MB", 0, 45e6))
	p.at(500).send(moved(2, "sha256:0123456789abcdef0123456789abcdef 45 MB", 20e6, 45e6))
	p.at(1500).send(moved(2, "sha256:0123456789abcdef0123456789abcdef 45 MB", 45e6, 45e6)).at(1600).send(ended(2))
	p.send(hit(4), started(3), started(5))
	p.at(1700).send(logged(3, "Get:1 http://deb.debian.org/debian\nGet:2 "), logged(5, "cc -c main.c\n"))
	p.at(1800).send(logged(3, "http://deb.debian.org/updates\n"), logged(5, "10%\r\x1b[31m50%\x1b[0m\r100%\nlinking\tapp\n"))
	p.send(event.Event{Kind: event.Message, Text: "using seccomp profile default"})
}

func TestPlain(t *testing.T) {
	p, out := newPlainPlayer()
	build(p)
	p.at(3000).send(logged(3, "no newline at the end")).at(3100).send(ended(3))
	p.at(4000).send(ended(5))
	p.render.finish(p.now, nil)
	golden(t, "plain.txt", out.String())
}

func TestPlainFailure(t *testing.T) {
	p, out := newPlainPlayer()
	build(p)
	p.at(2000).send(logged(5, "make: *** No targets.  Stop.\n"))
	p.at(2100).send(broke(5, "process \"/bin/sh -c make\" did not complete successfully: exit code: 2\nmore"))
	p.send(broke(3, "context canceled"))
	err := errors.New("process failed")
	p.render.finish(p.now, err)
	golden(t, "plain-failure.txt", out.String())
}

// Steps that print at the same time take turns of a second; none of their lines is torn or lost.
func TestPlainTurns(t *testing.T) {
	p, out := newPlainPlayer()
	p.send(planned(1, "one"), planned(2, "two"), started(1), started(2))
	want := map[string][]string{}
	for i := range 60 {
		p.at(i * 100)
		p.send(logged(1, fmt.Sprintf("a%d ", i)), logged(2, fmt.Sprintf("b%d ", i)))
		p.send(logged(1, "end\n"), logged(2, "end\n"))
		want["#1"] = append(want["#1"], fmt.Sprintf("a%d end", i))
		want["#2"] = append(want["#2"], fmt.Sprintf("b%d end", i))
	}
	p.send(ended(1), ended(2))
	p.render.finish(p.now, nil)
	got := map[string][]string{}
	switches, last := 0, ""
	for l := range strings.Lines(out.String()) {
		l = strings.TrimSuffix(l, "\n")
		n, rest, _ := strings.Cut(l, " ")
		if _, text, ok := strings.Cut(rest, " "); ok && strings.HasSuffix(text, "end") {
			got[n] = append(got[n], text)
			if n != last {
				switches++
			}
			last = n
		}
	}
	for n := range want {
		if strings.Join(got[n], "|") != strings.Join(want[n], "|") {
			t.Errorf("lines of %s: %q", n, got[n])
		}
	}
	if switches < 4 || switches > 8 {
		t.Errorf("%d switches in 6 s; want a turn of about one second each", switches)
	}
}

// Members of a group are one step that ends with its last member.
func TestGroup(t *testing.T) {
	p, out := newPlainPlayer()
	for i := 1; i <= 3; i++ {
		e := planned(i, "part")
		e.Group = "all parts"
		p.send(e)
	}
	p.send(started(1)).at(100).send(hit(2), ended(1)).at(200).send(started(3)).at(300).send(ended(3))
	p.render.finish(p.now, nil)
	if want := "#1 all parts\n#1 DONE 0.3s\n\nbuilt in 0.3s: 1 step\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestTerminal(t *testing.T) {
	p, s := newTerminalPlayer(t, 80, 24)
	build(p)
	p.at(2400)
	golden(t, "tty-running.txt", s.text())
	p.at(3100).send(ended(3)).at(4000).send(ended(5))
	p.render.finish(p.now, nil)
	golden(t, "tty-done.txt", s.text())
	if s.hidden || s.styled {
		t.Error("the cursor or a style was not given back")
	}
}

func TestTerminalDownload(t *testing.T) {
	p, s := newTerminalPlayer(t, 100, 24)
	p.send(planned(1, "FROM debian"), started(1))
	for i := range 7 {
		p.send(moved(1, fmt.Sprintf("sha256:%064x", i+1), 0, 100e6))
	}
	p.at(1000)
	for i := range 7 {
		p.send(moved(1, fmt.Sprintf("sha256:%064x", i+1), int64(i)*15e6, 100e6))
	}
	p.at(1050)
	golden(t, "tty-download.txt", s.text())
}

func TestTerminalFailure(t *testing.T) {
	p, s := newTerminalPlayer(t, 60, 24)
	build(p)
	p.at(2100).send(broke(5, "exit code: 2"), broke(3, "canceled"))
	p.render.finish(p.now, errors.New("exit code: 2"))
	golden(t, "tty-failure.txt", s.text())
	if f := p.board.failure(); f == nil || strings.Join(f.tail, "\n") != "cc -c main.c\n100%\nlinking app" {
		t.Errorf("tail of the failure: %+v", f)
	}
}

// The output of a step that failed stays in sight while others end, however much they say.
func TestTerminalFailureStays(t *testing.T) {
	p, s := newTerminalPlayer(t, 60, 16)
	p.send(planned(1, "[a 2/2] RUN make"), planned(2, "[b 2/2] RUN sleep 20"), started(1), started(2))
	for i := range 30 {
		p.send(logged(1, fmt.Sprintf("make says %d\n", i)))
	}
	p.at(500).send(broke(1, "exit code: 2"))
	for i := 10; i < 40; i++ {
		p.send(planned(i, fmt.Sprintf("[c %d/40] RUN other", i)), started(i)).at(600 + i*10).send(ended(i))
	}
	p.send(logged(2, "still here\n")).at(1500)
	golden(t, "tty-failing.txt", s.text())
	source := &diag.Source{Name: "Dockerfile", Data: []byte("FROM x\nrun make\n")}
	err := diag.Errorf(diag.Failed, "process %q did not complete successfully: exit code: 2", "make").WithSpan(source.Lines(2, 2))
	p.send(broke(2, "canceled"))
	p.render.finish(p.now, err)
	golden(t, "tty-failed.txt", s.text())
}

func TestHeadline(t *testing.T) {
	source := &diag.Source{Name: "app.Dockerfile", Data: []byte("FROM x\nRUN make\n")}
	for _, c := range []struct {
		err  error
		want string
	}{
		{diag.Errorf(diag.Failed, "process did not complete successfully: exit code: 139 (SIGSEGV)").WithSpan(source.Lines(2, 2)), "RUN failed with exit code 139 (SIGSEGV) (app.Dockerfile:2)"},
		{diag.Errorf(diag.Failed, "process did not complete successfully: exit code: 1"), ""},
		{diag.Errorf(diag.NotFound, "exit code: 1").WithSpan(source.Lines(2, 2)), ""},
		{diag.Errorf(diag.Failed, "exit code: 1").WithSpan(source.Lines(9, 9)), ""},
		{errors.New("exit code: 1"), ""},
		{nil, ""},
	} {
		if got := headline(c.err); got != c.want {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
}

// However small or odd the terminal, frames stay within it: the emulator fails the test when the cursor leaves it, and
// the live lines never fill more than the screen.
func TestTerminalSizes(t *testing.T) {
	for _, cols := range []int{1, 2, 5, 12, 20, 40, 200} {
		for _, rows := range []int{1, 2, 3, 5, 50} {
			p, _ := newTerminalPlayer(t, cols, rows)
			build(p)
			for i := 10; i < 40; i++ {
				p.send(planned(i, fmt.Sprintf("step %d 構築する 🚀", i)), started(i), logged(i, "日本語の長い行\tタブ\x1b]0;title\x07\x00 end\n"), moved(i, "x", 5, 10))
			}
			p.at(2300)
			if n := len(p.render.(*terminal).live); n > rows-1 {
				t.Errorf("%dx%d: %d live lines", cols, rows, n)
			}
			for i := 10; i < 40; i++ {
				p.send(ended(i))
			}
			p.render.finish(p.now, nil)
		}
	}
}

// After a resize, the old live lines are overwritten, wrapped or not: none stays behind.
func TestTerminalResize(t *testing.T) {
	p, s := newTerminalPlayer(t, 100, 24)
	p.send(planned(1, strings.Repeat("long name ", 9)), started(1), logged(1, strings.Repeat("log line ", 10)+"\n")).at(500)
	for _, cols := range []int{40, 25, 90, 61} {
		s.resize(cols)
		p.at(int(p.now.Sub(start).Milliseconds()) + 500)
		if n := strings.Count(s.text(), "Building"); n != 1 {
			t.Errorf("after a resize to %d columns, %d headers are on the screen:\n%s", cols, n, s.text())
		}
	}
}

// A frame is one write, there are at most 20 of them a second, and a quiet build's clock moves on.
func TestTerminalFrames(t *testing.T) {
	var w counter
	b := newBoard(start)
	p := &player{board: b, now: start, render: newTerminal(b, Options{Out: &w, Size: func() (int, int) { return 80, 24 }})}
	p.send(planned(1, "x"), started(1))
	for i := range 20 { // Display.loop ticks every 50 ms
		p.now = start.Add(time.Duration(i) * frame)
		p.send(logged(1, "line\nline\n"), logged(1, "line\n"))
		p.render.tick(p.now)
	}
	if w.n != 20 {
		t.Errorf("%d writes for 20 frames", w.n)
	}
	w.n = 0
	for i := range 20 {
		p.now = start.Add(time.Second + time.Duration(i)*frame)
		p.render.tick(p.now)
	}
	if w.n < 9 || w.n > 11 {
		t.Errorf("%d writes in a second in which nothing happened; want 10", w.n)
	}
}

type counter struct{ n int }

func (c *counter) Write(b []byte) (int, error) { c.n++; return len(b), nil }

func TestTerminalASCII(t *testing.T) {
	var out bytes.Buffer
	b := newBoard(start)
	p := &player{board: b, now: start, render: newTerminal(b, Options{Out: &out, ASCII: true, Size: func() (int, int) { return 80, 24 }})}
	build(p)
	p.at(2000).send(broke(5, "x"))
	p.render.finish(p.now, nil)
	for _, c := range out.Bytes() {
		if c > 0x7f {
			t.Fatalf("the display wrote byte %#x", c)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                         "plain",
		"\x1b[1;31mred\x1b[0m":          "red",
		"\x1b]8;;http://x\x1b\\link":    "link",
		"\x1b]0;title\x07after":         "after",
		"a\tb":                          "a       b",
		"bell\x07 and \x00nul\x7f":      "bell and nul",
		"bad \xff utf-8":                "bad \ufffd utf-8",
		"cut \x1b[3":                    "cut",
		"\x1b(Bcharset":                 "charset",
		"c1 \u009b31m":                  "c1 31m",
		"right-to-left \u202eoverride":  "right-to-left override",
		"trailing   ":                   "trailing",
		"\x1bPdevice control\x1b\\done": "done",
		"構築":                            "構築",
	} {
		if got := clean([]byte(in)); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestLines(t *testing.T) {
	var l lines
	var got []string
	for _, part := range []string{"a", "b\nc\r", "d\r\n", "\n", "x\ry\rz\n", "wait\r"} {
		got = append(got, l.feed([]byte(part))...)
	}
	if want := "ab|d||z"; strings.Join(got, "|") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if l.peek() != "wait" {
		t.Errorf("peek = %q", l.peek())
	}
	if s, ok := l.flush(); !ok || s != "wait" {
		t.Errorf("flush = %q, %v", s, ok)
	}
	if n := len(l.feed(bytes.Repeat([]byte("x"), 3*maxLine+1))); n != 3 {
		t.Errorf("an endless line was cut in %d pieces, want 3", n)
	}
}

func TestFormat(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-1: "0.0s", 1234 * time.Millisecond: "1.2s", 59960 * time.Millisecond: "0m59s", 123 * time.Second: "2m03s", 3723 * time.Second: "1h02m",
	} {
		if got := seconds(d); got != want {
			t.Errorf("seconds(%v) = %q, want %q", d, got, want)
		}
	}
	for n, want := range map[float64]string{0: "0B", 999: "999B", 1000: "1.00kB", 12345678: "12.3MB", 999.6e6: "1.00GB", 45e6: "45.0MB", 450e6: "450MB", 5e15: "5000TB"} {
		if got := size(n); got != want {
			t.Errorf("size(%v) = %q, want %q", n, got, want)
		}
	}
}

// lockedBuffer can be read while a display writes.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func TestDisplay(t *testing.T) {
	for _, mode := range Modes() {
		var out lockedBuffer
		d := New(Options{Mode: Mode(mode), Out: &out})
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				sink := d.Sink()
				sink.Emit(planned(i, fmt.Sprintf("step %d", i)))
				sink.Emit(started(i))
				for j := range 50 {
					sink.Emit(logged(i, fmt.Sprintf("line %d of %d\n", j, i)))
				}
				if i == 3 {
					sink.Emit(broke(i, "boom"))
				} else {
					sink.Emit(ended(i))
				}
			})
		}
		wg.Wait()
		d.Close(errors.New("boom"))
		if tail := d.Tail(); len(tail) != tailLines || tail[tailLines-1] != "line 49 of 3" {
			t.Errorf("%s: tail %q", mode, tail)
		}
		text := out.b.String()
		switch Mode(mode) {
		case Quiet:
			if text != "" {
				t.Errorf("quiet printed %q", text)
			}
		case RawJSON:
			n := 0
			for dec := json.NewDecoder(strings.NewReader(text)); dec.More(); n++ {
				var e event.Event
				if err := dec.Decode(&e); err != nil || e.Kind == "" {
					t.Fatalf("event %d: %+v, %v", n, e, err)
				}
			}
			if n != 8*53 || strings.Count(text, "\n") != n {
				t.Errorf("%d events on %d lines", n, strings.Count(text, "\n"))
			}
		case TTY:
			if !strings.Contains(text, "failed after") || !strings.Contains(text, "step 3") {
				t.Errorf("tty printed %q", text)
			}
		default:
			if !strings.Contains(text, "ERROR: boom") || !strings.Contains(text, "line 49 of 7") {
				t.Errorf("%s printed %q", mode, text)
			}
		}
	}
}

// What is no news stays out of the scroll-back; where the image is stands in it.
func TestTerminalQuiet(t *testing.T) {
	p, s := newTerminalPlayer(t, 30, 24)
	p.send(planned(1, "[internal] load build context"), planned(2, "[context go] load from client"), planned(3, "RUN a \\\n    && b"), planned(4, "exporting to image"))
	p.send(started(1), started(2), started(3)).at(60).send(ended(1)).at(700).send(ended(2)).at(800)
	if want := " ✔ [context go] load fr… 0.7s\n"; !strings.HasPrefix(s.text(), want) {
		t.Errorf("not only what took its time:\n%s", s.text())
	}
	if want := "\nBuilding 0.7s  2/4 steps\n ▸ RUN a \\ && b"; !strings.Contains(s.text(), want) {
		t.Errorf("the header is not cut between its parts:\n%s", s.text())
	}
	p.send(ended(3), started(4), event.Event{Kind: event.Progress, Vertex: id(4), Item: "naming to docker.io/library/app:1", Complete: true}, ended(4))
	p.render.finish(p.now, nil)
	if !strings.Contains(s.text(), "\n   → docker.io/library/app:1\n") {
		t.Errorf("the image's name is missing:\n%s", s.text())
	}
}

func TestSummaryOfAnInstant(t *testing.T) {
	b := newBoard(start)
	if got := summary(b, start.Add(12*time.Millisecond), nil); got != "built in 12ms: 0 steps" {
		t.Error(got)
	}
}
