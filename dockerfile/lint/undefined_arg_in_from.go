package lint

import (
	"maps"
	"slices"

	"github.com/strata-build/strata/diag"
)

var undefinedArgInFrom = Rule{Name: "UndefinedArgInFrom", Slug: "undefined-arg-in-from", Description: "FROM command must use declared ARGs"}

// UndefinedArgInFrom takes the variables of a FROM that have no value, and all that are declared.
func UndefinedArgInFrom(l *Linter, at []diag.Span, unset map[string]struct{}, declared []string) {
	for _, arg := range slices.Sorted(maps.Keys(unset)) {
		if !slices.Contains(declared, arg) {
			l.report(&undefinedArgInFrom, at, "FROM argument '%s' is not declared%s", arg, suggestion(arg, "%s", declared))
		}
	}
}
