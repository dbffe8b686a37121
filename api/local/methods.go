package local

import (
	"context"
	"encoding/json"
	"os"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
)

// Arguments of the methods that take more than one.
type (
	tagArg  struct{ Src, Dst string }
	saveArg struct {
		Names  []string
		Format string
	}
	pullArg struct {
		Name      string
		Platforms []graph.Platform
	}
	checkArg       struct{ Full, Repair bool }
	pruneImagesArg struct {
		Until  time.Duration
		DryRun bool
	}
	runArg struct {
		engine.RunRequest
		Has [3]bool // which of stdin, stdout and stderr are passed
	}
)

// run does what the request asks for.
func (k *call) run(ctx context.Context) (any, error) {
	e := k.s.e
	var s session.Session
	if k.req.Client {
		s = remote{k}
	}
	sink := event.Sink(k.sink)
	switch k.req.Method {
	case "ping":
		return os.Getpid(), nil
	case "config":
		return k.s.opt.Config, nil
	case "build":
		return with(k, func(r engine.Request) (any, error) { return e.Build(ctx, r, s, sink) })
	case "run":
		return with(k, func(r runArg) (any, error) { return e.Run(ctx, k.streams(r), s, sink) })
	case "images":
		return e.Images(ctx)
	case "inspect":
		return with(k, func(name string) (any, error) { return e.InspectImage(ctx, name) })
	case "remove":
		return with(k, func(name string) (any, error) { return nil, e.RemoveImage(ctx, name) })
	case "tag":
		return with(k, func(a tagArg) (any, error) { return nil, e.TagImage(ctx, a.Src, a.Dst) })
	case "push":
		return with(k, func(name string) (any, error) { return e.PushImage(ctx, name, s, sink) })
	case "pull":
		return with(k, func(a pullArg) (any, error) { return e.PullImage(ctx, a.Name, a.Platforms, s, sink) })
	case "prune":
		return with(k, func(p engine.PrunePolicy) (any, error) { return e.Prune(ctx, p) })
	case "pruneimages":
		return with(k, func(a pruneImagesArg) (any, error) { return e.PruneImages(ctx, a.Until, a.DryRun) })
	case "usage":
		return e.Usage(ctx)
	case "check":
		return with(k, func(a checkArg) (any, error) { return e.Check(ctx, a.Full, a.Repair) })
	}
	return k.runFile(ctx)
}

// runFile does what works on one file that the client passed.
func (k *call) runFile(ctx context.Context) (any, error) {
	e := k.s.e
	if len(k.files) != 1 {
		return nil, diag.Errorf(diag.Invalid, "the engine has no method %q for %d files", k.req.Method, len(k.files))
	}
	f := k.files[0]
	switch k.req.Method {
	case "save":
		return with(k, func(a saveArg) (any, error) { return nil, e.SaveImages(ctx, f, a.Names, a.Format) })
	case "load":
		return e.LoadImages(ctx, f)
	case "import":
		return with(k, func(o engine.ImportOptions) (any, error) { return e.ImportImage(ctx, f, o) })
	}
	return nil, diag.Errorf(diag.Invalid, "the engine has no method %q", k.req.Method)
}

// with decodes the argument of a call.
func with[A any](k *call, f func(A) (any, error)) (any, error) {
	var a A
	if err := json.Unmarshal(k.req.Arg, &a); err != nil {
		return nil, diag.Errorf(diag.Invalid, "%s: %w", k.req.Method, err)
	}
	return f(a)
}

// streams gives a run the standard streams that came with the request.
func (k *call) streams(a runArg) engine.RunRequest {
	r, files := a.RunRequest, k.files
	r.Resize = k.sizes
	next := func(has bool) *os.File {
		if !has || len(files) == 0 {
			return nil
		}
		f := files[0]
		files = files[1:]
		return f
	}
	if f := next(a.Has[0]); f != nil {
		r.Stdin = f
	}
	if f := next(a.Has[1]); f != nil {
		r.Stdout = f
	}
	if f := next(a.Has[2]); f != nil {
		r.Stderr = f
	}
	return r
}
