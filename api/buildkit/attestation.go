package buildkit

import (
	"slices"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/image"
)

// Keys of an attestation's metadata.
const (
	metaInline = "inline-only"
	metaCore   = "sbom-core"
)

// proof is an attestation of a frontend.
type proof struct {
	image.Attestation
	ref  *ref
	meta map[string][]byte
}

// decodeProofs reads attestations from the wire.
func (b *bridge) decodeProofs(in map[string]*gateway.Attestations) (map[string][]proof, error) {
	if len(in) == 0 {
		return nil, nil
	}
	out := map[string][]proof{}
	for id, list := range in {
		for _, a := range list.GetAttestation() {
			p, err := b.decodeProof(a)
			if err != nil {
				return nil, err
			}
			out[id] = append(out[id], p)
		}
	}
	return out, nil
}

func (b *bridge) decodeProof(a *gateway.Attestation) (proof, error) {
	p := proof{meta: a.GetMetadata(), Attestation: image.Attestation{
		PredicateType: a.GetInTotoPredicateType(), Path: a.GetPath(), Core: string(a.GetMetadata()[metaCore]),
		InlineOnly: string(a.GetMetadata()[metaInline]) == "true",
	}}
	switch a.GetKind() {
	case gateway.AttestationKind_InToto:
		if p.Path == "" {
			return p, diag.Errorf(diag.Invalid, "attestation does not have set path")
		}
	case gateway.AttestationKind_Bundle:
		p.Bundle = true
	default:
		return p, diag.Errorf(diag.Invalid, "unknown attestation kind %d", a.GetKind())
	}
	for _, s := range a.GetInTotoSubjects() {
		x := image.Subject{Name: s.GetName()}
		switch s.GetKind() {
		case gateway.InTotoSubjectKind_Self:
			x.Self = true
		case gateway.InTotoSubjectKind_Raw:
			x.Digests = map[string]string{}
			for _, d := range s.GetDigest() {
				parsed, err := digest.Parse(d)
				if err != nil {
					return p, diag.Errorf(diag.Invalid, "the subject %.80q of an attestation: %w", s.GetName(), err)
				}
				x.Digests[parsed.Algorithm().String()] = parsed.Encoded()
			}
		default:
			return p, diag.Errorf(diag.Invalid, "unknown attestation subject type %d", s.GetKind())
		}
		p.Subjects = append(p.Subjects, x)
	}
	if a.GetRef() == nil || (a.GetRef().GetId() == "" && a.GetRef().GetDef() == nil) {
		return p, diag.Errorf(diag.Invalid, "attestation does not have available content")
	}
	var err error
	p.ref, err = b.fromWire(a.GetRef())
	return p, err
}

// encodeProofs writes the attestations of a result that one frontend gives to another.
func (b *bridge) encodeProofs(r *result) (map[string]*gateway.Attestations, error) {
	if len(r.proofs) == 0 {
		return nil, nil
	}
	out := map[string]*gateway.Attestations{}
	for id, list := range r.proofs {
		all := &gateway.Attestations{}
		for _, p := range list {
			a, err := b.encodeProof(p)
			if err != nil {
				return nil, err
			}
			all.Attestation = append(all.Attestation, a)
		}
		out[id] = all
	}
	return out, nil
}

func (b *bridge) encodeProof(p proof) (*gateway.Attestation, error) {
	r, err := b.wireRef(p.ref)
	if err != nil {
		return nil, err
	}
	a := &gateway.Attestation{Kind: gateway.AttestationKind_InToto, Metadata: p.meta, Ref: r, Path: p.Path, InTotoPredicateType: p.PredicateType}
	if p.Bundle {
		a.Kind = gateway.AttestationKind_Bundle
	}
	for _, s := range p.Subjects {
		x := &gateway.InTotoSubject{Kind: gateway.InTotoSubjectKind_Self, Name: s.Name}
		if !s.Self {
			x.Kind = gateway.InTotoSubjectKind_Raw
			for alg, hex := range s.Digests {
				x.Digest = append(x.Digest, alg+":"+hex)
			}
			slices.Sort(x.Digest)
		}
		a.InTotoSubjects = append(a.InTotoSubjects, x)
	}
	return a, nil
}
