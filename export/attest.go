package export

import (
	"context"
	"slices"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// Names of the form in which BuildKit attaches statements to images, which scanners and buildx read.
// Source: BuildKit's docs/attestations/attestation-storage.md.
const (
	statementMedia  = "application/vnd.in-toto+json"
	proofArtifact   = "application/vnd.docker.attestation.manifest.v1+json"
	referenceType   = "vnd.docker.reference.type"
	referenceDigest = "vnd.docker.reference.digest"
)

// PredicateType is the annotation of a statement's blob that says what it is.
const PredicateType = "in-toto.io/predicate-type"

// attested reports whether an image of the set has attestations that alone call for an index.
func (o *packing) attested(set *Set) bool {
	return slices.ContainsFunc(set.Images, func(im Image) bool {
		return len(wanted(im.Attestation, o.Inline)) > 0 || im.proof != nil && im.Manifest != nil && o.keeps(&im)
	})
}

// attest adds the manifest that holds the image's attestations.
func (e *Env) attest(ctx context.Context, out *packedImage, im *Image, o *packing) error {
	if len(im.Attestation) == 0 || !o.indexed {
		return nil
	}
	if !o.oci {
		return diag.Errorf(diag.Invalid, "cannot export attestations with \"oci-mediatypes=false\"").WithHint("drop oci-mediatypes=false, or build without attestations")
	}
	target := out.manifest.Descriptor
	layers := descriptors(out.layers)
	list, err := statements(ctx, im.Attestation, about{subjects(o.Names, im.Platform, target.Digest), layers, e.layerOf(im, layers)})
	if err != nil {
		return err
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
	}
	c := image.Config{OS: "unknown", Architecture: "unknown", RootFS: image.RootFS{Type: "layers"}}
	for _, a := range list {
		x := bytesPiece(statementMedia, a.raw)
		x.Annotations = map[string]string{PredicateType: a.predicateType}
		m.Layers = append(m.Layers, x.Descriptor)
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, x.Digest)
		out.proofs = append(out.proofs, x)
	}
	conf := piece{Descriptor: ocispec.DescriptorEmptyJSON, data: ocispec.DescriptorEmptyJSON.Data}
	if o.Artifact {
		m.ArtifactType = proofArtifact
		m.Subject = &image.Descriptor{MediaType: target.MediaType, Digest: target.Digest, Size: target.Size}
	} else {
		raw, err := c.Encode()
		if err != nil {
			return err
		}
		conf = bytesPiece(ocispec.MediaTypeImageConfig, raw)
	}
	m.Config = conf.Descriptor
	out.proofs = append(out.proofs, conf)
	raw, err := encode(m)
	if err != nil {
		return err
	}
	proof := bytesPiece(m.MediaType, raw)
	proof.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	proof.Annotations = map[string]string{referenceType: "attestation-manifest", referenceDigest: target.Digest.String()}
	out.proof = &proof
	e.step("exporting attestation manifest " + proof.Digest.String())()
	return nil
}

// subjects names the image that a statement is about: by the package URL of each of its names.
func subjects(names []string, p graph.Platform, d graph.Digest) []subject {
	var out []subject
	for _, n := range names {
		out = append(out, subject{image.PackageURL("docker", n, &p), digestSet(d)})
	}
	if out == nil {
		out = append(out, subject{"_", digestSet(d)})
	}
	return out
}
