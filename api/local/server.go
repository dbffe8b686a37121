package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/event"
)

// ServeOptions say how long an engine is served.
type ServeOptions struct {
	Idle time.Duration // end after so long without a call; 0 = never
	Exe  string        // which program this is: another one's client asks it to end; "" = it stays
	Busy func() bool   // whether the engine serves others too, so that a client cannot end it now; nil = never
	Log  *slog.Logger
	// Stays is for an engine that somebody serves on purpose: daemon stop does not end it.
	Stays  bool
	Config string // path of the configuration that the engine has read, for clients that name one
	// Built is called when a build has ended; nil = nobody waits for that.
	Built func()
}

// server is one engine and its callers.
type server struct {
	e   *engine.Engine
	opt ServeOptions

	mu     sync.Mutex
	calls  int
	drain  bool // another program's client waits: end when the calls under way have ended
	ending bool // no call is taken any more
	idle   *time.Timer
	ended  context.Context // when ending began
	end    context.CancelFunc
	wg     sync.WaitGroup
}

// Serve answers calls on a listener until ctx ends, Idle has passed without a call, or a client asks it to end. It returns
// when all calls have ended; those that ctx ends fail. The caller closes the engine.
//
// A call that comes too late is not taken, and its client starts another engine, which waits for this one's end: the
// engine has said that it leaves before anybody can find out that the socket is no longer served.
func Serve(ctx context.Context, l *net.UnixListener, e *engine.Engine, opt ServeOptions) error {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	s := &server{e: e, opt: opt}
	s.ended, s.end = context.WithCancel(context.Background())
	defer s.end()
	if opt.Idle > 0 {
		s.idle = time.AfterFunc(opt.Idle, func() { s.retire() })
		defer s.idle.Stop()
	}
	calls, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() {
		cancel(errStopped)
		s.leave()
	})()
	defer context.AfterFunc(s.ended, func() { _ = l.Close() })()
	var err error
	for {
		var u *net.UnixConn
		if u, err = l.AcceptUnix(); err != nil {
			break
		}
		s.wg.Go(func() { s.serve(calls, u) })
	}
	s.leave()
	s.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// errStopped ends the calls of an engine that is told to stop by a signal.
var errStopped = diag.Errorf(diag.Unavailable, "the engine was stopped").WithHint("run the command again: steps that were finished are kept")

// leave ends the taking of calls.
func (s *server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaveLocked()
}

func (s *server) leaveLocked() {
	if !s.ending {
		s.ending = true
		s.e.Leave()
		s.end()
	}
}

// retire ends the server if nobody uses it.
func (s *server) retire() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls > 0 || s.opt.Busy != nil && s.opt.Busy() {
		return false
	}
	s.leaveLocked()
	return true
}

// begin takes a call, or reports false if the server is ending. A client of another program ends it, as soon as the calls
// under way have ended, and so do the clients that come after it: it returns when nothing is left to wait for. busy is
// called if that will take time.
func (s *server) begin(other bool, busy func()) bool {
	s.mu.Lock()
	s.drain = s.drain || other
	switch {
	case s.drain && s.calls == 0:
		s.leaveLocked()
	case s.drain && !s.ending:
		s.mu.Unlock()
		busy()
		<-s.ended.Done()
		return false
	}
	defer s.mu.Unlock()
	if s.ending {
		return false
	}
	s.calls++
	if s.idle != nil {
		s.idle.Stop()
	}
	return true
}

// finish ends a call that begin took.
func (s *server) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls--
	switch {
	case s.calls > 0:
	case s.drain:
		s.leaveLocked()
	case s.idle != nil:
		s.idle.Reset(s.opt.Idle)
	}
}

