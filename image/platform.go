package image

import (
	"slices"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// level returns the variant as a number: what a machine of one level runs, one of a higher level runs too.
func level(p graph.Platform) int {
	if p.Variant == "" {
		return map[string]int{"arm64": 8, "amd64": 1}[p.Architecture]
	}
	n, err := strconv.Atoi(strings.TrimPrefix(p.Variant, "v"))
	if err != nil {
		return -1
	}
	return n
}

// score says how well an image for have serves want: 0 not at all, and more for a nearer variant.
func score(want, have graph.Platform) int {
	want, have = graph.NormalizePlatform(want), graph.NormalizePlatform(have)
	if want.OS != have.OS || want.Architecture != have.Architecture {
		return 0
	}
	if want.OSVersion != "" && !strings.HasPrefix(have.OSVersion+".", want.OSVersion+".") {
		return 0
	}
	for _, f := range want.OSFeatures {
		if !slices.Contains(have.OSFeatures, f) {
			return 0
		}
	}
	if want.Variant == have.Variant {
		return 1000
	}
	w, h := level(want), level(have)
	if w < 0 || h < 0 || h > w {
		return 0
	}
	return 1000 - (w - h)
}

// ChoosePlatform returns the index of the best of the platforms for want, the first of equals.
func ChoosePlatform(want graph.Platform, have []graph.Platform) (int, bool) {
	best, at := 0, -1
	for i, p := range have {
		if s := score(want, p); s > best {
			best, at = s, i
		}
	}
	return at, at >= 0
}

// ChooseManifest picks the descriptor of an index for want. Attestations, whose platform is "unknown", are never picked.
func ChooseManifest(name string, want graph.Platform, all []Descriptor) (Descriptor, error) {
	var have []graph.Platform
	var images []Descriptor
	for _, d := range all {
		if d.Platform != nil && d.Platform.OS == "unknown" {
			continue
		}
		images = append(images, d)
		have = append(have, PlatformOf(d.Platform))
	}
	if i, ok := ChoosePlatform(want, have); ok {
		return images[i], nil
	}
	if len(images) == 1 && images[0].Platform == nil {
		return images[0], nil
	}
	return Descriptor{}, NoPlatform(name, want, have)
}

// NoPlatform is the error for an image that has other platforms only.
func NoPlatform(name string, want graph.Platform, have []graph.Platform) error {
	var names []string
	for _, p := range have {
		if p.OS != "" && !slices.Contains(names, graph.FormatPlatform(p)) {
			names = append(names, graph.FormatPlatform(p))
		}
	}
	err := diag.Errorf(diag.NotFound, "%s: there is no image for %s", name, graph.FormatPlatform(want))
	if len(names) == 0 {
		return err
	}
	return err.WithHint("available platforms: %s", strings.Join(names, ", "))
}

// PlatformOf converts the platform of a descriptor; nil is the zero platform.
func PlatformOf(p *ocispec.Platform) graph.Platform {
	if p == nil {
		return graph.Platform{}
	}
	return graph.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
}
