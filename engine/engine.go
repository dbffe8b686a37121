package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/export"
	"github.com/strata-build/strata/op"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/sandbox"
	"github.com/strata-build/strata/solve"
	"github.com/strata-build/strata/source"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tracing"
	"github.com/strata-build/strata/tree"
)

// Options say where an engine keeps its state and what it may use. Only Root is required.
type Options struct {
	Root           string
	Log            *slog.Logger // for operators; nil = none
	MaxParallel    int          // steps at once; 0 = four for each processor, at least 16: steps wait for disks and networks more than they compute
	GCBytes        int64        // cap of the state; 0 = the store's own
	TenantBytes    int64        // cap of what one tenant of a daemon has in it; 0 = half of the state's, negative = none
	RegistryConfig string       // TOML file, see registry.LoadHosts; "" = none
	Registries     Registries   // in place of the file's
	Runtime        string       // path or name of the OCI runtime of all steps; "" = the built-in one, and runc for what that does not know
	Guarded        bool         // steps end with this process even if they are hostile, see sandbox.Helper
	OldRuntime     bool         // a runc with known ways out of its containers may be used
	CgroupParents  []string     // control groups that may be, or be above, the parent that a build names; "/" = any
	Network        NetworkConfig
	AllowMetadata  bool // sources may be at link-local addresses and metadata services; Network has this for steps
	Devices        DeviceOptions
	Steps          StepOptions
	Tracer         *tracing.Tracer
	ProvenanceEnv  map[string]any // what provenance tells of this builder besides
	Agent          string         // the User-Agent of http sources; "" = strata
	Frontend       Frontend       // for Dockerfiles in other languages; nil = they are refused
	Caches         CacheRules     // of the operator
	Serves         bool           // other processes can call this engine: who finds the root in use is told so
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
	seals   *op.LayersRunner
	solver  *solve.Solver[tree.Tree, *build]
	runDir  string
	now     listeners // the builds under way
	space   spaceWatch
	idle    idler
}

// InUse is in the error of Open if another process owns the root: it says which, and whether it can be called.
type InUse = store.LockedError

// Open takes the state root over. A root that another process owns is a diag.Conflict error; one whose owner is about to end
// is waited for.
func Open(ctx context.Context, opt Options) (*Engine, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if opt.MaxParallel <= 0 {
		opt.MaxParallel = max(16, 4*runtime.NumCPU())
	}
	e := &Engine{opt: opt, log: opt.Log, idle: idler{pause: idlePause}}
	if err := e.openBox(); err != nil {
		return nil, err
	}
	if err := e.openStore(ctx); err != nil {
		return nil, errors.Join(err, e.box.Close())
	}
	if err := claimRunDir(e.runDir, e.store.Root()); err != nil {
		return nil, errors.Join(diag.Errorf(diag.Unavailable, "the run-time state: %w", err), e.Close())
	}
	if err := sweepRunDirs(RunDir()); err != nil {
		e.log.Debug("cannot remove the run-time state of roots that are gone", "cause", err)
	}
	if err := e.plug(); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

const (
	traceGrace = 5 * time.Second        // how long the last spans may take to be sent
	patience   = time.Minute            // how long an owner that leaves may take to end
	grace      = 200 * time.Millisecond // how long the kernel may take to end one that was killed, which nothing shows at first
)

// openStore takes the root. What the steps of a dead owner left is removed before its layers are looked at.
func (e *Engine) openStore(ctx context.Context) error {
	opt := store.Options{Log: e.log, MaxBytes: e.opt.GCBytes, Serves: e.opt.Serves, Orphaned: func() { e.steps.sweep(ctx) }, Copy: copyLayer, DiffID: diffID, Differs: differs}
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		st, err := store.Open(e.opt.Root, opt)
		if err == nil {
			e.store = st
			return nil
		}
		held, ok := errors.AsType[*store.LockedError](err)
		waited := time.Since(start)
		switch {
		case !ok || waited > patience || !held.Leaving && waited > grace:
			return err
		case held.Serves && opt.Serves:
			return err // it can be called
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// NetworkConfig says what the network of steps is.
type NetworkConfig = sandbox.NetworkConfig

// StepOptions are how all steps are confined.
type StepOptions = sandbox.Steps

// Registries says how each registry is reached.
type Registries = map[string]registry.HostConfig

// Network says what the default network of steps is: bridge, cni, host or none.
func (e *Engine) Network() string { return string(e.box.Network()) }

// Leave says that this engine takes no more work and is about to be closed: who wants the root next waits for it.
func (e *Engine) Leave() { e.store.Leave() }

// Close ends the ownership of the root. No method may be running.
func (e *Engine) Close() error {
	e.Leave()
	e.idle.close()
	e.space.close()
	err := e.box.Close()
	if e.web != nil {
		e.web.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), traceGrace)
	defer cancel()
	dropRunDir(e.runDir) // while the root is this engine's
	return errors.Join(err, e.opt.Tracer.Close(ctx), e.store.Close())
}

// RootID tells the run-time state of a root, whatever it is called, from that of others.
func RootID(root string) (string, error) {
	real, err := realRoot(root)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(real))
	return hex.EncodeToString(sum[:8]), nil
}

// realRoot is the path of a root without symbolic links, whether the root exists already or not.
func realRoot(root string) (string, error) {
	abs, err := filepath.Abs(root)
	if err != nil {
		return "", err
	}
	missing := ""
	for dir := abs; ; dir = filepath.Dir(dir) {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			return filepath.Join(real, missing), nil
		}
		if dir == filepath.Dir(dir) {
			return abs, nil
		}
		missing = filepath.Join(filepath.Base(dir), missing)
	}
}

// RunDir is where run-time state goes: in memory, if the machine is set up as usual.
func RunDir() string {
	if os.Geteuid() == 0 {
		return "/run/strata"
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("strata-%d", os.Geteuid()))
}
