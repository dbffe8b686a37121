package lint

import (
	"strings"

	"github.com/strata-build/strata/diag"
)

var stageNameCasing = Rule{Name: "StageNameCasing", Slug: "stage-name-casing", Description: "Stage names should be lowercase"}

// StageNameCasing looks at the name after AS, as it was written.
func StageNameCasing(l *Linter, at []diag.Span, name string) {
	if name != strings.ToLower(name) {
		l.report(&stageNameCasing, at, "Stage name '%s' should be lowercase", name)
	}
}
