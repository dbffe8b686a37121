package export

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
)

// uploads is how many blobs are sent to a registry at a time.
const uploads = 6

// target is a push to one repository, under any number of tags.
type target struct {
	env   *Env
	repo  registry.Ref // without tag
	tags  []registry.Ref
	slots chan struct{}
}

// targets groups names by repository: the blobs of one are sent once.
func (e *Env) targets(names []string) ([]*target, error) {
	if e.Registry == nil {
		return nil, diag.Errorf(diag.Invalid, "there is no registry to push to")
	}
	if len(names) == 0 {
		return nil, diag.Errorf(diag.Invalid, "an image needs a name to be pushed").WithHint("add name=REGISTRY/REPOSITORY:TAG")
	}
	var out []*target
	byRepo := map[string]*target{}
	slots := make(chan struct{}, uploads)
	for _, n := range names {
		ref, err := registry.ParseRef(n)
		if err != nil {
			return nil, err
		}
		t := byRepo[ref.Name()]
		if t == nil {
			t = &target{env: e, repo: registry.Ref{Host: ref.Host, Repo: ref.Repo}, slots: slots}
			byRepo[ref.Name()] = t
			out = append(out, t)
		}
		t.tags = append(t.tags, ref)
	}
	return out, nil
}

// from returns the repositories of the target's registry that may have the image's layers already.
func (t *target) from(base *image.Base) []string {
	if base == nil || base.Name == "" {
		return nil
	}
	ref, err := registry.ParseRef(base.Name)
	if err != nil || ref.Host != t.repo.Host {
		return nil
	}
	return []string{ref.Repo}
}

// blob sends one blob, if the registry has it neither there nor next door.
func (t *target) blob(ctx context.Context, x piece, base *image.Base) error {
	select {
	case t.slots <- struct{}{}:
		defer func() { <-t.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	report := event.Event{Kind: event.Progress, Vertex: t.env.Vertex, Action: "pushing", Item: fmt.Sprintf("pushing %s to %s", x.Digest, t.repo.Name()), Total: x.Size}
	t.env.Events.Emit(report)
	last := int64(0)
	_, err := t.env.Registry.Push(ctx, t.repo, registry.Upload{
		Desc: x.Descriptor,
		From: t.from(base),
		Open: func(offset int64) (io.ReadCloser, error) {
			r, err := t.env.open(ctx, x)
			if err != nil || offset == 0 {
				return r, err
			}
			if _, err := io.CopyN(io.Discard, r, offset); err != nil {
				return nil, fmt.Errorf("%w (and %w)", err, r.Close())
			}
			return r, nil
		},
		Progress: func(sent int64) {
			if sent-last >= 1<<20 || sent < last {
				last, report.Current = sent, sent
				t.env.Events.Emit(report)
			}
		},
	})
	if err != nil {
		return err
	}
	report.Current, report.Complete = x.Size, true
	t.env.Events.Emit(report)
	return nil
}

// finish sends what is left of the set once its layers are there: configurations, manifests, and the index under each tag.
func (t *target) finish(ctx context.Context, p *packed, byDigest bool) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, im := range p.images {
		for _, x := range append([]piece{im.config}, im.proofs...) {
			g.Go(func() error { return t.blob(gctx, x, nil) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	defer t.env.step("pushing manifest for " + t.repo.Name())()
	for _, m := range p.manifests() {
		if m.Digest == p.top.Digest {
			continue
		}
		if _, err := t.env.Registry.PushManifest(ctx, t.repo.WithDigest(m.Digest), m.data, m.MediaType); err != nil {
			return err
		}
	}
	top := p.root()
	refs := t.tags
	if byDigest {
		refs = []registry.Ref{t.repo.WithDigest(top.Digest)}
	}
	for _, ref := range refs {
		if _, err := t.env.Registry.PushManifest(ctx, ref, top.data, top.MediaType); err != nil {
			return err
		}
	}
	return nil
}

// root returns the manifest or index that names the whole set.
func (p *packed) root() piece {
	if p.index != nil {
		return *p.index
	}
	return p.images[0].manifest
}

// push packs a set and sends it to every name: each layer as soon as it is ready, while others are being compressed.
func (e *Env) push(ctx context.Context, set *Set, o packing, byDigest bool) (*packed, error) {
	targets, err := e.targets(o.Names)
	if err != nil {
		return nil, err
	}
	o.ready = func(ctx context.Context, im *Image, x piece) error {
		g, ctx := errgroup.WithContext(ctx)
		for _, t := range targets {
			g.Go(func() error { return t.blob(ctx, x, im.Base) })
		}
		return g.Wait()
	}
	p, err := e.pack(ctx, set, o)
	if err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, t := range targets {
		g.Go(func() error { return t.finish(gctx, p, byDigest) })
	}
	return p, g.Wait()
}
