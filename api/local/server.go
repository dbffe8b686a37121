package local

import (
	"context"
	"encoding/json"
	"errors"
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
	Exe  string        // which program this is: another one's client asks it to end
	Log  *slog.Logger
}

// server is one engine and its callers.
type server struct {
	e   *engine.Engine
	opt ServeOptions

	mu    sync.Mutex
	calls int
	idle  *time.Timer
	end   context.CancelFunc
	wg    sync.WaitGroup
}

// Serve answers calls on a listener until ctx ends, Idle has passed without a call, or a client asks it to end. It returns
// when all calls have ended. The caller closes the engine.
func Serve(ctx context.Context, l *net.UnixListener, e *engine.Engine, opt ServeOptions) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	s := &server{e: e, opt: opt, end: end}
	if opt.Idle > 0 {
		s.idle = time.AfterFunc(opt.Idle, func() { s.retire() })
		defer s.idle.Stop()
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var err error
	for {
		var u *net.UnixConn
		if u, err = l.AcceptUnix(); err != nil {
			break
		}
		s.wg.Go(func() { s.serve(ctx, u) })
	}
	s.wg.Wait()
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// retire ends the server if nobody uses it.
func (s *server) retire() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls > 0 {
		return false
	}
	s.end()
	return true
}

func (s *server) count(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls += n
	if s.idle == nil {
		return
	}
	if s.calls > 0 {
		s.idle.Stop()
	} else {
		s.idle.Reset(s.opt.Idle)
	}
}

// serve answers one call.
func (s *server) serve(ctx context.Context, u *net.UnixConn) {
	c := newConn(u)
	defer c.close()
	if err := samePerson(u); err != nil {
		_ = c.write(frameDone, outcomeOf(0, nil, err))
		return
	}
	f, err := c.read()
	var req request
	if err != nil || f.kind != frameRequest || json.Unmarshal(f.body, &req) != nil {
		return
	}
	if req.Method == "stop" || req.Exe != "" && req.Exe != s.opt.Exe {
		stopped := s.retire()
		err := error(errReplaced)
		if !stopped {
			err = diag.Errorf(diag.Conflict, "the engine is in use").WithHint("wait until its builds have ended")
		}
		if stopped && req.Method == "stop" {
			err = nil
		}
		_ = c.write(frameDone, outcomeOf(0, nil, err))
		return
	}
	s.count(1)
	defer s.count(-1)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	call := &call{s: s, c: c, req: req, files: f.files, sizes: make(chan engine.WinSize, 1), waiting: map[int64]chan reply{}}
	defer call.closeFiles()
	go call.listen(cancel)
	v, err := call.run(ctx)
	_ = c.write(frameDone, outcomeOf(0, v, err)) // a client that is gone needs no answer
}

// errReplaced tells a client that the server it reached has ended in favour of the client's own program.
var errReplaced = &diag.Error{Kind: diag.Conflict, Msg: "replaced"}

// samePerson refuses callers of other users: the engine acts with its own user's rights.
func samePerson(u *net.UnixConn) error {
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if cerr != nil {
		return cerr
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return diag.Errorf(diag.Denied, "the engine belongs to another user")
	}
	return nil
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
