package engine

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/export"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/op"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/sandbox"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/solve"
	"github.com/strata-build/strata/source"
	"github.com/strata-build/strata/span"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// openBox makes the sandbox. Nothing of it is used yet.
func (e *Engine) openBox() error {
	id, err := RootID(e.opt.Root)
	if err != nil {
		return err
	}
	e.runDir = filepath.Join(RunDir(), id)
	e.box, err = sandbox.New(sandbox.Options{
		Root: e.runDir, Binary: e.opt.Runtime, Network: e.opt.Network, Devices: e.devices(), Steps: e.opt.Steps, Guarded: e.opt.Guarded,
		OldRunc: e.opt.OldRuntime, Parents: e.opt.CgroupParents, Log: e.log, Warn: e.tellAll,
	})
	e.steps = &swept{box: e.box, log: e.log}
	return err
}

// plug makes what the engine is made of.
func (e *Engine) plug() error {
	hosts, err := e.hosts()
	if err != nil {
		return err
	}
	e.web = registry.New(registry.Config{Hosts: hosts, Log: e.log, AllowMetadata: e.opt.AllowMetadata})
	e.indexes = tree.NewIndexes(e.store.Root())
	e.puller = source.NewPuller(e.store)
	e.store.OnFailure(e.puller.Distrust)
	e.packer = export.NewPacker(e.store)
	e.files = &op.FileRunner{Store: e.store}
	e.execs = &op.ExecRunner{Store: e.store, Sandbox: e.steps, Live: e.steps.live}
	e.seals = &op.LayersRunner{Store: e.store, Generate: generate}
	e.solver = solve.New[tree.Tree, *build](runner{e}, results{e.store}, solve.Options{Parallel: e.opt.MaxParallel})
	return nil
}

// swept is the sandbox, from which what a dead owner of the root left is removed before the first step. That runs programs,
// so commands that run no step are spared it, unless an owner is known to have died.
type swept struct {
	box  *sandbox.Sandbox
	log  *slog.Logger
	once sync.Once
}

func (s *swept) sweep(ctx context.Context) {
	s.once.Do(func() {
		if err := s.box.Sweep(ctx); err != nil {
			s.log.Warn("what an earlier engine left could not all be removed", "err", err)
		}
	})
}

// Run implements sandbox.Runtime.
func (s *swept) Run(ctx context.Context, spec *sandbox.Spec) (*sandbox.Exit, error) {
	s.sweep(context.WithoutCancel(ctx))
	return s.box.Run(ctx, spec)
}

// live is op.ExecRunner.Live.
func (s *swept) live(ctx context.Context, spec *sandbox.Spec) *sandbox.Live {
	s.sweep(context.WithoutCancel(ctx))
	return s.box.NewLive(ctx, spec)
}

func (e *Engine) hosts() (map[string]registry.HostConfig, error) {
	if e.opt.RegistryConfig == "" {
		return e.opt.Registries, nil
	}
	return registry.LoadHosts(e.opt.RegistryConfig)
}

// runner plugs the kinds of vertices into the solver: the one list of them.
type runner struct{ e *Engine }

// Pin implements solve.Runner.
func (r runner) Pin(ctx context.Context, v *graph.Vertex, b *build) (solve.Pin, error) {
	if err := b.unseen(v); err != nil {
		return solve.Pin{}, err
	}
	switch o := v.Op.(type) {
	case *graph.Local:
		return solve.Pin{Volatile: true, Light: true}, nil
	case *graph.Image:
		d, err := b.images.Pin(ctx, o, v.Platform)
		return solve.Pin{Value: string(d), Complete: true, Light: true}, err
	case *graph.OCILayout:
		d, err := b.images.PinLayout(ctx, o, v.Platform)
		return solve.Pin{Value: string(d), Complete: true, Light: true}, err
	case *graph.Blob:
		d, err := b.images.PinBlob(ctx, o)
		return solve.Pin{Value: string(d), Light: true}, err
	case *graph.Git:
		p, err := b.git.Pin(ctx, o)
		return solve.Pin{Value: string(p), Light: true}, err
	case *graph.HTTP:
		p, err := b.http.Pin(ctx, o, v.ID)
		return solve.Pin{Value: string(p), Light: true}, err
	case *graph.Exec:
		return solve.Pin{Value: b.proxyOwner(o)}, nil
	case *graph.File, *graph.Merge, *graph.Diff, *graph.Squash, *graph.Layers, *graph.Passthrough:
		return solve.Pin{}, nil
	case *graph.Build:
		return solve.Pin{Volatile: true, Light: true}, nil
	}
	return solve.Pin{}, diag.Errorf(diag.Unsupported, "this engine cannot run %s", v.Op.Kind())
}

