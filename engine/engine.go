package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"runtime"

	"github.com/strata-build/strata/export"
	"github.com/strata-build/strata/op"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/sandbox"
	"github.com/strata-build/strata/solve"
	"github.com/strata-build/strata/source"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// Options say where an engine keeps its state and what it may use. Only Root is required.
type Options struct {
	Root           string
	Log            *slog.Logger // for operators; nil = none
	Tenant         string       // part of every cache key
	MaxParallel    int          // steps at once; 0 = the number of processors, at least 4
	GCBytes        int64        // cap of the state; 0 = the store's own
	RegistryConfig string       // TOML file, see registry.LoadHosts; "" = none
	Runtime        string       // path or name of the OCI runtime; "" = runc
}

// Engine builds images. It owns its state root until it is closed. Its methods may be called at the same time.
type Engine struct {
	opt     Options
	log     *slog.Logger
	store   *store.Store
	indexes *tree.Indexes
	web     *registry.Client
	box     *sandbox.Sandbox
	steps   *swept // box, as steps use it
	puller  *source.Puller
	packer  *export.Packer
	files   *op.FileRunner
	execs   *op.ExecRunner
	solver  *solve.Solver[tree.Tree, *build]
	now     listeners // the builds under way
}

// Open takes the state root over. A root that another process owns is a diag.Conflict error.
func Open(ctx context.Context, opt Options) (*Engine, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if opt.MaxParallel <= 0 {
		opt.MaxParallel = max(4, runtime.NumCPU())
	}
	st, err := store.Open(opt.Root, store.Options{Log: opt.Log, MaxBytes: opt.GCBytes})
	if err != nil {
		return nil, err
	}
	e := &Engine{opt: opt, log: opt.Log, store: st}
	if err := e.plug(ctx); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// Close ends the ownership of the root. No method may be running.
func (e *Engine) Close() error {
	var err error
	if e.box != nil {
		err = e.box.Close()
	}
	if e.web != nil {
		e.web.Close()
	}
	return errors.Join(err, e.store.Close())
}

// id tells this engine's run-time state from that of engines of other roots.
func (e *Engine) id() string {
	sum := sha256.Sum256([]byte(e.store.Root()))
	return hex.EncodeToString(sum[:8])
}
