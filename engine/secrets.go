package engine

import (
	"context"
	"io"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/solve"
	"github.com/strata-build/strata/tree"
)

// sharedSecrets are the secrets and agents of a step for which several builds of a tenant may wait: those of all of them. Equal
// steps run once, and the client whose build came first may lack what another one has.
type sharedSecrets struct {
	step *solve.Step[tree.Tree, *build]
}

// Secret implements session.Secrets.
func (s sharedSecrets) Secret(ctx context.Context, id string) ([]byte, error) {
	return ask(ctx, s.step, func(ctx context.Context, from session.Session) ([]byte, error) { return from.Secret(ctx, id) })
}

// SSH implements session.Secrets.
func (s sharedSecrets) SSH(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	return ask(ctx, s.step, func(ctx context.Context, from session.Session) (io.ReadWriteCloser, error) { return from.SSH(ctx, id) })
}

// ask asks the client of the build that runs the step, then the others. What nobody has is noted: a build that joins the run
// later may have it.
func ask[T any](ctx context.Context, step *solve.Step[tree.Tree, *build], what func(context.Context, session.Session) (T, error)) (T, error) {
	var none T
	first := error(diag.Errorf(diag.NotFound, "the build has no client that could give it"))
	if from := step.Env.session; from != nil {
		v, err := what(ctx, from)
		if err == nil || diag.KindOf(err) != diag.NotFound {
			return v, err
		}
		first = err
	}
	for _, b := range step.Peers() {
		if b.session == nil {
			continue
		}
		if v, err := what(ctx, b.session); err == nil {
			return v, nil
		}
	}
	step.Lacked(func(b *build) bool {
		if b.session == nil {
			return false
		}
		v, err := what(b.ctx, b.session)
		if c, ok := any(v).(io.Closer); ok && err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return none, first
}
