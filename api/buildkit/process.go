package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/graph"
)

// procs are the processes that one ExecProcess stream has started.
type procs struct {
	b      *bridge
	stream gateway.LLBBridge_ExecProcessServer
	wg     sync.WaitGroup
	all    map[string]*proc

	mu   sync.Mutex // of sending
	gone error      // why nothing can be sent any more
}

// maxProcs bounds the processes that one stream can start.
const maxProcs = 10_000

// ExecProcess runs processes in containers. One stream serves any number of them.
func (g bridgeServer) ExecProcess(stream gateway.LLBBridge_ExecProcessServer) error {
	b, err := g.bridgeOf(stream.Context())
	if err != nil {
		return err
	}
	ps := &procs{b: b, stream: stream, all: map[string]*proc{}}
	err = ps.receive()
	for _, p := range ps.all {
		p.stdin.close()
	}
	if err == nil { // no more is to come in, but processes may still have something to say
		ps.wg.Wait()
	}
	return err
}

// receive takes messages until the client sends no more.
func (ps *procs) receive() error {
	for {
		m, err := ps.stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := ps.take(m); err != nil {
			return err
		}
	}
}

func (ps *procs) take(m *gateway.ExecMessage) error {
	id := m.ProcessID
	if id == "" {
		return status.Error(codes.InvalidArgument, "ProcessID required")
	}
	p := ps.all[id]
	if init := m.GetInit(); init != nil {
		switch {
		case init.Meta == nil:
			return status.Error(codes.InvalidArgument, "process meta is required")
		case p != nil:
			return status.Errorf(codes.AlreadyExists, "Process %.200s already exists", id)
		case len(ps.all) >= maxProcs:
			return diag.Errorf(diag.Exhausted, "more than %d processes of one client", maxProcs)
		}
		return ps.start(id, init)
	}
	if p == nil {
		return status.Errorf(codes.NotFound, "IO for process %.200q not found", id)
	}
	switch x := m.Input.(type) {
	case *gateway.ExecMessage_File:
		return p.input(x.File)
	case *gateway.ExecMessage_Resize:
		replace(p.sizes, engine.TermSize{Rows: uint16(x.Resize.GetRows()), Cols: uint16(x.Resize.GetCols())})
	case *gateway.ExecMessage_Signal:
		n := unix.SignalNum("SIG" + x.Signal.GetName())
		if n == 0 {
			return status.Errorf(codes.InvalidArgument, "Unknown signal %.80s", x.Signal.GetName())
		}
		select {
		case p.signals <- n:
		default: // so many are waiting that this one is no news
		}
	}
	return nil
}

// replace puts the newest value into a channel of one.
func replace[T any](c chan T, v T) {
	for {
		select {
		case c <- v:
			return
		default:
		}
		select {
		case <-c:
		default:
		}
	}
}

// proc is one process.
type proc struct {
	ps      *procs
	id      string
	outputs []uint32 // that the client reads
	stdin   *inbox   // nil = empty
	sizes   chan engine.TermSize
	signals chan syscall.Signal
	started func()
}

// start starts a process and follows it to its end.
func (ps *procs) start(id string, init *gateway.InitMessage) error {
	box, err := ps.b.boxOf(init.ContainerID)
	if err != nil {
		return status.Error(codes.NotFound, err.Error())
	}
	p := &proc{ps: ps, id: id, sizes: make(chan engine.TermSize, 1), signals: make(chan syscall.Signal, 16)}
	p.started = sync.OnceFunc(func() {
		p.send(&gateway.ExecMessage{ProcessID: id, Input: &gateway.ExecMessage_Started{Started: &gateway.StartedMessage{}}})
	})
	var run engine.Process
	run.Args, run.Env, run.Cwd, run.User = init.Meta.Args, init.Meta.Env, init.Meta.Cwd, init.Meta.User
	run.TTY, run.Resize, run.Signals, run.Started = init.Tty, p.sizes, p.signals, p.started
	if box.os == "windows" { // of which there are only the settings
		run.Env = append(run.Env, `PATH=c:\Windows\System32;c:\Windows;C:\Windows\System32\WindowsPowerShell\v1.0`)
	}
	for _, fd := range init.Fds {
		switch fd {
		case 0:
			p.stdin = newInbox(func(n int) error { return ps.b.s.quota.take(ps.b.who(), share{requests: int64(n)}) })
			run.Stdin = p.stdin
		case 1, 2:
			out := output{p, fd}
			if fd == 1 {
				run.Stdout = out
			} else {
				run.Stderr = out
			}
			p.outputs = append(p.outputs, fd)
		default:
			return status.Errorf(codes.InvalidArgument, "a process has the descriptors 0 to 2 only, not %d", fd)
		}
	}
	for _, s := range init.Secretenv {
		run.SecretEnv = append(run.SecretEnv, graph.SecretEnv{ID: s.GetID(), Name: s.GetName(), Optional: s.GetOptional()})
	}
	ps.all[id] = p
	wait := refused(init, &run)
	if wait == nil {
		wait = box.Start(ps.stream.Context(), run)
	}
	box.runs.Add(1)
	ps.wg.Go(func() {
		exit, err := wait()
		box.runs.Add(-1)
		p.finish(exit, err)
	})
	return nil
}

