package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/outfile"
	"github.com/strata-build/strata/session"
)

// Client is the engine of a root as another process sees it. Its methods are those of engine.Engine.
type Client struct {
	root, path string
	exe        string       // which program this is; "" = any serves
	args       []string     // of this program, to start an engine; nil = never
	say        func(string) // told what a call waits for; may be nil
}

// Close ends the use of the client; the engine goes on.
func (c *Client) Close() error { return nil }

// tries is how often a call looks for an engine. Each that is found to be ending is replaced.
const tries = 5

// invoke makes a call, with an engine that is started if there is none. A cancelled call ends when the server has cleaned
// up.
func (c *Client) invoke(ctx context.Context, in invocation) error {
	for try := 1; ; try++ {
		begun, err := c.call(ctx, in)
		if begun || err == nil || !errors.Is(err, errNone) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if c.args == nil || try == tries {
			return err
		}
		if err := c.start(ctx); err != nil {
			return err
		}
	}
}

// errNone is the cause of errors of calls that no engine took.
var errNone = errors.New("no engine took the call")

// call makes a call. Begun says that a server has taken it.
func (c *Client) call(ctx context.Context, in invocation) (begun bool, err error) {
	k, err := c.dial()
	if err != nil {
		return false, err
	}
	defer k.close()
	logged := c.logSize()
	arg, err := json.Marshal(in.arg)
	if err != nil {
		return false, err
	}
	if err := k.write(frameRequest, request{Method: in.method, Exe: c.exe, Arg: arg, Client: in.sess != nil}, in.files...); err != nil {
		return false, c.none(err)
	}
	var took atomic.Bool
	stop := context.AfterFunc(ctx, func() {
		if took.Load() {
			_ = k.write(frameCancel, nil)
			return
		}
		_ = k.u.CloseRead() // not taken yet: there is nothing to clean up
	})
	defer stop()
	ended := make(chan struct{})
	defer close(ended)
	go k.resizes(in.resize, ended)
	a := &answer{s: in.sess, copies: map[string]chan error{}, files: map[string]*outfile.File{}}
	defer a.abandon()
	for {
		f, err := k.read()
		switch {
		case err != nil && took.Load():
			return true, c.lost(err, k.pid(), logged)
		case err != nil:
			return false, c.none(err)
		case f.kind == frameBegin:
			took.Store(true)
			if ctx.Err() != nil { // the cancellation may have come before
				_ = k.write(frameCancel, nil)
			}
			continue
		}
		done, err := c.take(ctx, k, f, &in, a)
		if done || err != nil {
			return took.Load() || !errors.Is(err, errNone), err
		}
	}
}

// take deals with one frame of the server.
func (c *Client) take(ctx context.Context, k *conn, f frame, in *invocation, a *answer) (done bool, err error) {
	switch f.kind {
	case frameEvent:
		var e event.Event
		if err := json.Unmarshal(f.body, &e); err != nil {
			return true, unclear(err)
		}
		if in.sink == nil && e.Kind == event.Message && c.say != nil {
			c.say(e.Text)
		}
		in.sink.Emit(e)
	case frameAsk:
		var q ask
		if err := json.Unmarshal(f.body, &q); err != nil {
			return true, unclear(err)
		}
		a.serve(ctx, k, q)
	case frameDone:
		var o outcome
		if err := json.Unmarshal(f.body, &o); err != nil {
			return true, unclear(err)
		}
		if o.Error != nil && ctx.Err() != nil && o.Error.Kind == diag.Canceled {
			return true, context.Cause(ctx)
		}
		return true, o.into(in.out)
	}
	return false, nil
}

// dial connects to a server that this user may trust.
func (c *Client) dial() (*conn, error) {
	u, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: c.path, Net: "unix"})
	if err != nil {
		return nil, c.none(err)
	}
	if _, err := peer(u); err != nil {
		return nil, errors.Join(err, u.Close())
	}
	return newConn(u), nil
}

// none says why no engine took a call.
func (c *Client) none(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return diag.Errorf(diag.Denied, "the engine cannot be reached: %w", err)
	}
	return &diag.Error{Kind: diag.NotFound, Msg: fmt.Sprintf("no engine serves %s: %s", c.root, err), Err: errNone}
}

// lost says how a call ended whose engine has gone. Logged is where the engine's log ended before.
func (c *Client) lost(err error, pid int, logged int64) error {
	d := unclear(err)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
		d = diag.Errorf(diag.Unavailable, "the build engine (process %d) was killed or crashed; its log: %s", pid, logName(c.root)).
			WithHint("run the command again: steps that were finished are kept")
	}
	d.Log = c.logTail(logged)
	return d
}

