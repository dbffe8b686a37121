package source

import (
	"context"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/signature"
)

// verify checks the signature of the annotated tag that names the commit, or of the commit, with the key that the build gives.
func (k *checkout) verify(ctx context.Context) error {
	want := k.op.Signature
	if want == nil {
		return nil
	}
	commit, tag, err := k.raw(ctx)
	if err != nil {
		return err
	}
	opt := signature.Options{RejectExpired: want.RejectExpired}
	if !want.IgnoreSignedTag && tag != nil {
		if err = signature.Object(tag, want.PubKey, opt); err == nil {
			return nil
		}
	}
	switch {
	case want.RequireSigned && err == nil:
		return diag.Errorf(diag.Denied, "%s: signed tag required but no signed tag found", k.remote.arg)
	case !want.RequireSigned:
		err = signature.Object(commit, want.PubKey, opt)
	}
	if err != nil {
		return diag.Errorf(diag.KindOf(err), "%s at %s: %w", k.remote.arg, k.c.sha, err)
	}
	return nil
}