// refused is the end of a process that asks for what there is not.
func refused(init *gateway.InitMessage, run *engine.Process) func() (*engine.Exit, error) {
	var err error
	switch init.Security {
	case pb.SecurityMode_SANDBOX:
	case pb.SecurityMode_INSECURE:
		run.Security = graph.SecurityInsecure
	default:
		err = diag.Errorf(diag.Invalid, "invalid security mode %d", init.Security)
	}
	for _, s := range run.SecretEnv {
		if s.ID == "" || s.Name == "" {
			err = diag.Errorf(diag.Invalid, "secret ID missing for %q environment variable", s.Name)
		}
	}
	if err == nil {
		return nil
	}
	return func() (*engine.Exit, error) { return nil, err }
}

// finish tells how the process ended.
func (p *proc) finish(exit *engine.Exit, err error) {
	p.started() // it has not, but clients wait for that first
	p.stdin.close()
	for _, fd := range p.outputs {
		p.send(&gateway.ExecMessage{ProcessID: p.id, Input: &gateway.ExecMessage_File{File: &gateway.FdMessage{Fd: fd, EOF: true}}})
	}
	end := &gateway.ExitMessage{}
	if err == nil && exit.Code != 0 {
		end.Code, err = uint32(exit.Code), exitError(exit)
	} else if err != nil {
		end.Code = gateway.UnknownExitStatus
	}
	if err != nil {
		end.Error = status.Convert(toStatus(err)).Proto()
	}
	p.send(&gateway.ExecMessage{ProcessID: p.id, Input: &gateway.ExecMessage_Exit{Exit: end}})
	p.send(&gateway.ExecMessage{ProcessID: p.id, Input: &gateway.ExecMessage_Done{Done: &gateway.DoneMessage{}}})
}

func exitError(exit *engine.Exit) error {
	text := fmt.Sprintf("exit code: %d", exit.Code)
	if exit.OOMKilled {
		text += " (out of memory)"
	}
	return diag.Errorf(diag.Failed, "%s", text)
}

// send sends a message, unless the client has gone.
func (p *proc) send(m *gateway.ExecMessage) {
	ps := p.ps
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.gone == nil {
		ps.gone = ps.stream.Send(m)
	}
}

// input takes what the client sends to a descriptor.
func (p *proc) input(f *gateway.FdMessage) error {
	if p.stdin == nil || f.GetFd() != 0 {
		return status.Errorf(codes.OutOfRange, "fd %d unavailable to write", f.GetFd())
	}
	return p.stdin.put(p.ps.stream.Context(), f.Data, f.EOF)
}

// output sends what a process writes. Writing never fails: the process goes on if nobody listens.
type output struct {
	p  *proc
	fd uint32
}

func (o output) Write(data []byte) (int, error) {
	o.p.started()
	o.p.send(&gateway.ExecMessage{ProcessID: o.p.id, Input: &gateway.ExecMessage_File{File: &gateway.FdMessage{Fd: o.fd, Data: data}}})
	return len(data), nil
}

// inbox is what a process has not read yet of its input. What comes after close is dropped.
type inbox struct {
	mu      sync.Mutex
	data    []byte
	ended   bool
	changed chan struct{}
	count   func(n int) error // counts bytes for the client; negative ones always succeed
}

// maxInbox is how many bytes wait for a process before its client has to.
const maxInbox = 4 << 20

func newInbox(count func(n int) error) *inbox {
	return &inbox{changed: make(chan struct{}), count: count}
}

// put adds data; it waits while there is too much of it.
func (b *inbox) put(ctx context.Context, data []byte, last bool) error {
	for {
		b.mu.Lock()
		if b.ended || len(b.data) < maxInbox {
			err := error(nil)
			if !b.ended {
				if err = b.count(len(data)); err == nil {
					b.data = append(b.data, data...)
					b.ended = last
					b.tell()
				}
			}
			b.mu.Unlock()
			return err
		}
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tell wakes who waits; the caller holds the lock.
func (b *inbox) tell() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// Read implements io.Reader.
func (b *inbox) Read(p []byte) (int, error) {
	for {
		b.mu.Lock()
		n := copy(p, b.data)
		if n > 0 || b.ended {
			b.data = b.data[n:]
			_ = b.count(-n)
			b.tell()
			b.mu.Unlock()
			if n == 0 && len(p) > 0 {
				return 0, io.EOF
			}
			return n, nil
		}
		changed := b.changed
		b.mu.Unlock()
		<-changed
	}
}

// close ends the input, of which the process reads no more.
func (b *inbox) close() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	_ = b.count(-len(b.data))
	b.data, b.ended = nil, true
	b.tell()
}