// pid is the process at the other end, 0 if it is not known.
func (c *conn) pid() int {
	cred, err := peer(c.u)
	if err != nil {
		return 0
	}
	return int(cred.Pid)
}

func unclear(err error) *diag.Error {
	return diag.Errorf(diag.Unavailable, "the connection to the engine failed: %w", err)
}

// resizes sends the sizes of the caller's terminal until the call has ended.
func (c *conn) resizes(sizes <-chan engine.WinSize, ended <-chan struct{}) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok || c.write(frameResize, size) != nil {
				return
			}
		case <-ended:
			return
		}
	}
}

// serve answers a callback, without keeping events waiting for a slow one. Streams are opened in order.
func (a *answer) serve(ctx context.Context, k *conn, q ask) {
	reply := func() {
		v, files, err := a.do(ctx, q)
		_ = k.write(frameReply, outcomeOf(q.ID, v, err), files...)
		for _, f := range files {
			_ = f.Close()
		}
	}
	if q.Method == "output" {
		reply()
		return
	}
	go reply()
}

// invocation is one call.
type invocation struct {
	method string
	arg    any
	out    any // pointer to the result, or nil
	sess   session.Session
	sink   event.Sink
	files  []*os.File
	resize <-chan engine.WinSize
}

// Ping returns the process id of the engine.
func (c *Client) Ping(ctx context.Context) (pid int, err error) {
	return pid, c.invoke(ctx, invocation{method: "ping", out: &pid})
}

// Stop ends an engine that is not in use, and returns when its process has ended. It does nothing if there is none.
func (c *Client) Stop(ctx context.Context) error {
	k, err := c.dial()
	if err != nil {
		if errors.Is(err, errNone) {
			return nil
		}
		return err
	}
	defer k.close()
	cred, err := peer(k.u)
	if err != nil {
		return err
	}
	proc, perr := unix.PidfdOpen(int(cred.Pid), 0)
	if perr == nil {
		defer unix.Close(proc)
	}
	if _, err := c.call(ctx, invocation{method: "stop"}); err != nil && !errors.Is(err, errNone) {
		return err
	}
	for perr == nil && ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(proc), Events: unix.POLLIN}}, 100)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return nil
		}
	}
	return context.Cause(ctx)
}

// Config returns the path of the configuration that the engine has read.
func (c *Client) Config(ctx context.Context) (path string, err error) {
	return path, c.invoke(ctx, invocation{method: "config", out: &path})
}

// Build is engine.Engine.Build.
func (c *Client) Build(ctx context.Context, r engine.Request, s session.Session, sink event.Sink) (*engine.Response, error) {
	var out engine.Response
	return &out, c.invoke(ctx, invocation{method: "build", arg: r, out: &out, sess: s, sink: sink})
}

// Run is engine.Engine.Run. Output streams that are files are passed on as they are, others and the input through pipes.
func (c *Client) Run(ctx context.Context, r engine.RunRequest, s session.Session, sink event.Sink) (code int, err error) {
	a := runArg{RunRequest: r}
	var p pipes
	defer func() { err = errors.Join(err, p.finish()) }()
	if r.Stdin != nil {
		a.Has[0] = true
		// Never the file itself: a read of the user's terminal that the engine has begun would take what is typed after the run.
		if err := p.reader(struct{ io.Reader }{r.Stdin}); err != nil {
			return 0, err
		}
	}
	for i, w := range []io.Writer{r.Stdout, r.Stderr} {
		if w == nil {
			continue
		}
		a.Has[i+1] = true
		if err := p.writer(w); err != nil {
			return 0, err
		}
	}
	return code, c.invoke(ctx, invocation{method: "run", arg: a, out: &code, sess: s, sink: sink, files: p.pass, resize: r.Resize})
}

// Images is engine.Engine.Images.
func (c *Client) Images(ctx context.Context) (out []engine.ImageInfo, err error) {
	return out, c.invoke(ctx, invocation{method: "images", out: &out})
}

// InspectImage is engine.Engine.InspectImage.
func (c *Client) InspectImage(ctx context.Context, name string) (*engine.ImageInfo, error) {
	var out engine.ImageInfo
	return &out, c.invoke(ctx, invocation{method: "inspect", arg: name, out: &out})
}

// RemoveImage is engine.Engine.RemoveImage.
func (c *Client) RemoveImage(ctx context.Context, name string) error {
	return c.invoke(ctx, invocation{method: "remove", arg: name})
}

// TagImage is engine.Engine.TagImage.
func (c *Client) TagImage(ctx context.Context, src, dst string) error {
	return c.invoke(ctx, invocation{method: "tag", arg: tagArg{src, dst}})
}

