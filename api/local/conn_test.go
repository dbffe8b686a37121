package local

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/outfile"
	"github.com/strata-build/strata/session"
)

// pair is a connection: two ends of a socket.
func pair(t *testing.T) (a, b *conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	u, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	v, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	a, b = newConn(u), newConn(v)
	t.Cleanup(a.close)
	t.Cleanup(b.close)
	return a, b
}

// TestFramesKeepTheirFiles sends frames with and without descriptors from several goroutines: each arrives whole, with its own.
func TestFramesKeepTheirFiles(t *testing.T) {
	a, b := pair(t)
	const senders, each = 8, 20
	dir := t.TempDir()
	var wg sync.WaitGroup
	for n := range senders {
		wg.Go(func() {
			for m := range each {
				name := fmt.Sprintf("%d-%d", n, m)
				var files []*os.File
				for k := range m % 3 {
					f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%s-%d", name, k)))
					if err != nil {
						t.Error(err)
						return
					}
					defer f.Close()
					_, _ = fmt.Fprintf(f, "%s-%d", name, k)
					files = append(files, f)
				}
				if err := a.write(frameAsk, name+strings.Repeat(" ", 1000*m), files...); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range senders * each {
		f, err := b.read()
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSpace(strings.Trim(string(f.body), `"`))
		var m int
		if _, err := fmt.Sscanf(name[strings.Index(name, "-")+1:], "%d", &m); err != nil || f.kind != frameAsk || len(f.files) != m%3 {
			t.Errorf("frame %q with %d files: %v", name, len(f.files), err)
		}
		for k, file := range f.files {
			text, err := io.ReadAll(io.NewSectionReader(file, 0, 100))
			if want := fmt.Sprintf("%s-%d", name, k); err != nil || string(text) != want {
				t.Errorf("file %q of a frame that sent %q: %v", text, want, err)
			}
			_ = file.Close()
		}
	}
	wg.Wait()
}

// TestBadFrames refuses what is too long, is cut off, or promises descriptors that do not come.
func TestBadFrames(t *testing.T) {
	for want, bytes := range map[string][]byte{
		"too large":               binary.BigEndian.AppendUint32([]byte{frameAsk, 0}, maxFrame+1),
		"descriptors are missing": {frameAsk, 1, 0, 0, 0, 0},
		"EOF":                     {frameAsk, 0, 0, 0, 0, 9, 'x'},
	} {
		a, b := pair(t)
		if _, err := a.u.Write(bytes); err != nil {
			t.Fatal(err)
		}
		a.close()
		if _, err := b.read(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestOutcomes carries values and errors with all that a person needs of them.
func TestOutcomes(t *testing.T) {
	o := outcomeOf(3, []string{"a"}, nil)
	var v []string
	if err := o.into(&v); err != nil || len(v) != 1 || v[0] != "a" || o.ID != 3 {
		t.Errorf("%+v: %v %v", o, v, err)
	}
	src := &diag.Source{Name: "Dockerfile", Data: []byte("x\n")}
	cause := diag.Errorf(diag.Denied, "no: %w", io.ErrClosedPipe).WithHint("ask").WithSpan(src.Lines(1, 1))
	o = outcomeOf(4, nil, fmt.Errorf("outer: %w", cause))
	var d *diag.Error
	if err := o.into(nil); !errors.As(err, &d) || d.Kind != diag.Denied || d.Hint != "ask" || len(d.At) != 1 || d.Msg != "outer: no: io: read/write on closed pipe" || d.Err != nil {
		t.Errorf("%+v", d)
	}
	if o := outcomeOf(5, make(chan int), nil); o.Error == nil {
		t.Error("a value without JSON is no error")
	}
}

// files is a session whose outputs are files of a directory.
type files struct {
	session.Session
	dir string
}

func (s files) Output(_ context.Context, name string) (session.Output, error) {
	f, err := outfile.Create(filepath.Join(s.dir, name))
	return session.Output{File: f}, err
}

// TestOutputsAtTheSameTime opens, completes and gives up many outputs at once, as the exporters of one build do.
func TestOutputsAtTheSameTime(t *testing.T) {
	dir := t.TempDir()
	a := &answer{s: files{dir: dir}, copies: map[string]chan error{}, files: map[string]*outfile.File{}}
	var wg sync.WaitGroup
	for n := range 50 {
		wg.Go(func() {
			name := fmt.Sprint("out", n)
			v, fs, err := a.do(t.Context(), ask{ID: int64(n), Method: "output", Arg: name})
			if err != nil || len(fs) != 1 {
				t.Errorf("%s: %d files, %v", name, len(fs), err)
				return
			}
			_, _ = fs[0].WriteString(name)
			_ = fs[0].Close()
			end := []string{"closed", "aborted", ""}[n%3]
			if end == "" {
				return // the call fails before
			}
			if _, _, err := a.do(t.Context(), ask{Method: end, Arg: v.(output).ID}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	wg.Wait()
	a.abandon()
	for n := range 50 {
		text, err := os.ReadFile(filepath.Join(dir, fmt.Sprint("out", n)))
		if whole := n%3 == 0; whole != (err == nil) || whole && string(text) != fmt.Sprint("out", n) {
			t.Errorf("output %d: %q %v", n, text, err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 17 {
		t.Errorf("left: %v", left)
	}
	if _, _, err := a.do(t.Context(), ask{Method: "closed", Arg: "none"}); diag.KindOf(err) != diag.Internal || err == nil {
		t.Errorf("a stream that was never opened: %v", err)
	}
}
