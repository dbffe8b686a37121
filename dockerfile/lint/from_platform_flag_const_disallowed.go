package lint

import (
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

var fromPlatformFlagConstDisallowed = Rule{
	Name: "FromPlatformFlagConstDisallowed", Slug: "from-platform-flag-const-disallowed",
	Description: "FROM --platform flag should not use a constant value",
}

// FromPlatformFlagConstDisallowed reports a --platform without variables, unless the stage's name tells the platform.
func FromPlatformFlagConstDisallowed(l *Linter, at []diag.Span, v Expanded, p graph.Platform, stage string) {
	if len(v.Matched)+len(v.Unmatched) > 0 || strings.Contains(stage, p.OS) || strings.Contains(stage, p.Architecture) {
		return
	}
	l.report(&fromPlatformFlagConstDisallowed, at, "FROM --platform flag should not use constant value %q", v.Text)
}
