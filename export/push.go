package export

import (
	"context"
	"fmt"
	"io"
	"sync"

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

	complete bool // the repository has the manifest or index, and so all that it names
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
	if nondist(x.MediaType) && len(x.URLs) > 0 {
		return nil // it is at its maker's
	}
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

// layers sends the layers of a packed set.
func (t *target) layers(ctx context.Context, set *Set, p *packed) error {
	g, ctx := errgroup.WithContext(ctx)
	for i, im := range p.images {
		for _, x := range im.layers {
			g.Go(func() error { return t.blob(ctx, x, set.Images[i].Base) })
		}
	}
	return g.Wait()
}

// manifests sends what names the layers, once they are there: configurations, manifests, and the index under each tag.
func (t *target) manifests(ctx context.Context, p *packed, byDigest bool) error {
	top := p.root()
	for _, tag := range t.tags {
		defer t.env.step("pushing manifest for " + tag.String() + "@" + top.Digest.String())()
	}
	if !t.complete {
		g, gctx := errgroup.WithContext(ctx)
		for _, im := range p.images {
			for _, x := range append([]piece{im.config}, im.proofs...) {
				g.Go(func() error { return t.blob(gctx, x, nil) })
			}
		}
		if err := g.Wait(); err != nil {
			return err
		}
		packed := t.env.set(p, nil)
		for _, m := range packed.Manifests() {
			if m.Digest == top.Digest {
				continue
			}
			if _, err := t.env.Registry.PushManifest(ctx, t.repo.WithDigest(m.Digest), m.Data, m.MediaType); err != nil {
				return err
			}
		}
	}
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

// cannot says of an error which push failed.
func (t *target) cannot(err error) error {
	if err == nil || diag.KindOf(err) == diag.Canceled {
		return err
	}
	return &diag.Error{Kind: diag.KindOf(err), Msg: "cannot push " + t.tags[0].String() + ": " + err.Error(), Err: err}
}

// root returns the manifest or index that names the whole set.
func (p *packed) root() piece {
	if p.index != nil {
		return *p.index
	}
	return p.images[0].manifest
}

// push packs a set and sends it to every name. A layer that has to be compressed is sent as soon as that is done, while
// others are still at it. If nothing has to be compressed, the manifest is known at once, and a repository that has it
// has all that it names.
func (e *Env) push(ctx context.Context, set *Set, o packing, byDigest bool) (*packed, error) {
	targets, err := e.targets(o.Names)
	if err != nil {
		return nil, err
	}
	each := func(ctx context.Context, f func(context.Context, *target) error) error {
		g, ctx := errgroup.WithContext(ctx)
		for _, t := range targets {
			g.Go(func() error { return t.cannot(f(ctx, t)) })
		}
		return g.Wait()
	}
	known := e.packedBefore(set, &o)
	pushing := sync.OnceValue(func() func() { return e.step("pushing layers") })
	if !known {
		o.ready = func(ctx context.Context, im *Image, x piece) error {
			pushing()
			return each(ctx, func(ctx context.Context, t *target) error { return t.blob(ctx, x, im.Base) })
		}
	}
	p, err := e.pack(ctx, set, o)
	if err != nil {
		return nil, err
	}
	pushed := pushing()
	err = each(ctx, func(ctx context.Context, t *target) (err error) {
		if !known {
			return nil // they were sent as they were packed
		}
		t.complete, err = e.Registry.Exists(ctx, t.repo, p.root().Descriptor)
		if err != nil || t.complete {
			return err
		}
		return t.layers(ctx, set, p)
	})
	if err != nil {
		return nil, err
	}
	pushed()
	return p, each(ctx, func(ctx context.Context, t *target) error { return t.manifests(ctx, p, byDigest) })
}

// packedBefore reports whether the blobs of all layers are known.
func (e *Env) packedBefore(set *Set, o *packing) bool {
	for i := range set.Images {
		im := &set.Images[i]
		if im.Manifest != nil && o.keeps(im) {
			continue
		}
		reqs, err := e.requests(im, o, o.epoch(im))
		if err != nil {
			return false // pack will say why
		}
		for _, r := range reqs {
			if !e.Packer.packed(r) {
				return false
			}
		}
	}
	return true
}
