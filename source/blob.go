package source

import (
	"context"
	"io"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/tree"
)

// PinBlob returns the digest of the blob, which its reference has to name.
func (im *Images) PinBlob(ctx context.Context, op *graph.Blob) (graph.Digest, error) {
	if err := checkName(op.Filename); err != nil {
		return "", err
	}
	_, name, ok := strings.Cut(op.Ref, "@")
	d := graph.Digest(name)
	if !ok || d.Validate() != nil {
		return "", diag.Errorf(diag.Invalid, "%s: a blob is named by its digest: name@sha256:…", op.Ref)
	}
	return d, im.mayReadBlob(ctx, op, d)
}

// mayReadBlob makes sure that the client itself could read a blob: what others have made of it may be used then.
func (im *Images) mayReadBlob(ctx context.Context, op *graph.Blob, d graph.Digest) error {
	if im.env.Client.Owner {
		return nil
	}
	if op.Layout {
		from, err := im.layoutBlobs(ctx, op)
		if err != nil {
			return err
		}
		return im.prove(ctx, from, image.Descriptor{Digest: d})
	}
	ref, err := registry.ParseRef(op.Ref)
	if err != nil {
		return err
	}
	return im.mayRead(ctx, ref, d, func() error {
		_, err := im.env.Registry.Stat(ctx, ref, d)
		return err
	})
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
	if _, ok := im.store.HasBlob(d); ok && im.env.Client.Owner {
		return nil
	}
	desc := image.Descriptor{Digest: d}
	var from provider
	if op.Layout {
		var err error
		if from, err = im.layoutBlobs(ctx, op); err != nil {
			return err
		}
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

// layoutBlobs is where the blobs of a layout of the client are.
func (im *Images) layoutBlobs(ctx context.Context, op *graph.Blob) (provider, error) {
	switch s := im.env.Session.(type) {
	case nil:
		return nil, diag.Errorf(diag.NotFound, "%s: there is no client that has the layout", op.Ref)
	case session.Layouts:
		return inSession{s, op, im.env.Client}, nil
	}
	dir, err := im.env.Session.Dir(ctx, op.Store)
	if err != nil {
		return nil, err
	}
	a, err := im.archive(ctx, dir.Path)
	return blobs{a, im.env.Client}, err
}

// inSession is a store of content on another machine.
type inSession struct {
	s      session.Layouts
	op     *graph.Blob
	client session.Client
}

func (s inSession) place() string { return clientPlace(s.client) }

func (s inSession) open(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error) {
	r, err := s.s.Blob(ctx, s.op, d.Digest)
	if err != nil || offset == 0 {
		return r, err
	}
	_, err = io.CopyN(io.Discard, r, offset)
	return r, err
}
