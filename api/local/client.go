package local

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
)

// Client is the engine of a root as another process sees it. Its methods are those of engine.Engine.
type Client struct{ path, exe string }

// Close ends the use of the client; the engine goes on.
func (c *Client) Close() error { return nil }

// invoke makes a call. A cancelled one ends when the server has cleaned up.
func (c *Client) invoke(ctx context.Context, in invocation) error {
	u, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: c.path, Net: "unix"})
	if err != nil {
		return diag.Errorf(diag.Unavailable, "the engine cannot be reached: %w", err)
	}
	k := newConn(u)
	defer k.close()
	arg, err := json.Marshal(in.arg)
	if err != nil {
		return err
	}
	if err := k.write(frameRequest, request{Method: in.method, Exe: c.exe, Arg: arg, Client: in.sess != nil}, in.files...); err != nil {
		return lost(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = k.write(frameCancel, nil) })
	defer stop()
	ended := make(chan struct{})
	defer close(ended)
	go k.resizes(in.resize, ended)
	a := &answer{s: in.sess, copies: map[string]chan error{}}
	for {
		f, err := k.read()
		if err != nil {
			return lost(err)
		}
		switch f.kind {
		case frameEvent:
			var e event.Event
			if err := json.Unmarshal(f.body, &e); err != nil {
				return lost(err)
			}
			in.sink.Emit(e)
		case frameAsk:
			var q ask
			if err := json.Unmarshal(f.body, &q); err != nil {
				return lost(err)
			}
			a.serve(ctx, k, q)
		case frameDone:
			var o outcome
			if err := json.Unmarshal(f.body, &o); err != nil {
				return lost(err)
			}
			if o.Error != nil && ctx.Err() != nil && o.Error.Kind == diag.Canceled {
				return context.Cause(ctx)
			}
			return o.into(in.out)
		}
	}
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

func lost(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return diag.Errorf(diag.Unavailable, "the engine ended in the middle of the call").
			WithHint("run the command again: steps that were finished are kept")
	}
	return diag.Errorf(diag.Unavailable, "the connection to the engine failed: %w", err)
}

// Ping returns the process id of the engine.
func (c *Client) Ping(ctx context.Context) (pid int, err error) {
	return pid, c.invoke(ctx, invocation{method: "ping", out: &pid})
}

// Stop ends an engine that is not in use.
func (c *Client) Stop(ctx context.Context) error { return c.invoke(ctx, invocation{method: "stop"}) }

// Build is engine.Engine.Build.
func (c *Client) Build(ctx context.Context, r engine.Request, s session.Session, sink event.Sink) (*engine.Response, error) {
	var out engine.Response
	return &out, c.invoke(ctx, invocation{method: "build", arg: r, out: &out, sess: s, sink: sink})
}

// Run is engine.Engine.Run. Streams that are files are passed on as they are, others through pipes.
func (c *Client) Run(ctx context.Context, r engine.RunRequest, s session.Session, sink event.Sink) (code int, err error) {
	a := runArg{RunRequest: r}
	var p pipes
	defer func() { err = errors.Join(err, p.finish()) }()
	if r.Stdin != nil {
		a.Has[0] = true
		if err := p.reader(r.Stdin); err != nil {
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
func (c *Client) Prune(ctx context.Context, p engine.PrunePolicy) (out []engine.Pruned, err error) {
	return out, c.invoke(ctx, invocation{method: "prune", arg: p, out: &out})
}

// Usage is engine.Engine.Usage.
func (c *Client) Usage(ctx context.Context) (out []engine.UsageItem, err error) {
	return out, c.invoke(ctx, invocation{method: "usage", out: &out})
}

// Check is engine.Engine.Check.
func (c *Client) Check(ctx context.Context, full, repair bool) (out []engine.Problem, err error) {
	return out, c.invoke(ctx, invocation{method: "check", arg: checkArg{full, repair}, out: &out})
}

// pipes passes streams of this process on. What is a file already is passed itself.
type pipes struct {
	pass []*os.File // for the call
	mine []*os.File // of pass: those to close when the call has ended
	wait []chan error
}

func (p *pipes) reader(r io.Reader) error {
	if f, ok := r.(*os.File); ok {
		p.pass = append(p.pass, f)
		return nil
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
