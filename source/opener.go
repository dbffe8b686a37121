package source

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/image"
)

// Opener returns a function that reads blobs of an image from where the image is, a registry or files of the client; nil if it is in
// the store only. The last Read returns an error if the digest is wrong.
func (im *Images) Opener(img *Image) func(context.Context, image.Descriptor) (io.ReadCloser, error) {
	if img.from == nil {
		return nil
	}
	return func(ctx context.Context, d image.Descriptor) (io.ReadCloser, error) {
		if err := d.Digest.Validate(); err != nil {
			return nil, diag.Errorf(diag.Invalid, "invalid digest %q: %w", d.Digest, err)
		}
		r, err := img.from.open(ctx, d, 0)
		if err != nil {
			return nil, err
		}
		return &verifying{ReadCloser: r, name: img.Name, d: d.Digest, v: d.Digest.Verifier()}, nil
	}
}

// verifying checks the digest of what is read.
type verifying struct {
	io.ReadCloser
	name string
	d    digest.Digest
	v    digest.Verifier
}

func (r *verifying) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	_, _ = r.v.Write(b[:n]) // a hash takes everything
	if err == io.EOF && !r.v.Verified() {
		err = diag.Errorf(diag.Invalid, "%s: the blob %s has other content than its digest says", r.name, r.d)
	}
	return n, err
}
