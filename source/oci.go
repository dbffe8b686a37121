package source

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
)

// ResolveLayout finds an image in files of the client: an OCI layout or an archive of any kind, by op.Store, the session's
// name of the directory. Ref is name, name:tag or name@digest. A path below the directory may stand in front of the name:
// an archive that the context holds is "images.tar//name:tag".
func (im *Images) ResolveLayout(ctx context.Context, op *graph.OCILayout, p graph.Platform) (*Image, error) {
	if im.env.Session == nil {
		return nil, diag.Errorf(diag.NotFound, "%s: there is no client that has the layout", op.Ref)
	}
	dir, err := im.layoutDir(ctx, op, p)
	if err != nil {
		return nil, err
	}
	location, ref := dir.Path, op.Ref
	if below, name, ok := strings.Cut(ref, "//"); ok {
		if !filepath.IsLocal(below) {
			return nil, diag.Errorf(diag.Invalid, "%s leads out of its directory", below)
		}
		location, ref = filepath.Join(location, below), name
	}
	return im.ResolvePath(ctx, location, ref, p)
}

// layoutDir is the directory that a layout is in, or that it is brought to.
func (im *Images) layoutDir(ctx context.Context, op *graph.OCILayout, p graph.Platform) (session.Dir, error) {
	if s, ok := im.env.Session.(session.Layouts); ok && !strings.Contains(op.Ref, "//") {
		return s.Layout(ctx, op, p)
	}
	return im.env.Session.Dir(ctx, op.Store)
}

// ResolvePath is ResolveLayout for a path of this machine.
func (im *Images) ResolvePath(ctx context.Context, location, ref string, p graph.Platform) (*Image, error) {
	q := question{kind: "layout", ref: ref, store: location, platform: graph.FormatPlatform(graph.NormalizePlatform(p)) + p.OSVersion}
	return im.once(ctx, q, func() (*Image, error) {
		a, err := im.archive(ctx, location)
		if err != nil {
			return nil, err
		}
		all, err := a.Entries()
		if err != nil {
			return nil, diag.Errorf(diag.KindOf(err), "%s: %w", location, err)
		}
		e, err := archive.Pick(all, ref)
		if err != nil {
			return nil, diag.Errorf(diag.KindOf(err), "%s: %w", location, err)
		}
		return im.archived(ctx, a, e, p)
	})
}

// PinLayout is ResolveLayout followed by Image.Pin.
func (im *Images) PinLayout(ctx context.Context, op *graph.OCILayout, p graph.Platform) (graph.Digest, error) {
	img, err := im.ResolveLayout(ctx, op, p)
	if err == nil {
		err = im.proveLayers(ctx, img, op.LayerLimit)
	}
	if err != nil {
		return "", err
	}
	return img.Pin(op.LayerLimit), nil
}

// FetchLayout returns the layers of an image of the client's files, bottom first.
func (im *Images) FetchLayout(ctx context.Context, op *graph.OCILayout, p graph.Platform, vertex graph.Digest) ([]store.LayerID, error) {
	img, err := im.ResolveLayout(ctx, op, p)
	if err != nil {
		return nil, err
	}
	return im.Layers(ctx, img, op.LayerLimit, vertex)
}

// archive opens files once per build.
func (im *Images) archive(ctx context.Context, location string) (*archive.Archive, error) {
	release, err := im.locks.take(ctx, "archive "+location)
	if err != nil {
		return nil, err
	}
	defer release()
	im.mu.Lock()
	a := im.open[location]
	im.mu.Unlock()
	if a != nil {
		return a, nil
	}
	if a, err = archive.Open(ctx, location, nil, im.store.TempDir); err != nil {
		return nil, err
	}
	im.mu.Lock()
	im.open[location] = a
	im.mu.Unlock()
	return a, nil
}

// Close closes the archives that the build read.
func (im *Images) Close() {
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, a := range im.open {
		_ = a.Close()
	}
	clear(im.open)
}
