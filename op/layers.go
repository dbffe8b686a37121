package op

import (
	"context"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// Bounds of what a build may declare, for a whole image.
const (
	maxManifest   = 4 << 20  // bytes of image.json, a manifest or an index
	maxUnpacked   = 16 << 30 // bytes of the uncompressed layers
	maxEntries    = 1_000_000
	maxRatio      = 200
	ratioAbove    = 256 << 20 // bytes below which no ratio is too high
	parallelSeals = 2         // layers that are read at one time
)

// LayersRunner seals images whose layers a build has made itself: the graph.Layers vertices.
type LayersRunner struct {
	Store    *store.Store
	Generate Generator // nil: there are no generators
}

// Generator divides a root file system into layers, bottom first. done is called when the last of them has been written.
type Generator func(context.Context, GeneratorRequest) (layers []Generated, done func() error, err error)

// GeneratorRequest is what a generator works on.
type GeneratorRequest struct {
	Name    string
	Dir     string // the root file system, mounted read-only until done is called
	Options map[string]string
	Max     int // layers
	Epoch   *time.Time
	Known   []Known // layers of the earlier build, for stable names
}

// Generated is a layer of a generator. Write writes its uncompressed tar.
type Generated struct {
	Name, Key   string
	Annotations map[string]string
	Write       func(context.Context, io.Writer) error
}

// Known is a layer that need not be made again: of the earlier build's image, or of the base.
type Known struct {
	image.KnownLayer
	Annotations map[string]string // that a build gave to it

	ID    store.LayerID   // where it is unpacked; 0 = nowhere
	Below []store.LayerID // what it lies on there
	Fetch func(context.Context) (io.ReadCloser, error)
}

// LayersEnv is what a build gives to one sealing.
type LayersEnv struct {
	Platform graph.Platform
	Hold     *store.Hold                            // keeps what is made until the result is recorded; nil = until Run returns
	Tenant   string                                 // whose layers may be named by their digest alone
	Known    func(context.Context) ([]Known, error) // nil = none
	Warn     func(diag.Warning)
}

// Gone marks the error of a layer that was to be reused and is nowhere any more. Running the build's steps again helps.
type Gone struct{ Digest graph.Digest }

func (g *Gone) Error() string { return string(g.Digest) + " is gone" }

// Run verifies what the directory, the first input, declares, and returns the image's tree and a tree with the record
// image.SealedPath, whose layer is pending. Errors name the entry.
func (r *LayersRunner) Run(ctx context.Context, o *graph.Layers, in []tree.Tree, env LayersEnv) ([]tree.Tree, error) {
	if len(in) < 2 || o.Generator != "" && len(in) != 3 {
		return nil, diag.Errorf(diag.Invalid, "OUTPUT: %d inputs", len(in))
	}
	hold := env.Hold
	if hold == nil {
		hold = r.Store.Hold()
		defer hold.Release()
	}
	s := &sealing{LayersRunner: r, op: o, env: env, hold: hold, in: in}
	defer s.close()
	out, err := s.run(ctx)
	if err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "OUTPUT: %w", err)
	}
	return out, nil
}

// sealing is one run.
type sealing struct {
	*LayersRunner
	op    *graph.Layers
	env   LayersEnv
	hold  *store.Hold
	in    []tree.Tree
	dir   *outputDir
	known []Known
	undo  []func() error
}

func (s *sealing) close() {
	for _, f := range slices.Backward(s.undo) {
		_ = f() // a view that is not read any more
	}
}

// part is one layer on its way: where it comes from, and what is known of it so far.
type part struct {
	where string // "image.json layers[3]"
	decl  image.OutputLayer
	gen   func(context.Context, io.Writer) error
	known *Known
	only  bool // no other layer has files of the directory decl.Dir

	id      store.LayerID // it is in the store, and can lie on anything
	draft   *store.Draft
	applied *layer.Applied // nil: the draft needs nothing of what is below
	alone   bool           // the layer looks the same on whatever it lies
	info    store.LayerInfo
	blob    image.Descriptor // that was given; no digest = none
}

func (p *part) fail(err error) error {
	return diag.Errorf(diag.KindOf(err), "%s: %w", p.where, err)
}

