package engine

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/export"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/source"
	"github.com/strata-build/strata/store"
)

// Images lists the images of the store by name.
func (e *Engine) Images(ctx context.Context) ([]ImageInfo, error) {
	all, err := e.store.Images()
	if err != nil {
		return nil, err
	}
	out := make([]ImageInfo, 0, len(all))
	for _, im := range all {
		out = append(out, e.describe(im))
	}
	slices.SortFunc(out, func(a, b ImageInfo) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// InspectImage describes one image with its configurations.
func (e *Engine) InspectImage(ctx context.Context, name string) (*ImageInfo, error) {
	im, err := e.image(name)
	if err != nil {
		return nil, err
	}
	info := e.describe(im)
	set, err := export.FromStore(ctx, e.store, im.Name)
	if err != nil {
		return nil, err
	}
	defer set.Release()
	for i := range info.Platforms {
		info.Platforms[i].Config = set.Images[i].Config
	}
	return &info, nil
}

// image finds an image by its name, as short as the user likes, or by its ID or a prefix of it.
func (e *Engine) image(name string) (store.Image, error) {
	if ref, err := registry.ParseRef(name); err == nil {
		if im, err := e.store.Image(ref.String()); err == nil {
			return im, nil
		}
	}
	if im, err := e.store.Image(name); err == nil {
		return im, nil
	}
	all, err := e.store.Images()
	if err != nil {
		return store.Image{}, err
	}
	var names []string
	prefix := strings.TrimPrefix(name, "sha256:")
	for _, im := range all {
		if len(prefix) >= 4 && len(im.Platforms) > 0 && strings.HasPrefix(im.Platforms[0].Config.Encoded(), prefix) {
			return im, nil
		}
		names = append(names, im.Name, familiar(im.Name))
	}
	nf := diag.Errorf(diag.NotFound, "there is no image %s in the store", name)
	if near := diag.Suggest(name, names); near != "" {
		return store.Image{}, nf.WithHint("did you mean %s?", near)
	}
	return store.Image{}, nf.WithHint("list the images with: strata image ls")
}

// familiar is a name without what everybody takes for granted.
func familiar(name string) string {
	name = strings.TrimPrefix(strings.TrimPrefix(name, "docker.io/"), "library/")
	return strings.TrimSuffix(name, ":latest")
}

func (e *Engine) describe(im store.Image) ImageInfo {
	info := ImageInfo{Name: im.Name, Updated: im.Updated}
	if im.Index != nil {
		info.Digest = im.Index.Digest.String()
	}
	seen, counted := map[store.LayerID]bool{}, map[graph.Digest]bool{}
	for _, p := range im.Platforms {
		ip := ImagePlatform{Platform: p.Platform, ID: p.Config.String(), Layers: p.DiffIDs}
		for _, d := range p.Proofs {
			if t := d.Annotations[export.PredicateType]; t != "" {
				ip.Attestations = append(ip.Attestations, Attestation{t, d.Digest})
			}
		}
		for _, id := range p.Layers {
			l, err := e.store.Layer(id)
			if err != nil {
				continue // gone: Check names it
			}
			// A layer's files may be shared with other layers on disk; its tar tells what it holds.
			size := max(l.TarSize, l.Size)
			ip.Size += size
			if !seen[id] {
				seen[id] = true
				info.Size += size
			}
		}
		if len(p.Layers) == 0 { // loaded or pulled, and not unpacked yet
			for _, d := range p.Blobs {
				ip.Size += d.Size
				if !counted[d.Digest] {
					counted[d.Digest] = true
					info.Size += d.Size
				}
			}
		}
		if info.ID == "" {
			info.ID = ip.ID
		}
		if info.Digest == "" && p.Manifest != nil {
			info.Digest = p.Manifest.Digest.String()
		}
		info.Platforms = append(info.Platforms, ip)
	}
	return info
}

// RemoveImage removes a name. What it named goes when nothing else needs it.
func (e *Engine) RemoveImage(ctx context.Context, name string) error {
	im, err := e.image(name)
	if err != nil {
		return err
	}
	return e.store.Update(ctx, func(b *store.Batch) error {
		b.DeleteImage(im.Name)
		return nil
	})
}

// TagImage gives an image another name.
func (e *Engine) TagImage(ctx context.Context, src, dst string) error {
	im, err := e.image(src)
	if err != nil {
		return err
	}
	ref, err := registry.ParseRef(dst)
	if err != nil {
		return err
	}
	if ref.Digest != "" {
		return diag.Errorf(diag.Invalid, "%s: a name that is given must not have a digest", dst)
	}
	im.Name, im.Updated, im.Pulled, im.Made = ref.String(), time.Now(), false, true
	return e.store.Update(ctx, func(b *store.Batch) error {
		b.Image(im.Name, im)
		return nil
	})
}

// SaveImages writes images into one archive. Formats are those of export.Save; "" is docker-archive.
func (e *Engine) SaveImages(ctx context.Context, w io.Writer, names []string, format string) error {
	if format == "" {
		format = export.DockerArchive
	}
	full, err := e.names(names)
	if err != nil {
		return err
	}
	return export.Save(ctx, &export.Env{Store: e.store, Packer: e.packer, Registry: e.web}, full, format, w)
}

func (e *Engine) names(names []string) ([]string, error) {
	full := make([]string, len(names))
	for i, n := range names {
		im, err := e.image(n)
		if err != nil {
			return nil, err
		}
		full[i] = im.Name
	}
	return full, nil
}

// LoadImages reads an archive of images of any kind and returns their names.
func (e *Engine) LoadImages(ctx context.Context, r io.Reader) ([]string, error) {
	b := e.newBuild(ctx, JobOptions{Client: owner()})
	defer b.close()
	ims, err := b.images.Import(ctx, "", r, source.ImportOptions{})
	if err != nil {
		return nil, e.store.Explain(err)
	}
	names := map[string]bool{}
	for _, im := range ims {
		names[im.Name] = true
	}
	return slices.Sorted(maps.Keys(names)), nil
}

// ImportImage makes an image of a root file system's tar, or of the one image that an archive holds, under a name.
func (e *Engine) ImportImage(ctx context.Context, r io.Reader, opt ImportOptions) (*ImageInfo, error) {
	b := e.newBuild(ctx, JobOptions{Client: owner()})
	defer b.close()
	ims, err := b.images.Import(ctx, "", r, source.ImportOptions{Name: opt.Name, Platform: opt.Platform})
	if err != nil {
		return nil, e.store.Explain(err)
	}
	if len(ims) != 1 {
		return nil, diag.Errorf(diag.Invalid, "the archive holds %d images, and cannot become one", len(ims)).WithHint("load it with: strata image load")
	}
	im := ims[0]
	if len(opt.Changes) > 0 || opt.Message != "" {
		if err := b.change(ctx, im.Name, im.Platforms[0].Platform, opt); err != nil {
			return nil, errors.Join(err, e.RemoveImage(ctx, im.Name))
		}
		before := im.ID()
		if im, err = e.store.Image(im.Name); err != nil {
			return nil, err
		}
		// An intermediate manifest is not an image of its own.
		if err := e.store.Update(ctx, func(b *store.Batch) error { b.DeleteImage(string(before)); return nil }); err != nil {
			return nil, err
		}
	}
	info := e.describe(im)
	return &info, nil
}

// PushImage sends an image to the registry that its name names and returns the digest.
func (e *Engine) PushImage(ctx context.Context, name string, s session.Session, sink event.Sink) (string, error) {
	im, err := e.image(name)
	if err != nil {
		return "", err
	}
	env := &export.Env{Store: e.store, Packer: e.packer, Registry: e.client(s), Session: s, Events: sink}
	r, err := export.Push(ctx, env, im.Name)
	if err != nil {
		return "", err
	}
	return r.Metadata["containerimage.digest"], nil
}

func (e *Engine) client(s session.Session) *registry.Client {
	if s == nil {
		return e.web
	}
	return e.web.For(s.Credential)
}

// PullImage fetches an image for platforms (this machine's if there are none) and unpacks it.
func (e *Engine) PullImage(ctx context.Context, name string, ps []graph.Platform, s session.Session, sink event.Sink) (*ImageInfo, error) {
	ref, err := registry.ParseRef(name)
	if err != nil {
		return nil, err
	}
	b := e.newBuild(ctx, JobOptions{Client: owner(), Session: s, Sink: func(ev event.Event) {
		ev.Reason = "" // a pull always asks the registry; nobody wants to know why it is not cached
		sink.Emit(ev)
	}})
	defer b.close()
	if len(ps) == 0 {
		ps = []graph.Platform{Native()}
	}
	edges := make([]graph.Edge, len(ps))
	for i, p := range ps {
		edges[i].V = graph.New(&graph.Image{Ref: ref.String(), Mode: graph.ResolvePull}, nil, graph.On(p), graph.Named("pull %s", familiar(ref.String())), graph.NoCache)
	}
	if _, err := b.work.Solve(edges...); err != nil {
		return nil, err
	}
	im, err := b.hold.Image(ref.String())
	if err != nil {
		return nil, err
	}
	proofs, err := b.images.KeepProofs(ctx, ref, &im)
	if err != nil {
		return nil, err
	}
	if im.Pulled || proofs {
		im.Pulled = false // a person has named it
		if err := e.store.Update(ctx, func(b *store.Batch) error { b.Image(im.Name, im); return nil }); err != nil {
			return nil, err
		}
	}
	return e.InspectImage(ctx, ref.String())
}
