package image

import (
	"net/url"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/strata-build/strata/graph"
)

// PackageURL names an image: pkg:TYPE/NAME@TAG?digest=…&platform=…, with what is known. kind is "docker" for images of registries
// and "oci" for others. A name that makes no sense is returned as it is.
// Source: the docker and oci types of the package-url specification.
func PackageURL(kind, name string, p *graph.Platform, qualifiers ...string) string {
	r, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	if c, ok := r.(reference.Canonical); ok {
		qualifiers = append(qualifiers, "digest", c.Digest().String())
	} else {
		r = reference.TagNameOnly(r)
	}
	u := "pkg:" + kind + "/" + reference.FamiliarName(r)
	if t, ok := r.(reference.Tagged); ok {
		u += "@" + url.PathEscape(t.Tag())
	}
	if p != nil {
		n := graph.NormalizePlatform(*p)
		n.OSVersion, n.OSFeatures = "", nil
		qualifiers = append(qualifiers, "platform", graph.FormatPlatform(n))
	}
	var parts []string
	for i := 0; i+1 < len(qualifiers); i += 2 {
		value := strings.ReplaceAll(url.QueryEscape(qualifiers[i+1]), "+", "%20")
		parts = append(parts, qualifiers[i]+"="+strings.ReplaceAll(value, "%3A", ":"))
	}
	slices.Sort(parts)
	if len(parts) > 0 {
		u += "?" + strings.Join(parts, "&")
	}
	return u
}
