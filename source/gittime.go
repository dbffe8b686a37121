package source

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// Time returns when the commit that the ref names was made, after fetching it.
func (g *Git) Time(ctx context.Context, op *graph.Git) (time.Time, error) {
	k, done, err := g.open(ctx, op)
	if err != nil {
		return time.Time{}, err
	}
	defer done()
	return k.time(ctx)
}

func (k *checkout) time(ctx context.Context) (time.Time, error) {
	out, err := k.run.git(ctx, k.bare, "show", "-s", "--format=%ct", k.c.sha, "--")
	if err != nil {
		return time.Time{}, err
	}
	sec, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		return time.Time{}, diag.Errorf(diag.Invalid, "%s: the commit %s has no time: %w", k.remote.arg, k.c.sha, err)
	}
	return time.Unix(sec, 0).UTC(), nil
}

// Commit is what a ref stands for.
type Commit struct {
	Ref    string // full name; the id itself if an id was asked for
	ID     string // of the annotated tag, or else of the commit
	Commit string // what the annotated tag ID leads to; "" if ID is the commit

	CommitObject, TagObject []byte // as git cat-file prints them; nil if they were not wanted
}

// Meta tells what the ref stands for, after checking the signature that it must have. objects brings the commit itself here.
func (g *Git) Meta(ctx context.Context, op *graph.Git, objects bool) (*Commit, error) {
	c, err := g.commit(ctx, op)
	if err != nil {
		return nil, err
	}
	out := &Commit{Ref: c.ref, ID: c.sha}
	if c.ref == "" {
		out.Ref = c.sha
	}
	if c.tag != "" {
		out.ID, out.Commit = c.tag, c.sha
	}
	if !objects && op.Signature == nil && op.BundleFrom == "" {
		return out, nil
	}
	k, done, err := g.open(ctx, op)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := k.verify(ctx); err != nil {
		return nil, err
	}
	if k.c.ref != "" {
		out.Ref = k.c.ref
	}
	out.ID = k.c.sha
	if k.c.tag != "" {
		out.ID, out.Commit = k.c.tag, k.c.sha
	}
	if objects {
		out.CommitObject, out.TagObject, err = k.raw(ctx)
	}
	return out, err
}

// raw reads the commit and the annotated tag that leads to it, if there is one.
func (k *checkout) raw(ctx context.Context) (commit, tag []byte, err error) {
	out, err := k.run.git(ctx, k.bare, "cat-file", "commit", k.c.sha)
	if err != nil || k.c.tag == "" {
		return []byte(out), nil, err
	}
	t, err := k.run.git(ctx, k.bare, "cat-file", "tag", k.c.tag)
	return []byte(out), []byte(t), err
}
