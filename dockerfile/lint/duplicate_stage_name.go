package lint

import "github.com/strata-build/strata/diag"

var duplicateStageName = Rule{Name: "DuplicateStageName", Slug: "duplicate-stage-name", Description: "Stage names should be unique"}

// DuplicateStageName takes a stage's name and those of the stages before it.
func DuplicateStageName(l *Linter, at []diag.Span, name string, earlier map[string]bool) {
	if earlier[name] {
		l.report(&duplicateStageName, at, "Duplicate stage name %q, stage names should be unique", name)
	}
}
