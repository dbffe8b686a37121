package source

import (
	"context"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/tree"
)

// PinBlob returns the digest of the blob, which its reference has to name.
func (im *Images) PinBlob(_ context.Context, op *graph.Blob) (graph.Digest, error) {
	if err := checkName(op.Filename); err != nil {
		return "", err
	}
	_, d, ok := strings.Cut(op.Ref, "@")
	if !ok || graph.Digest(d).Validate() != nil {
		return "", diag.Errorf(diag.Invalid, "%s: a blob is named by its digest: name@sha256:…", op.Ref)
	}
	return graph.Digest(d), nil
}

// FetchBlob makes a layer of one file of the blob: Filename, or the digest's hex digits. The draft is not committed.
func (im *Images) FetchBlob(ctx context.Context, op *graph.Blob, vertex graph.Digest) (*tree.Stack, error) {
	d, err := im.PinBlob(ctx, op)
	if err != nil {
		return nil, err
	}
	if err := im.haveBlob(ctx, op, d, vertex); err != nil {
		return nil, err
	}
	r, err := stored(ctx, im.store, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f := oneFile{name: op.Filename, mode: op.Mode, uid: op.UID, gid: op.GID}
	if f.name == "" {
		f.name = d.Encoded()
	}
	return f.make(ctx, im.env, r)
}

// haveBlob brings the blob into the store.
func (im *Images) haveBlob(ctx context.Context, op *graph.Blob, d graph.Digest, vertex graph.Digest) error {
	im.env.Hold.Blobs(d)
	if _, ok := im.store.HasBlob(d); ok {
		return nil
	}
	desc := image.Descriptor{Digest: d}
	var from provider
	if op.Layout {
		if im.env.Session == nil {
			return diag.Errorf(diag.NotFound, "%s: there is no client that has the layout", op.Ref)
		}
		dir, err := im.env.Session.Dir(ctx, op.Store)
		if err != nil {
			return err
		}
		a, err := im.archive(ctx, dir.Path)
		if err != nil {
			return err
		}
		from = blobs{a}
	} else {
		ref, err := registry.ParseRef(op.Ref)
		if err != nil {
			return err
		}
		if im.env.Registry == nil {
			return diag.Errorf(diag.NotFound, "%s: not in the store, and there is no registry to ask", ref)
		}
		if desc, err = im.env.Registry.Stat(ctx, ref, d); err != nil {
			return err
		}
		from = remote{im.env.Registry, ref}
	}
	return im.copyBlob(ctx, watchedProvider{from, &progress{sink: im.env.Progress, vertex: vertex, item: short(d), action: "downloading", total: desc.Size}}, desc)
}
