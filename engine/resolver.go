package engine

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/source"
	"github.com/strata-build/strata/tree"
)

var _ dockerfile.Resolver = (*build)(nil)

// Image implements dockerfile.Resolver.
func (b *build) Image(ctx context.Context, ref string, p graph.Platform, mode graph.ResolveMode) (dockerfile.Resolved, error) {
	op, err := b.source(ctx, &graph.Image{Ref: ref, Mode: mode}, p)
	if err != nil {
		return dockerfile.Resolved{}, err
	}
	o, ok := op.(*graph.Image)
	if !ok {
		return dockerfile.Resolved{Other: op}, nil
	}
	img, err := b.images.Resolve(ctx, o, p)
	if err != nil {
		return dockerfile.Resolved{}, err
	}
	out := dockerfile.Resolved{Digest: img.Digest, Config: img.Config}
	if o.Ref != ref {
		out.Ref = o.Ref
	}
	return out, nil
}

// OCILayout implements dockerfile.Resolver.
func (b *build) OCILayout(ctx context.Context, ref string, p graph.Platform) (dockerfile.Resolved, error) {
	op, err := b.source(ctx, layoutOf(ref), p)
	if err != nil {
		return dockerfile.Resolved{}, err
	}
	o, ok := op.(*graph.OCILayout)
	if !ok {
		return dockerfile.Resolved{}, diag.Errorf(diag.Unsupported, "the source policy makes of the layout %s what is none: %s", ref, op.Kind())
	}
	img, err := b.images.ResolveLayout(ctx, o, p)
	if err != nil {
		return dockerfile.Resolved{}, err
	}
	return dockerfile.Resolved{Digest: img.Digest, Config: img.Config}, nil
}

// layoutOf names the session's directory that a reference is of: "STORE[:TAG][@DIGEST]" is in STORE, "oci-archive:FILE" is a
// file of the build context.
func layoutOf(ref string) *graph.OCILayout {
	if file, ok := strings.CutPrefix(ref, "oci-archive:"); ok {
		return &graph.OCILayout{Ref: strings.TrimPrefix(file, "/") + "//", Store: "context"}
	}
	name, _, _ := strings.Cut(ref, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	return &graph.OCILayout{Ref: ref, Store: name}
}

// Input implements dockerfile.Resolver: the command line passes no trees.
func (b *build) Input(_ context.Context, name string) (graph.Edge, *image.Config, error) {
	return graph.Edge{}, nil, diag.Errorf(diag.NotFound, "the build was given no input named %q", name)
}

// filer is a tree of which single files can be read without a mount.
type filer interface{ Files() (*tree.Files, error) }

// ReadFile implements dockerfile.Resolver.
func (b *build) ReadFile(ctx context.Context, from graph.Edge, path string, limit int64) ([]byte, error) {
	trees, err := b.trees(ctx, from)
	if err != nil {
		return nil, notTheFile(from, err)
	}
	t, ok := trees[0].(filer)
	if !ok {
		return nil, diag.Errorf(diag.NotFound, "%s: not found", path)
	}
	files, err := t.Files()
	if err != nil {
		return nil, err
	}
	f, err := files.OpenFile(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return nil, err
	}
	if b.charge != nil { // what is made of the file lives as long as the build
		if err := b.charge(int64(len(data))); err != nil {
			return nil, err
		}
	}
	return data, context.Cause(ctx)
}

// notTheFile tells a repository or a download that is not there from one that lacks a file.
func notTheFile(from graph.Edge, err error) error {
	switch from.V.Op.(type) {
	case *graph.Git, *graph.HTTP:
	default:
		return err
	}
	d, ok := errors.AsType[*diag.Error](err)
	if !ok || diag.KindOf(err) != diag.NotFound {
		return err
	}
	return &diag.Error{Kind: diag.Failed, Msg: err.Error(), Hint: d.Hint, At: d.At, Err: err}
}

// Time implements dockerfile.Resolver.
func (b *build) Time(ctx context.Context, src graph.Edge) (time.Time, error) {
	policed, err := b.police(ctx, b.policy, []graph.Edge{src})
	if err != nil {
		return time.Time{}, err
	}
	src = policed[0]
	if o, ok := src.V.Op.(*graph.Git); ok {
		return b.git.Time(ctx, o)
	}
	trees, err := b.trees(ctx, src)
	if err != nil {
		return time.Time{}, err
	}
	t, ok := trees[0].(filer)
	if !ok {
		return time.Time{}, nil
	}
	files, err := t.Files()
	if err != nil {
		return time.Time{}, err
	}
	newest, err := files.Newest(ctx)
	if _, ok := src.V.Op.(*graph.HTTP); !ok || err != nil || !newest.IsZero() {
		return newest, err
	}
	return archiveTime(ctx, files) // the server told no time
}

// archiveTime is the time of the newest file in the archive that is a tree's only file; zero if it is no archive.
func archiveTime(ctx context.Context, files *tree.Files) (time.Time, error) {
	kids, err := files.ReadDir(ctx, "/")
	if err != nil || len(kids) != 1 {
		return time.Time{}, err
	}
	f, err := files.OpenFile(kids[0].Name)
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	return source.NewestInArchive(f), context.Cause(ctx)
}