// Run implements solve.Runner.
func (r runner) Run(ctx context.Context, s *solve.Step[tree.Tree, *build]) ([]tree.Tree, error) {
	ctx, end := span.Start(span.Same(ctx, s.Env.ctx), s.V.Name)
	out, err := r.run(ctx, s)
	if err == nil {
		if err = r.sound(s); err != nil {
			discard(out)
			out = nil
		}
	}
	end(err)
	if rem, ok := errors.AsType[*op.Remains](err); ok {
		s.Env.keep(rem)
	}
	return out, r.e.store.Explain(err)
}

// sound fails if the disk has lost what a step has read, so that its result is not kept.
func (r runner) sound(s *solve.Step[tree.Tree, *build]) error {
	if r.e.store.Epoch() == 0 {
		return nil
	}
	for _, t := range s.In {
		if t == nil {
			continue
		}
		ids, ok := t.Layers()
		if err := r.e.store.Sound(ids...); err != nil {
			return err
		}
		if _, copied := s.Env.session.(session.Syncer); !ok && copied {
			if err := r.e.store.Since(s.Env.epoch); err != nil {
				return err
			}
		}
	}
	return nil
}

// discard gives up results that are not kept.
func discard(out []tree.Tree) {
	for _, t := range out {
		if s, ok := t.(*tree.Stack); ok {
			s.Discard()
		} else if t != nil {
			t.Release()
		}
	}
}

func (r runner) run(ctx context.Context, s *solve.Step[tree.Tree, *build]) ([]tree.Tree, error) {
	b := s.Env
	switch o := s.V.Op.(type) {
	case *graph.Local:
		return b.local(ctx, o, func(n int64, end bool) {
			s.Emit(event.Event{Kind: event.Progress, Item: "transferring " + o.Name + ":", Action: "transferring", Current: n, Complete: end})
		})
	case *graph.Image:
		layers, _, err := b.images.Fetch(ctx, o, s.V.Platform, s.V.ID)
		return r.stack(layers, err)
	case *graph.OCILayout:
		layers, err := b.images.FetchLayout(ctx, o, s.V.Platform, s.V.ID)
		return r.stack(layers, err)
	case *graph.Blob:
		return one(b.images.FetchBlob(ctx, o, s.V.ID))
	case *graph.Git:
		return one(b.git.Fetch(ctx, o, s.V.ID))
	case *graph.HTTP:
		return one(b.http.Fetch(ctx, o, s.V.ID))
	case *graph.Exec:
		via, err := b.proxyOf(s.V, o.Network)
		if err != nil {
			return nil, err
		}
		return r.e.execs.Run(ctx, o, s.In, op.ExecEnv{
			Session: sharedSecrets{s}, Proxy: via, Platform: s.V.Platform, Tenant: b.client.Tenant, Allowed: b.allowed, Devices: b.devicesOf, Keep: b.keepFailed,
			Renew: b.renews(s.V), Restore: b.caches.restoreMount, Source: b.caches.noteSource(ctx, s.V),
			Known: func(ctx context.Context, p *graph.Previous) ([]op.Known, error) { return b.known(ctx, p, s.V.Platform) },
			Log: func(stream int, data []byte) {
				s.Emit(event.Event{Kind: event.Log, Stream: stream, Data: data})
			},
		})
	case *graph.File:
		return r.e.files.Run(ctx, o, s.In, op.FileEnv{Keep: b.keepFailed, Changed: func(files string) {
			s.Emit(event.Event{Kind: event.Explained, Reason: "changed files: " + files})
		}})
	case *graph.Merge:
		return op.Merge(ctx, r.e.store, s.In)
	case *graph.Layers:
		return b.seal(ctx, s, o)
	case *graph.Squash:
		return op.Squash(ctx, r.e.store, s.In)
	case *graph.Diff:
		return op.Diff(ctx, r.e.store, s.In)
	case *graph.Passthrough:
		return op.Pass(ctx, r.e.store, o.Outs, s.In)
	case *graph.Build:
		return b.nested(ctx, s, o)
	}
	return nil, diag.Errorf(diag.Unsupported, "this engine cannot run %s", s.V.Op.Kind())
}

// local opens a directory of the client: nothing is read yet.
func (b *build) local(ctx context.Context, o *graph.Local, progress func(int64, bool)) ([]tree.Tree, error) {
	if b.session == nil {
		return nil, diag.Errorf(diag.NotFound, "the directory %q was asked for, but the build has no client", o.Name)
	}
	dir, o, err := b.localDir(ctx, o, progress)
	if err != nil {
		return nil, err
	}
	key := dir.Key
	if key == "" {
		key = dir.Path
	}
	return []tree.Tree{tree.NewLocal(b.e.indexes.Get(key), dir, o)}, nil
}

func (r runner) stack(layers []store.LayerID, err error) ([]tree.Tree, error) {
	if err != nil {
		return nil, err
	}
	return []tree.Tree{tree.NewStack(r.e.store, layers)}, nil
}

// one is the result of a vertex with a single output.
func one(t *tree.Stack, err error) ([]tree.Tree, error) {
	if err != nil {
		return nil, err
	}
	return []tree.Tree{t}, nil
}
