package pack

import (
	"context"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/registry"
)

// uploads is how many blobs are sent to a registry at a time.
const uploads = 4

// AutoTag is the tag that stands for one made of the image's digest.
const AutoTag = "auto"

// fullNames normalises references, and makes the tags that follow from the digest.
func fullNames(names []string, d graph.Digest) ([]string, error) {
	var out []string
	for _, n := range names {
		ref, err := registry.ParseRef(n)
		if err != nil {
			return nil, err
		}
		if ref.Tag == AutoTag {
			ref.Tag = d.Encoded()[:32]
		}
		out = append(out, ref.String())
	}
	return out, nil
}

// push sends a set to the registries of its names. What a registry has already is neither sent nor made.
func (w *Workspace) push(ctx context.Context, set *archive.Set, from []*Image, r *Receipt) error {
	if w.opt.Registry == nil {
		return diag.Errorf(diag.Invalid, "there is no registry to push to")
	}
	if len(set.Names) == 0 {
		return diag.Errorf(diag.Invalid, "an image needs a name to be pushed").WithHint("add --tag REGISTRY/REPOSITORY:TAG")
	}
	for _, name := range set.Names {
		ref, err := registry.ParseRef(name)
		if err != nil {
			return err
		}
		if err := w.pushTo(ctx, set, mounts(from, ref), ref, r); err != nil {
			return err
		}
	}
	return nil
}

// mounts lists the repositories of the registry that have blobs of the images.
func mounts(from []*Image, to registry.Ref) []string {
	var out []string
	seen := map[string]bool{to.Repo: true}
	for _, im := range from {
		for _, l := range im.Layers {
			if l.at != nil && l.at.registry != nil && l.at.ref.Host == to.Host && !seen[l.at.ref.Repo] {
				seen[l.at.ref.Repo] = true
				out = append(out, l.at.ref.Repo)
			}
		}
	}
	return out
}

func (w *Workspace) pushTo(ctx context.Context, set *archive.Set, from []string, ref registry.Ref, r *Receipt) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(uploads)
	manifests := map[graph.Digest]bool{}
	for _, m := range set.Manifests() {
		manifests[m.Digest] = true
	}
	var mu sync.Mutex
	err := set.Blobs(func(b archive.Blob) error {
		if manifests[b.Digest] {
			return nil
		}
		g.Go(func() error {
			how, err := w.opt.Registry.Push(gctx, ref, registry.Upload{
				Desc: b.Descriptor, From: from,
				Open: func(offset int64) (io.ReadCloser, error) { return reader(gctx, b, offset) },
			})
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if how != registry.Uploaded {
				r.Kept += b.Size
				return nil
			}
			r.Sent += b.Size
			for i := range r.Layers {
				if r.Layers[i].Digest == b.Digest {
					r.Layers[i].Sent = true
				}
			}
			return nil
		})
		return nil
	})
	if werr := g.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		return err
	}
	for _, m := range set.Manifests() {
		to := ref.WithDigest(m.Digest)
		if m.Digest == set.Top.Digest {
			to = ref
		}
		if _, err := w.opt.Registry.PushManifest(ctx, to, m.Data, m.MediaType); err != nil {
			return err
		}
		r.Sent += int64(len(m.Data))
	}
	return nil
}

// reader turns what writes a blob into a reader of it.
func reader(ctx context.Context, b archive.Blob, offset int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	p := &pipe{PipeReader: pr, cancel: cancel}
	p.wg.Go(func() { pw.CloseWithError(b.Write(ctx, pw)) })
	if _, err := io.CopyN(io.Discard, p, offset); err != nil {
		_ = p.Close() // the first error matters
		return nil, err
	}
	return p, nil
}

type pipe struct {
	*io.PipeReader
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (p *pipe) Close() error {
	p.cancel()
	err := p.PipeReader.Close()
	p.wg.Wait()
	return err
}
