package source

import (
	"context"

	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/store"
)

// KeepProofs fetches the attestations that an image's index has for the platforms in the store, so that the image goes out again
// with them. It reports whether there were any. Statements above the limit of a document stay where they are.
func (im *Images) KeepProofs(ctx context.Context, ref registry.Ref, rec *store.Image) (bool, error) {
	if rec.Index == nil || im.env.Registry == nil {
		return false, nil
	}
	raw, err := im.blob(ctx, *rec.Index, registry.MaxManifest, nil)
	if err != nil {
		return false, nil // an image from elsewhere, of which the index is not kept
	}
	doc, err := registry.Decode(raw, rec.Index.MediaType)
	if err != nil || doc.Index == nil {
		return false, err
	}
	found := false
	for i := range rec.Platforms {
		p := &rec.Platforms[i]
		for _, d := range doc.Index.Manifests {
			if p.Manifest == nil || d.Annotations[annotationRefType] != "attestation-manifest" || d.Annotations[annotationRefDigest] != p.Manifest.Digest.String() {
				continue
			}
			blobs, ok, err := im.proof(ctx, ref, d)
			if err != nil {
				return found, err
			}
			if ok {
				p.Proof, p.Proofs, found = &d, blobs, true
			}
			break
		}
	}
	return found, nil
}

// proof keeps one attestation manifest and returns its blobs.
func (im *Images) proof(ctx context.Context, ref registry.Ref, d image.Descriptor) ([]image.Descriptor, bool, error) {
	raw, err := im.env.Registry.Manifest(ctx, ref, d)
	if err != nil {
		return nil, false, err
	}
	doc, err := registry.Decode(raw, d.MediaType)
	if err != nil || doc.Manifest == nil {
		return nil, false, err
	}
	blobs := append([]image.Descriptor{doc.Manifest.Config}, doc.Manifest.Layers...)
	for _, b := range blobs {
		if b.Size > registry.MaxConfig {
			return nil, false, nil
		}
	}
	for _, b := range blobs {
		if _, err := im.blob(ctx, b, registry.MaxConfig, remote{im.env.Registry, ref}); err != nil {
			return nil, false, err
		}
	}
	return blobs, true, im.keep(ctx, d.Digest, raw)
}
