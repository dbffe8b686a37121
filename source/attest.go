package source

import (
	"context"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/strictjson"
)

// AttestationChain is what a registry has to say about who made an image: the index, the attestations that it has for the image, and their
// signature. What there is none of is "".
type AttestationChain struct {
	Root        graph.Digest // the index
	Image       graph.Digest // the platform's manifest; its bytes are not among the blobs
	Attestation graph.Digest // the manifest of the attestations
	Signature   graph.Digest // the manifest of their signature
	Blobs       []ChainBlob
}

// ChainBlob is a document of a chain.
type ChainBlob struct {
	Desc image.Descriptor
	Data []byte
}

// Annotations and types that tie attestations and signatures to images. Sources: BuildKit's docs/attestations, sigstore's bundle
// and cosign specifications.
const (
	annotationRefType   = "vnd.docker.reference.type"
	annotationRefDigest = "vnd.docker.reference.digest"
	attestationManifest = "attestation-manifest"
	annotationPredicate = "in-toto.io/predicate-type"
	typeSigstoreBundle  = "application/vnd.dev.sigstore.bundle.v0.3+json"
	typeCosignSignature = "application/vnd.dev.cosign.artifact.sig.v1+json"
)

// maxAttestation bounds a statement, in bytes: a client gets it in one message.
const maxAttestation = 8 << 20

// AttestationChain reads the attestation chain of an image, with the statements of the predicates that are asked for. The registry is asked
// even for an image that the store has. The chain is nil if the image has no index.
func (im *Images) AttestationChain(ctx context.Context, op *graph.Image, p graph.Platform, predicates []string) (*Image, *AttestationChain, error) {
	pull := *op
	pull.Mode = graph.ResolvePull
	img, err := im.Resolve(ctx, &pull, p)
	if err != nil {
		return nil, nil, err
	}
	if img.Index == nil || img.Index.MediaType != ocispec.MediaTypeImageIndex {
		return img, nil, nil
	}
	ref, err := registry.ParseRef(op.Ref)
	if err != nil {
		return nil, nil, err
	}
	c := &chaining{im: im, ref: ref, chain: &AttestationChain{Root: img.Index.Digest, Image: img.Manifest.Digest}}
	return img, c.chain, c.run(ctx, *img.Index, predicates)
}

type chaining struct {
	im    *Images
	ref   registry.Ref
	chain *AttestationChain
}

func (c *chaining) run(ctx context.Context, root image.Descriptor, predicates []string) error {
	var index ocispec.Index
	if err := c.document(ctx, root, &index); err != nil {
		return err
	}
	i := slices.IndexFunc(index.Manifests, func(d image.Descriptor) bool {
		return d.Annotations[annotationRefType] == attestationManifest && d.Annotations[annotationRefDigest] == c.chain.Image.String()
	})
	if i < 0 {
		return nil
	}
	var m ocispec.Manifest
	if err := c.document(ctx, index.Manifests[i], &m); err != nil {
		return err
	}
	c.chain.Attestation = index.Manifests[i].Digest
	if err := c.signature(ctx); err != nil {
		return err
	}
	for _, l := range m.Layers {
		if slices.Contains(predicates, l.Annotations[annotationPredicate]) {
			if err := c.blob(ctx, l); err != nil {
				return err
			}
		}
	}
	return nil
}

// signature reads the one signature that counts: a bundle, or else what cosign makes.
func (c *chaining) signature(ctx context.Context) error {
	all, err := c.im.env.Registry.Referrers(ctx, c.ref, c.chain.Attestation)
	if err != nil {
		return err
	}
	for _, kind := range []string{typeSigstoreBundle, typeCosignSignature} {
		i := slices.IndexFunc(all, func(d image.Descriptor) bool { return d.ArtifactType == kind })
		if i < 0 {
			continue
		}
		var m ocispec.Manifest
		if err := c.document(ctx, all[i], &m); err != nil {
			return err
		}
		c.chain.Signature = all[i].Digest
		for _, l := range m.Layers {
			if err := c.blob(ctx, l); err != nil {
				return err
			}
		}
		return nil
	}
	return nil
}

// document reads a manifest or an index into v and keeps it in the chain.
func (c *chaining) document(ctx context.Context, d image.Descriptor, v any) error {
	raw, err := c.im.manifest(ctx, remote{c.im.env.Registry, c.ref}, d)
	if err != nil {
		return err
	}
	if err := strictjson.Unmarshal(raw, v); err != nil {
		return diag.Errorf(diag.Invalid, "%s: the manifest %s cannot be read: %w", c.ref, d.Digest, err)
	}
	c.chain.Blobs = append(c.chain.Blobs, ChainBlob{d, raw})
	return nil
}

func (c *chaining) blob(ctx context.Context, d image.Descriptor) error {
	raw, err := c.im.blob(ctx, d, maxAttestation, remote{c.im.env.Registry, c.ref})
	if err == nil {
		c.chain.Blobs = append(c.chain.Blobs, ChainBlob{d, raw})
	}
	return err
}
