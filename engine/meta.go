package engine

import (
	"context"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/source"
)

// What is known of sources before anything is made of them. No policy is asked here: who resolves a source has asked it.
type (
	// ImageMeta is an image by its manifest and configuration.
	ImageMeta = source.Image
	// ImageChain is who made an image.
	ImageChain = source.AttestationChain
	// GitMeta is what a git reference stands for.
	GitMeta = source.Commit
	// HTTPMeta is what a URL has.
	HTTPMeta = source.Download
)

// ImageMeta finds an image, in the store or in its registry.
func (j *Job) ImageMeta(ctx context.Context, op *graph.Image, p graph.Platform) (*ImageMeta, error) {
	return j.b.images.Resolve(ctx, op, p)
}

// ImageChain finds an image in its registry, with its attestations of certain predicates and their signature. The chain is nil if
// there is none.
func (j *Job) ImageChain(ctx context.Context, op *graph.Image, p graph.Platform, predicates []string) (*ImageMeta, *ImageChain, error) {
	return j.b.images.AttestationChain(ctx, op, p, predicates)
}

// LayoutMeta finds an image of an OCI layout.
func (j *Job) LayoutMeta(ctx context.Context, op *graph.OCILayout, p graph.Platform) (*ImageMeta, error) {
	return j.b.images.ResolveLayout(ctx, op, p)
}

// GitMeta finds what a reference stands for. objects asks for the commit and the tag themselves.
func (j *Job) GitMeta(ctx context.Context, op *graph.Git, objects bool) (*GitMeta, error) {
	return j.b.git.Meta(ctx, op, objects)
}

// HTTPMeta finds what a URL has.
func (j *Job) HTTPMeta(ctx context.Context, op *graph.HTTP) (*HTTPMeta, error) {
	return j.b.http.Meta(ctx, op)
}

// maxSuffix bounds what is hashed after a file, in bytes, as in BuildKit.
const maxSuffix = 4 << 10

// HTTPSum is the digest of a download and the suffix after it.
func (j *Job) HTTPSum(ctx context.Context, op *graph.HTTP, a digest.Algorithm, suffix []byte) (graph.Digest, error) {
	switch {
	case len(suffix) > maxSuffix:
		return "", diag.Errorf(diag.Invalid, "http checksum request suffix exceeds max size %d", maxSuffix)
	case !slices.Contains([]digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512}, a):
		return "", diag.Errorf(diag.Invalid, "unsupported checksum algorithm %s", a)
	}
	return j.b.http.Sum(ctx, op, a, suffix)
}
