package export

import (
	"encoding/json"
	"net/url"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// Names of the form in which BuildKit attaches statements to images, which scanners and buildx read.
// Source: BuildKit's docs/attestations/attestation-storage.md; in-toto attestation framework v0.1.
const (
	statementType   = "https://in-toto.io/Statement/v0.1"
	statementMedia  = "application/vnd.in-toto+json"
	proofArtifact   = "application/vnd.docker.attestation.manifest.v1+json"
	referenceType   = "vnd.docker.reference.type"
	referenceDigest = "vnd.docker.reference.digest"
	predicateType   = "in-toto.io/predicate-type"
)

type statement struct {
	Type          string          `json:"_type"`
	PredicateType string          `json:"predicateType"`
	Subject       []subject       `json:"subject"`
	Predicate     json.RawMessage `json:"predicate"`
}

type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// attest adds the manifest that holds the image's attestations.
func (e *Env) attest(out *packedImage, im *Image, o *packing) error {
	if len(im.Attestation) == 0 || !o.Inline {
		return nil
	}
	if !o.oci {
		return diag.Errorf(diag.Invalid, "attestations need OCI media types").WithHint("drop oci-mediatypes=false, or build without attestations")
	}
	target := out.manifest.Descriptor
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
	}
	c := image.Config{OS: "unknown", Architecture: "unknown", RootFS: image.RootFS{Type: "layers"}}
	for _, a := range im.Attestation {
		raw, err := json.Marshal(statement{statementType, a.PredicateType, subjects(o.Names, im.Platform, target.Digest), a.Predicate})
		if err != nil {
			return diag.Errorf(diag.Invalid, "the attestation %s: %w", a.PredicateType, err)
		}
		x := bytesPiece(statementMedia, raw)
		x.Annotations = map[string]string{predicateType: a.PredicateType}
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
	return nil
}

// subjects names the image that a statement is about: by the package URL of each of its names.
func subjects(names []string, p graph.Platform, d graph.Digest) []subject {
	var out []subject
	for _, n := range names {
		out = append(out, subject{packageURL(n, p), map[string]string{d.Algorithm().String(): d.Encoded()}})
	}
	if out == nil {
		out = append(out, subject{"_", map[string]string{d.Algorithm().String(): d.Encoded()}})
	}
	return out
}

// packageURL writes pkg:docker/NAME@TAG?platform=….
// Source: the docker type of the package-url specification.
func packageURL(name string, p graph.Platform) string {
	r, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	u := "pkg:docker/" + reference.FamiliarName(r)
	if t, ok := r.(reference.Tagged); ok {
		u += "@" + url.PathEscape(t.Tag())
	}
	return u + "?platform=" + strings.ReplaceAll(url.QueryEscape(PlatformName(p)), "+", "%20")
}
