package export

import (
	"regexp"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// The objects of an image that annotations can be attached to.
const (
	onManifest           = "manifest"
	onIndex              = "index"
	onManifestDescriptor = "manifest-descriptor"
	onIndexDescriptor    = "index-descriptor"
)

var annotationLevels = []string{onManifest, onIndex, onManifestDescriptor, onIndexDescriptor}

// annotationKey is BuildKit's form: annotation[-LEVEL]["["PLATFORM"]"].KEY.
var annotationKey = regexp.MustCompile(`^annotation(?:-([a-z-]+))?(?:\[([A-Za-z0-9_/.-]+)\])?\.(\S+)$`)

// Annotation is one annotation that the user asked for. Platform "" means every platform.
type Annotation struct {
	Level, Platform, Key, Value string
}

// parseAnnotation reads an attribute; ok is false if it is not an annotation at all.
func parseAnnotation(key, value string) (a Annotation, ok bool, err error) {
	m := annotationKey.FindStringSubmatch(key)
	if m == nil {
		return a, false, nil
	}
	a = Annotation{Level: m[1], Platform: m[2], Key: m[3], Value: value}
	switch a.Level {
	case "":
		a.Level = onManifest
	case onManifest, onIndex, onManifestDescriptor, onIndexDescriptor:
	default:
		return a, true, suggest(diag.Errorf(diag.Invalid, "%s: no such annotation level: %s", key, a.Level), a.Level, annotationLevels)
	}
	return a, true, nil
}

// annotations returns those of a level that apply to a platform, or nil if there are none.
func annotations(all []Annotation, level string, p graph.Platform) map[string]string {
	var m map[string]string
	for _, a := range all {
		if a.Level != level || a.Platform != "" && normalPlatform(a.Platform) != normalPlatform(PlatformName(p)) {
			continue
		}
		if m == nil {
			m = map[string]string{}
		}
		m[a.Key] = a.Value
	}
	return m
}

// PlatformName writes a platform as users do: "linux/amd64", "linux/arm/v7".
func PlatformName(p graph.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// The variant that everybody means when none is named.
func normalPlatform(s string) string {
	switch s {
	case "linux/arm64/v8":
		return "linux/arm64"
	case "linux/amd64/v1":
		return "linux/amd64"
	case "linux/arm":
		return "linux/arm/v7"
	}
	return strings.ToLower(s)
}

// suggest adds the candidate that the word is a likely misspelling of.
func suggest(err *diag.Error, word string, candidates []string) error {
	if s := diag.Suggest(word, candidates); s != "" {
		return err.WithHint("did you mean %s?", s)
	}
	return err
}
