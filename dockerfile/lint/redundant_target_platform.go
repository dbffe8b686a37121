package lint

import "github.com/strata-build/strata/diag"

var redundantTargetPlatform = Rule{
	Name: "RedundantTargetPlatform", Slug: "redundant-target-platform",
	Description: "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
}

// RedundantTargetPlatform takes a --platform flag as written, the variables in it that have a value and that have
// none, and whether it came out as the target platform.
func RedundantTargetPlatform(l *Linter, at []diag.Span, flag string, v Expanded, isTarget bool) {
	if _, ok := v.Matched["TARGETPLATFORM"]; ok && len(v.Matched) == 1 && len(v.Unmatched) == 0 && isTarget {
		l.report(&redundantTargetPlatform, at, "Setting platform to predefined %s in FROM is redundant as this is the default behavior", flag)
	}
}

// Expanded is a word after expansion, with the variables that were in it.
type Expanded struct {
	Text               string
	Matched, Unmatched map[string]struct{}
}
