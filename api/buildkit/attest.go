package buildkit

import (
	"encoding/csv"
	"strings"

	control "github.com/moby/buildkit/api/services/control"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/provenance"
)

// Compatibility versions of BuildKit: what exporters wrote in its releases.
const (
	compat013     = 10
	compat015     = 20
	compatCurrent = 30
)

// attests reads which attestations a client wants, and in which version.
// Source: BuildKit's docs/attestations; the attributes attest:TYPE and build-arg:BUILDKIT_ATTEST_TYPE.
func attests(req *control.SolveRequest) (opt engine.ExportOptions, err error) {
	attrs := req.FrontendAttrs
	if opt.Compatibility, err = compatibility(req.CompatibilityVersion); err != nil {
		return opt, err
	}
	wanted := map[string]string{}
	for k, v := range attrs {
		if name, ok := strings.CutPrefix(k, "build-arg:BUILDKIT_ATTEST_"); ok {
			wanted[strings.ToLower(name)] = v
		}
	}
	for k, v := range attrs {
		if name, ok := strings.CutPrefix(k, "attest:"); ok {
			wanted[strings.ToLower(name)] = v
		}
	}
	for name, text := range wanted {
		fields := map[string]string{}
		if text != "" {
			list, err := csv.NewReader(strings.NewReader(text)).Read()
			if err != nil {
				return opt, diag.Errorf(diag.Invalid, "failed to parse %s: %w", name, err)
			}
			for _, f := range list {
				k, v, _ := strings.Cut(f, "=")
				fields[k] = v
			}
		}
		switch name {
		case "provenance":
			p, err := provenance.ParseOptions(fields)
			if err != nil {
				return opt, err
			}
			opt.Provenance = &p
		case "sbom":
			if opt.SBOM, err = sbom(fields, attrs); err != nil {
				return opt, err
			}
		default:
			return opt, diag.Errorf(diag.Invalid, "unknown attestation type %q", name)
		}
	}
	return opt, nil
}

func sbom(fields, attrs map[string]string) (*engine.SBOM, error) {
	s := &engine.SBOM{}
	if v, ok := fields["generator"]; ok {
		if v == "" {
			return nil, diag.Errorf(diag.Invalid, "sbom generator cannot be empty")
		}
		s.Generator = v
		delete(fields, "generator")
	}
	s.Params = fields
	if v, ok := attrs["no-cache"]; ok && v == "" {
		s.NoCache = true
	}
	var err error
	s.Mode, err = resolveMode(attrs["image-resolve-mode"])
	return s, err
}

// compatibility checks the version that a client asks for; 0 is the current one.
func compatibility(version int64) (int, error) {
	switch v := int(version); {
	case v == 0:
		return compatCurrent, nil
	case v == compat013, v == compat015, v == compatCurrent:
		return v, nil
	case v > compatCurrent:
		return 0, diag.Errorf(diag.Invalid, "unsupported compatibility-version %d: upgrade buildkit (max supported: %d)", v, compatCurrent)
	default:
		return 0, diag.Errorf(diag.Invalid, "unsupported compatibility-version %d (supported: [%d %d %d])", v, compat013, compat015, compatCurrent)
	}
}