func (s *sealing) run(ctx context.Context) ([]tree.Tree, error) {
	view, err := s.in[0].Open(ctx)
	if err != nil {
		return nil, err
	}
	s.undo = append(s.undo, view.Close)
	if s.dir, err = openOutput(view.Dir, s.op.Dir); err != nil {
		return nil, err
	}
	s.undo = append(s.undo, s.dir.Close)
	if s.env.Known != nil {
		if s.known, err = s.env.Known(ctx); err != nil {
			return nil, err
		}
	}
	parts, sealed, err := s.declared(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.findOverlaps(parts); err != nil {
		return nil, err
	}
	defer func() {
		for _, p := range parts {
			if p.draft != nil {
				p.draft.Discard()
			}
		}
	}()
	var base []store.LayerID
	if s.op.Mode == graph.LayersAppend {
		if base, err = stacked(s.in[1]); err != nil {
			return nil, err
		}
	}
	if n := len(base) + len(parts); n > s.op.Max {
		return nil, diag.Errorf(diag.Exhausted, "%d layers exceed max-layers=%d", n, s.op.Max).
			WithHint("put several parts of the image into one layer")
	}
	if err := s.prepare(ctx, parts); err != nil {
		return nil, err
	}
	stack := slices.Clone(base)
	for _, p := range parts {
		id, err := s.stack(ctx, p, stack)
		if err != nil {
			return nil, p.fail(err)
		}
		stack = append(stack, id)
		sealed.Layers = append(sealed.Layers, p.sealed(s.op.Epoch))
	}
	record, err := s.record(ctx, sealed)
	if err != nil {
		return nil, err
	}
	return []tree.Tree{tree.NewStack(s.Store, stack), record}, nil
}

// sealed describes a verified layer.
func (p *part) sealed(epoch *time.Time) image.SealedLayer {
	l := image.SealedLayer{Name: p.decl.Name, Key: p.decl.Key, Digest: p.info.DiffID, DiffID: p.info.DiffID, Size: p.info.TarSize, Annotations: p.decl.Annotations}
	if p.blob.Digest != "" {
		l.Digest, l.MediaType, l.Size = p.blob.Digest, p.blob.MediaType, p.blob.Size
	}
	text := "OUTPUT " + p.decl.Name
	if p.decl.Name == "" {
		text = "OUTPUT " + p.where
	}
	l.History = image.NewHistory(p.decl.History, text, epoch)
	return l
}

// prepare reads the parts, several at a time.
func (s *sealing) prepare(ctx context.Context, parts []*part) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelSeals)
	for _, p := range parts {
		g.Go(func() error {
			if err := s.read(ctx, p); err != nil {
				return p.fail(err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var bytes, files int64
	for _, p := range parts {
		bytes, files = bytes+p.info.TarSize, files+p.info.Files
	}
	switch {
	case bytes > maxUnpacked:
		return diag.Errorf(diag.Exhausted, "the layers hold %d bytes, more than %d", bytes, int64(maxUnpacked))
	case files > maxEntries:
		return diag.Errorf(diag.Exhausted, "the layers have %d entries, more than %d", files, maxEntries)
	}
	return nil
}

// byItself names the layer that a tar, or a blob of it, becomes if that looks the same on whatever it lies.
func (s *sealing) byItself(diffID, blob graph.Digest) graph.Digest {
	return digest.FromString("strata: the layer " + string(diffID) + " of " + string(blob) + " for " + s.env.Tenant)
}

// on names the layer that it becomes on a certain stack.
func (s *sealing) on(p *part, below []store.LayerID) graph.Digest {
	var b strings.Builder
	b.WriteString("strata: the layer " + string(p.info.DiffID) + " of " + string(p.blob.Digest) + " for " + s.env.Tenant + " on")
	for _, id := range below {
		b.WriteString(" " + id.String())
	}
	return digest.FromString(b.String())
}

// stack puts a layer on those below, and commits it if it is new.
func (s *sealing) stack(ctx context.Context, p *part, below []store.LayerID) (store.LayerID, error) {
	plain, err := s.plainRoot(below)
	if err != nil {
		return 0, err
	}
	if p.id != 0 && plain {
		return p.id, nil
	}
	if p.known != nil && p.known.ID != 0 && slices.Equal(p.known.Below, below) {
		return p.known.ID, nil
	}
	key := s.on(p, below)
	if id, err := s.hold.Chain(key); err == nil {
		return id, nil
	}
	if p.draft == nil {
		if err := s.unpackKnown(ctx, p); err != nil {
			return 0, err
		}
	}
	if err := s.fits(p, below); err != nil {
		return 0, err
	}
	if p.applied != nil && !(p.alone && plain) {
		if err := layer.Finish(ctx, p.draft.Dir, p.applied, s.dirs(below)); err != nil {
			return 0, err
		}
	}
	err = s.Store.Update(ctx, func(b *store.Batch) error {
		b.Layer(p.draft, p.info)
		if p.alone && plain {
			b.Chain(s.byItself(p.info.DiffID, p.blob.Digest), p.draft.ID)
		} else {
			b.Chain(key, p.draft.ID)
		}
		if p.blob.Digest != "" {
			b.Variant(p.info.DiffID, p.blob)
		}
		return nil
	})
	return p.draft.ID, err
}

func (s *sealing) dirs(ids []store.LayerID) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = s.Store.LayerDir(id)
	}
	return out
}

// plainRoot reports whether the root directory is root's with mode 0755, as every layer that is made here has it. Otherwise a
// layer has to take it over from below.
func (s *sealing) plainRoot(below []store.LayerID) (bool, error) {
	if len(below) == 0 {
		return true, nil
	}
	var st unix.Stat_t
	dir := s.Store.LayerDir(below[len(below)-1])
	if err := unix.Lstat(dir, &st); err != nil {
		return false, &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	return st.Mode&0o7777 == 0o755 && st.Uid == 0 && st.Gid == 0, nil
}

// fits checks what of a layer depends on those below: whiteouts hide something, and nothing is written through a symlink.
func (s *sealing) fits(p *part, below []store.LayerID) error {
	if p.applied == nil || p.known != nil {
		return nil
	}
	under := tree.NewStack(s.Store, below)
	defer under.Release()
	for _, w := range p.applied.Whiteouts {
		if _, _, ok := under.Lookup(w, false); !ok {
			return diag.Errorf(diag.Invalid, "%q: the whiteout hides nothing: no layer below has it", w)
		}
	}
	for _, d := range p.applied.ImpliedDirs {
		if _, fi, ok := under.Lookup(d, false); ok && !fi.IsDir() {
			return diag.Errorf(diag.Invalid, "%q: is a symlink or a file in the layers below, nothing can be written through it", d)
		}
	}
	return nil
}
