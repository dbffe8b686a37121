package export

import (
	"fmt"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer"
)

// Versions of what BuildKit's exporters wrote, which a client may ask for.
// Source: BuildKit's docs/build-repro and solver/llbsolver/compat.
const (
	Compat013 = 10 // no zstd
	Compat015 = 20 // Docker's media types unless there are attestations
	Compat031 = 30 // OCI's media types; attestations are OCI artifacts
)

// CompatibilityError says that exporters of a version did not have a feature.
type CompatibilityError struct {
	Version int
	Feature string // "image exporter compression=zstd"
}

func (e *CompatibilityError) Error() string {
	return fmt.Sprintf("unsupported compatibility-version %d feature %s", e.Version, e.Feature)
}

// compatible fails if the exporters of the wanted version did not have what an output asks for.
func (e *Env) compatible(o *packing) error {
	if e.Compatibility == Compat013 && o.Compression.Type == layer.Zstd {
		return diag.Errorf(diag.Unsupported, "%w", &CompatibilityError{e.Compatibility, o.Type + " exporter compression=zstd"})
	}
	return nil
}

// old reports whether the outputs of BuildKit before 0.31 are wanted.
func (e *Env) old() bool { return e.Compatibility != 0 && e.Compatibility < Compat031 }

// packing returns how an image exporter's output is packed. Without a word of the user, media types are OCI's.
func (e *Env) packing(o imageOptions, set *Set) packing {
	p := packing{imageOptions: o, oci: true}
	switch {
	case o.OCI != nil:
		p.oci = *o.OCI
	case e.old() && o.Type != "oci":
		p.oci = false
		for _, im := range set.Images {
			p.oci = p.oci || len(im.Attestation) > 0
		}
	}
	if e.old() && !o.artifactAsked {
		p.Artifact = false
	}
	return p
}
