package lint

import "github.com/strata-build/strata/diag"

var noEmptyContinuation = Rule{Name: "NoEmptyContinuation", Slug: "no-empty-continuation", Description: "Empty continuation lines will become errors in a future release"}

// NoEmptyContinuation reports an empty line within a continued instruction, which the parser found.
func NoEmptyContinuation(l *Linter, at []diag.Span) {
	l.report(&noEmptyContinuation, at, "Empty continuation line")
}
