package op

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/sandbox"
)

// command runs the prepared step and judges how it ended.
func (s *execStep) command(ctx context.Context, rt sandbox.Runtime) error {
	log := &outputLog{sink: s.env.Log}
	s.spec.Stdout, s.spec.Stderr = stream{log, 1}, stream{log, 2}
	exit, err := rt.Run(ctx, &s.spec)
	if err != nil {
		return s.cannotRun(err, log)
	}
	if exit.Unclean != nil { // what the step made has something in it that is not its own
		err = exit.Unclean
	}
	good := s.op.ExitCodes
	if len(good) == 0 {
		good = []int{0}
	}
	if slices.Contains(good, exit.Code) {
		return err
	}
	name := strings.Join(s.op.Args, " ")
	d := diag.Errorf(diag.Failed, "process %q did not complete successfully: exit code: %d", name, exit.Code)
	switch {
	case exit.OOMKilled && exit.Signal == unix.SIGKILL:
		d = diag.Errorf(diag.Failed, "process %q was killed: out of memory", name).WithHint("give the step more memory, or let it use less")
	case exit.OOMKilled:
		d = d.WithHint("the kernel killed a process of the step: out of memory")
	case exit.Signal != 0:
		d.Msg += " (" + unix.SignalName(exit.Signal) + ")"
	}
	if s.store.Full() { // now: what the step wrote is about to go
		d = s.store.FullError(d)
	}
	d.Log = log.tail()
	if hint := s.advice(exit.Code, d.Log); hint != "" && d.Hint == "" {
		d = d.WithHint("%s", hint)
	}
	if exit.Unclean != nil {
		d.Msg += "\n" + exit.Unclean.Error()
	}
	return d
}

// noCommand is how shells say that they do not find a command: "sh: foo: not found", "bash: line 1: foo: command not found".
var noCommand = regexp.MustCompile(`(?:^|: )([^\s:]+): (?:command )?not found$`)

// advice is what may be wrong with a step that failed: a missing secret, or a command that does not exist.
func (s *execStep) advice(code int, log []string) string {
	var hints []string
	for _, id := range s.absent {
		hints = append(hints, fmt.Sprintf("the secret %q was not there: no --secret id=%s was given", id, id))
	}
	if code == noSuchCommand {
		name := "a command"
		for _, l := range log {
			if m := noCommand.FindStringSubmatch(l); m != nil {
				name = strconv.Quote(m[1])
			}
		}
		hints = append(hints, name+" is not in this image: install it, or check PATH or the script's #! line")
	}
	return strings.Join(hints, "\n")
}

// noSuchCommand is the exit code of shells that do not find a command.
const noSuchCommand = 127

// tellRequests lists in the step's output what it asked its proxy for.
func (s *execStep) tellRequests() {
	if s.env.Proxy == nil || s.env.Log == nil {
		return
	}
	var b bytes.Buffer
	for i, r := range s.env.Proxy.Requests() {
		if i == 0 {
			b.WriteString("proxy network requests:\n")
		}
		fmt.Fprintf(&b, "- %s %s -> %d\n", r.Method, r.URL, r.Status)
	}
	if b.Len() > 0 {
		s.env.Log(2, b.Bytes())
	}
}

// cannotRun adds to a failure of the sandbox what only the build knows: what was printed, and what machine was wanted.
func (s *execStep) cannotRun(err error, log *outputLog) error {
	d, ok := err.(*diag.Error) //nolint:errorlint // an outer error has its own message
	if !ok {
		return err
	}
	c := *d
	c.Log = log.tail()
	if arch := s.env.Platform.Architecture; strings.Contains(d.Msg, "exec format error") && arch != "" && arch != runtime.GOARCH {
		c.Hint = "this machine is " + runtime.GOARCH + " and the step is for " + arch + "; install QEMU's user emulation (binfmt_misc) to run it"
	}
	return &c
}

// tailLines is how much of the output an error shows.
const tailLines = 20

// tailBytes bounds what is kept of it; one line may be long.
const tailBytes = 16 << 10

// outputLog passes output on and keeps its end.
type outputLog struct {
	sink func(stream int, data []byte)
	mu   sync.Mutex
	kept []byte
}

// stream is one of a command's two outputs.
type stream struct {
	log *outputLog
	n   int
}

func (s stream) Write(p []byte) (int, error) {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	if s.log.sink != nil {
		s.log.sink(s.n, bytes.Clone(p))
	}
	s.log.kept = append(s.log.kept, p[max(0, len(p)-tailBytes):]...)
	if len(s.log.kept) > 2*tailBytes {
		s.log.kept = append(s.log.kept[:0], s.log.kept[len(s.log.kept)-tailBytes:]...)
	}
	return len(p), nil
}

// tail returns the last lines.
func (l *outputLog) tail() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.TrimRight(string(l.kept), "\r\n")
	if text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	lines = lines[max(0, len(lines)-tailLines):]
	for i, line := range lines {
		lines[i] = strings.ToValidUTF8(strings.TrimRight(line, "\r"), "\uFFFD")
	}
	return lines
}
