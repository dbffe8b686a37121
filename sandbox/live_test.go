package sandbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// begin starts a process and returns its end.
func begin(l *Live, p *Process) (started chan struct{}, end func() (*Exit, error)) {
	started = make(chan struct{})
	p.Started = func() { close(started) }
	if p.Env == nil {
		p.Env = []string{"PATH=/bin"}
	}
	return started, l.Start(p)
}

func live(t *testing.T, b *box, change func(*Spec)) *Live {
	spec := &Spec{RootFS: b.rootfs, Network: graph.NetworkNone}
	if change != nil {
		change(spec)
	}
	l := b.NewLive(t.Context(), spec)
	t.Cleanup(l.Close)
	return l
}

func TestLiveProcesses(t *testing.T) {
	b := newBox(t, "")
	l := live(t, b, func(s *Spec) {
		s.ExtraHosts = []graph.HostIP{{Host: "some.host", IP: "169.254.1.2"}}
		s.Mounts = []Mount{{Type: Tmpfs, Target: "/mem"}, {Type: Data, Target: "/secret", Data: []byte("x")}}
	})
	in, feed := io.Pipe()
	_, end := begin(l, &Process{Args: []string{"cat"}, Stdin: in})
	var out bytes.Buffer
	_, second := begin(l, &Process{Args: []string{"sh", "-c", "echo $A $HOME; pwd; cat; grep some /etc/hosts; exit 7"}, Env: []string{"PATH=/bin", "A=b"}, Cwd: "/mem", Stdin: strings.NewReader("in\n"), Stdout: &out})
	if exit, err := second(); err != nil || exit.Code != 7 || !strings.HasPrefix(out.String(), "b /root\n/mem\nin\n169.254.1.2") {
		t.Errorf("%+v, %v, %q", exit, err, out.String())
	}
	if _, err := l.Start(&Process{Args: []string{"nosuch"}, Env: []string{"PATH=/bin"}})(); diag.KindOf(err) != diag.Failed || !strings.Contains(err.Error(), "no such program") {
		t.Errorf("a missing program: %v", err)
	}
	if f, err := l.OpenMount("/"); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
	for _, target := range []string{"/mem", "/secret", "/none", ""} {
		if f, err := l.OpenMount(target); err == nil && target != "" {
			t.Errorf("%s can be read from outside", target)
			f.Close()
		}
	}
	feed.Close()
	if exit, err := end(); err != nil || exit.Code != 0 {
		t.Errorf("%+v, %v", exit, err)
	}
	if _, err := l.Start(&Process{Args: []string{"true"}})(); diag.KindOf(err) != diag.Failed {
		t.Errorf("after the end: %v", err)
	}
	noLeaks(t, b)
}

func TestLiveEndsWithFirst(t *testing.T) {
	b := newBox(t, "")
	l := live(t, b, nil)
	in, feed := io.Pipe()
	_, end := begin(l, &Process{Args: []string{"cat"}, Stdin: in})
	out, w := io.Pipe()
	_, second := begin(l, &Process{Args: []string{"sh", "-c", "echo up; exec sleep 1000"}, Stdout: w})
	out.Read(make([]byte, 10))
	feed.Close()
	if exit, err := second(); err != nil || exit.Code != 137 {
		t.Errorf("%+v, %v", exit, err)
	}
	if exit, err := end(); err != nil || exit.Code != 0 {
		t.Errorf("%+v, %v", exit, err)
	}
	noLeaks(t, b)
}

func TestLiveCloseAndSignals(t *testing.T) {
	b := newBox(t, "")
	l := live(t, b, nil)
	signals := make(chan syscall.Signal, 1)
	trap := "trap 'exit 99' HUP; echo ready; while :; do sleep 0.05; done"
	for range 2 { // the first process, and another one
		r, w := io.Pipe()
		if _, end := begin(l, &Process{Args: []string{"sh", "-c", trap}, Stdout: w, Signals: signals}); true {
			r.Read(make([]byte, 100))
			signals <- syscall.SIGHUP
			if exit, err := end(); err != nil || exit.Code != 99 {
				t.Errorf("%+v, %v", exit, err)
			}
		}
		l.Close()
		l = live(t, b, nil)
		started, _ := begin(l, &Process{Args: []string{"sleep", "1000"}})
		<-started
	}
	started, second := begin(l, &Process{Args: []string{"sleep", "1000"}})
	<-started
	l.Close()
	if _, err := second(); !errors.Is(err, context.Canceled) {
		t.Errorf("closed: %v", err)
	}
	if _, err := l.Start(&Process{Args: []string{"true"}})(); diag.KindOf(err) != diag.Canceled {
		t.Errorf("after Close: %v", err)
	}
	noLeaks(t, b)
}

func TestLiveTerminal(t *testing.T) {
	b := newBox(t, "")
	l := live(t, b, nil)
	for range 2 {
		in, feed := io.Pipe()
		out, w := io.Pipe()
		sizes := make(chan WinSize, 1)
		sizes <- WinSize{Rows: 40, Cols: 80}
		_, end := begin(l, &Process{Args: []string{"sh"}, Env: []string{"PATH=/bin", "PS1=> "}, TTY: true, Stdin: in, Stdout: w, Resize: sizes})
		expect := func(s string) {
			var got strings.Builder
			for buf := make([]byte, 1000); !strings.Contains(got.String(), s); {
				n, err := out.Read(buf)
				if err != nil {
					t.Fatalf("%v after %q", err, got.String())
				}
				got.Write(buf[:n])
			}
		}
		expect("> ")
		go io.WriteString(feed, "until stty size | grep '40 80'; do :; done; tty\n")
		expect("40 80")
		go io.Copy(io.Discard, out)
		io.WriteString(feed, "exit 5\n")
		if exit, err := end(); err != nil || exit.Code != 5 {
			t.Errorf("%+v, %v", exit, err)
		}
		l.Close()
		l = live(t, b, nil)
		started, _ := begin(l, &Process{Args: []string{"sleep", "1000"}})
		<-started
	}
}
