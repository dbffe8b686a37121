package provenance

import (
	"strconv"

	"github.com/strata-build/strata/diag"
)

// Types of predicates.
const (
	TypeV1  = "https://slsa.dev/provenance/v1"
	TypeV02 = "https://slsa.dev/provenance/v0.2"
)

// Options say how much is told, and in which form.
type Options struct {
	Max          bool   // the steps of the build, arguments and secrets' names too
	V02          bool   // version 0.2
	InlineOnly   bool   // only for images, not for outputs of files
	Reproducible bool   // the user's word that the build is
	BuilderID    string // a URL that names the builder
	Filename     string // for outputs of files
	Complete     bool   // it is an error if not all materials are known
}

// ParseOptions reads the attributes of BuildKit's attest:provenance. Those that do not exist are ignored, as there.
func ParseOptions(attrs map[string]string) (Options, error) {
	o := Options{Max: true, BuilderID: attrs["builder-id"], Filename: "provenance.json"}
	if v := attrs["filename"]; v != "" {
		o.Filename = v
	}
	switch v, ok := attrs["mode"]; {
	case !ok, v == "max", v == "full":
	case v == "min":
		o.Max = false
	default:
		return o, diag.Errorf(diag.Invalid, "invalid mode %q of provenance: it must be min or max", v)
	}
	switch v, ok := attrs["version"]; {
	case !ok, v == "v1":
	case v == "v0.2":
		o.V02 = true
	case v == "":
		return o, diag.Errorf(diag.Invalid, "provenance SLSA version cannot be empty")
	default:
		return o, diag.Errorf(diag.Invalid, "invalid provenance SLSA version: %s: it must be v1 or v0.2", v)
	}
	for key, to := range map[string]*bool{"inline-only": &o.InlineOnly, "reproducible": &o.Reproducible, "complete-materials": &o.Complete} {
		v, ok := attrs[key]
		if !ok {
			continue
		}
		b, err := strconv.ParseBool(v)
		if err != nil && key != "inline-only" {
			return o, diag.Errorf(diag.Invalid, "failed to parse %s flag %q of provenance", key, v)
		}
		*to = b
	}
	return o, nil
}

// Type is the predicate's type.
func (o *Options) Type() string {
	if o.V02 {
		return TypeV02
	}
	return TypeV1
}