// serve answers one call.
func (s *server) serve(ctx context.Context, u *net.UnixConn) {
	c := newConn(u)
	defer c.close()
	if _, err := peer(u); err != nil {
		_ = c.write(frameDone, outcomeOf(0, nil, err))
		return
	}
	silent := context.AfterFunc(s.ended, func() { _ = u.CloseRead() }) // who says nothing does not hold the end up
	f, err := c.read()
	silent()
	var req request
	if err != nil || f.kind != frameRequest || json.Unmarshal(f.body, &req) != nil {
		return
	}
	call := &call{s: s, c: c, req: req, files: f.files, sizes: make(chan engine.WinSize, 1), waiting: map[int64]chan reply{}}
	defer call.closeFiles()
	if req.Method == "stop" {
		var err error
		if s.opt.Stays {
			err = diag.Errorf(diag.Conflict, "the engine is served by strata serve (process %d)", os.Getpid()).WithHint("end it with: kill %d", os.Getpid())
		} else if !s.retire() {
			err = diag.Errorf(diag.Conflict, "the engine is in use").WithHint("wait until its builds have ended")
		}
		_ = c.write(frameDone, outcomeOf(0, nil, err))
		return
	}
	begun := s.begin(s.opt.Exe != "" && req.Exe != "" && req.Exe != s.opt.Exe, func() {
		text := fmt.Sprintf("waiting for another version's builds to end (process %d)", os.Getpid())
		_ = c.write(frameEvent, event.Event{Kind: event.Message, Time: time.Now(), Text: text})
	})
	if !begun {
		return
	}
	if c.write(frameBegin, nil) != nil {
		s.finish()
		return
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go call.listen(cancel)
	v, err := call.run(ctx)
	if err != nil && context.Cause(ctx) == errStopped {
		err = errStopped
	}
	if req.Method == "build" && s.opt.Built != nil {
		s.opt.Built()
	}
	s.finish()                                   // who has the answer may stop the engine
	_ = c.write(frameDone, outcomeOf(0, v, err)) // a client that is gone needs no answer
}

// peer returns who is at the other end. Users other than the engine's own and root are refused, by both sides: the engine
// acts with its user's rights, and a client hands out secrets.
func peer(u *net.UnixConn) (*unix.Ucred, error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, err
	}
	if cerr == nil && cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return nil, diag.Errorf(diag.Denied, "the engine belongs to another user")
	}
	return cred, cerr
}

// call is one request being answered.
type call struct {
	s     *server
	c     *conn
	req   request
	files []*os.File

	sizes chan engine.WinSize // of the client's terminal; only the latest counts

	mu      sync.Mutex
	next    int64
	gone    bool
	waiting map[int64]chan reply
}

type reply struct {
	outcome
	files []*os.File
	err   error
}

// listen takes replies to callbacks, and cancels the call when the client asks for it or is gone.
func (k *call) listen(cancel context.CancelCauseFunc) {
	for {
		f, err := k.c.read()
		if err != nil || f.kind == frameCancel {
			cancel(context.Canceled)
		}
		if err != nil {
			break
		}
		if f.kind == frameResize {
			k.resize(f.body)
		}
		if f.kind != frameReply {
			continue
		}
		r := reply{files: f.files}
		r.err = json.Unmarshal(f.body, &r.outcome)
		k.mu.Lock()
		ch := k.waiting[r.ID]
		delete(k.waiting, r.ID)
		k.mu.Unlock()
		if ch != nil {
			ch <- r
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gone = true
	for _, ch := range k.waiting {
		ch <- reply{err: io.ErrUnexpectedEOF}
	}
	clear(k.waiting)
}

func (k *call) resize(body []byte) {
	var size engine.WinSize
	if json.Unmarshal(body, &size) != nil {
		return
	}
	select {
	case <-k.sizes: // not taken yet, and out of date
	default:
	}
	k.sizes <- size
}

// ask calls back.
func (k *call) ask(ctx context.Context, method, arg string, v any) ([]*os.File, error) {
	ch := make(chan reply, 1)
	k.mu.Lock()
	if k.gone {
		k.mu.Unlock()
		return nil, diag.Errorf(diag.Canceled, "the client has left")
	}
	k.next++
	id := k.next
	k.waiting[id] = ch
	k.mu.Unlock()
	if err := k.c.write(frameAsk, ask{ID: id, Method: method, Arg: arg}); err != nil {
		return nil, err
	}
	select {
	case r := <-ch:
		if r.err != nil {
			return nil, r.err
		}
		return r.files, r.into(v)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (k *call) sink(e event.Event) { _ = k.c.write(frameEvent, e) }

func (k *call) closeFiles() {
	for _, f := range k.files {
		_ = f.Close()
	}
}
