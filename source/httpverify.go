package source

import (
	"context"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/signature"
)

// verify checks the detached signature that a download must have, if it must. An expired key is no reason to refuse, as in
// BuildKit.
func (h *HTTP) verify(ctx context.Context, op *graph.HTTP, d *download) error {
	if op.Signature == nil {
		return nil
	}
	data, err := stored(ctx, h.env.Store, d.Digest)
	if err != nil {
		return err
	}
	defer data.Close()
	if err := signature.Detached(&archive.Cancelable{Ctx: ctx, Reader: data}, op.Signature.Signature, op.Signature.PubKey, signature.Options{}); err != nil {
		return diag.Errorf(diag.KindOf(err), "%s: failed to verify pgp signature: %w", redacted(op.URL), err)
	}
	return nil
}