// SaveImages is engine.Engine.SaveImages.
func (c *Client) SaveImages(ctx context.Context, w io.Writer, names []string, format string) (err error) {
	var p pipes
	defer func() { err = errors.Join(err, p.finish()) }()
	if err := p.writer(w); err != nil {
		return err
	}
	return c.invoke(ctx, invocation{method: "save", arg: saveArg{names, format}, files: p.pass})
}

// LoadImages is engine.Engine.LoadImages.
func (c *Client) LoadImages(ctx context.Context, r io.Reader) (names []string, err error) {
	var p pipes
	defer func() { err = errors.Join(err, p.finish()) }()
	if err := p.reader(r); err != nil {
		return nil, err
	}
	return names, c.invoke(ctx, invocation{method: "load", out: &names, files: p.pass})
}

// ImportImage is engine.Engine.ImportImage.
func (c *Client) ImportImage(ctx context.Context, r io.Reader, opt engine.ImportOptions) (info *engine.ImageInfo, err error) {
	var p pipes
	defer func() { err = errors.Join(err, p.finish()) }()
	if err := p.reader(r); err != nil {
		return nil, err
	}
	info = &engine.ImageInfo{}
	return info, c.invoke(ctx, invocation{method: "import", arg: opt, out: info, files: p.pass})
}

// PushImage is engine.Engine.PushImage.
func (c *Client) PushImage(ctx context.Context, name string, s session.Session, sink event.Sink) (digest string, err error) {
	return digest, c.invoke(ctx, invocation{method: "push", arg: name, out: &digest, sess: s, sink: sink})
}

// PullImage is engine.Engine.PullImage.
func (c *Client) PullImage(ctx context.Context, name string, ps []graph.Platform, s session.Session, sink event.Sink) (*engine.ImageInfo, error) {
	var out engine.ImageInfo
	return &out, c.invoke(ctx, invocation{method: "pull", arg: pullArg{name, ps}, out: &out, sess: s, sink: sink})
}

// Prune is engine.Engine.Prune.
func (c *Client) Prune(ctx context.Context, p engine.PrunePolicy) (*engine.PruneReport, error) {
	var out engine.PruneReport
	return &out, c.invoke(ctx, invocation{method: "prune", arg: p, out: &out})
}

// PruneImages is engine.Engine.PruneImages.
func (c *Client) PruneImages(ctx context.Context, until time.Duration, dryRun bool) (*engine.PruneReport, error) {
	var out engine.PruneReport
	return &out, c.invoke(ctx, invocation{method: "pruneimages", arg: pruneImagesArg{until, dryRun}, out: &out})
}

// Usage is engine.Engine.Usage.
func (c *Client) Usage(ctx context.Context) (out []engine.UsageItem, err error) {
	return out, c.invoke(ctx, invocation{method: "usage", out: &out})
}

// Check is engine.Engine.Check.
func (c *Client) Check(ctx context.Context, full, repair bool) (out []engine.Problem, err error) {
	return out, c.invoke(ctx, invocation{method: "check", arg: checkArg{full, repair}, out: &out})
}

// pipes passes streams of this process on. Files, and whatever is only written to, are passed themselves.
type pipes struct {
	pass []*os.File // for the call
	mine []*os.File // of pass: those to close when the call has ended
	wait []chan error
}

func (p *pipes) reader(r io.Reader) error {
	if f, ok := r.(*os.File); ok {
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			p.pass = append(p.pass, f)
			return nil
		}
		// A terminal or a pipe is read here: the engine could not take back a read that waits, and would go on to take input
		// that is meant for others after the call.
	}
	theirs, w, err := os.Pipe()
	if err != nil {
		return err
	}
	p.pass, p.mine = append(p.pass, theirs), append(p.mine, theirs)
	go func() { // the engine may not read to the end: then the write fails
		_, _ = io.Copy(w, r)
		_ = w.Close()
	}()
	return nil
}

func (p *pipes) writer(w io.Writer) error {
	if f, ok := w.(*outfile.File); ok {
		w = f.File
	}
	if f, ok := w.(*os.File); ok {
		p.pass = append(p.pass, f)
		return nil
	}
	r, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	p.pass, p.mine, p.wait = append(p.pass, theirs), append(p.mine, theirs), append(p.wait, done)
	go func() {
		_, err := io.Copy(w, r)
		done <- errors.Join(err, r.Close())
	}()
	return nil
}

// finish closes what was passed and waits until all output has arrived. The engine has closed its copies by then, or is
// about to.
func (p *pipes) finish() error {
	var err error
	for _, f := range p.mine {
		_ = f.Close()
	}
	for _, d := range p.wait {
		select {
		case e := <-d:
			err = errors.Join(err, e)
		case <-time.After(10 * time.Second):
			err = errors.Join(err, diag.Errorf(diag.Internal, "the engine keeps a stream open after the call"))
		}
	}
	return err
}
