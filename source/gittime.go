package source

import (
	"context"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// Time returns when the commit that the ref names was made, after fetching it.
func (g *Git) Time(ctx context.Context, op *graph.Git) (time.Time, error) {
	c, err := g.commit(ctx, op)
	if err != nil {
		return time.Time{}, err
	}
	remote, err := parseRemote(op.Remote, g.allowFile)
	if err != nil {
		return time.Time{}, err
	}
	run, done, err := g.runner(ctx, op, remote)
	if err != nil {
		return time.Time{}, err
	}
	defer done()
	name := digest.FromString(remote.arg).Encoded()
	release, err := g.locks.take(ctx, "repository "+name)
	if err != nil {
		return time.Time{}, err
	}
	defer release()
	k := &checkout{g: g, op: op, c: c, remote: remote, run: run, bare: filepath.Join(g.env.Store.Root(), "git", name)}
	if err := k.objects(ctx); err != nil {
		return time.Time{}, err
	}
	out, err := run.git(ctx, k.bare, "show", "-s", "--format=%ct", c.sha)
	if err != nil {
		return time.Time{}, err
	}
	sec, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		return time.Time{}, diag.Errorf(diag.Invalid, "%s: the commit %s has no time: %w", remote.arg, c.sha, err)
	}
	return time.Unix(sec, 0).UTC(), nil
}
