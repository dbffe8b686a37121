package lint

import "github.com/strata-build/strata/diag"

var reservedStageName = Rule{Name: "ReservedStageName", Slug: "reserved-stage-name", Description: "Reserved words should not be used as stage names"}

// ReservedStageName looks for a stage that is named like something else.
func ReservedStageName(l *Linter, at []diag.Span, name string) {
	if name == "scratch" || name == "context" {
		l.report(&reservedStageName, at, "Stage name should not use the same name as reserved stage %q", name)
	}
}
