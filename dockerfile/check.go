package dockerfile

import (
	"context"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile/lint"
)

// Checked is the outcome of `--check`.
type Checked struct {
	Source   *diag.Source   // the Dockerfile
	Warnings []diag.Warning // by line
	Err      error          // why the Dockerfile cannot be built, if it cannot; warnings up to there are kept
	Failure  error          // of the findings, where the Dockerfile or the request asks for them to be errors
}

// Check lints a Dockerfile without building it. Without a target it looks at every stage. It resolves base images,
// since variables and triggers come from them.
func Check(ctx context.Context, req Request, r Resolver) (*Checked, error) {
	sh, err := newShared(ctx, &req, r)
	if err != nil {
		return nil, err
	}
	p := sh.planner(req.firstPlatform(), lint.New(sh.check))
	p.all, p.dry = req.Target == "", true
	_, err = p.plan(ctx)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return &Checked{Source: req.Source, Warnings: p.lint.Warnings(), Err: err, Failure: p.lint.Err()}, nil
}
