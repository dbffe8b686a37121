package lint

import (
	"maps"
	"slices"

	"github.com/strata-build/strata/diag"
)

var undefinedVar = Rule{Name: "UndefinedVar", Slug: "undefined-var", Description: "Variables should be defined before their use"}

// UndefinedVar takes the variables of an instruction that have no value, and the names of those that have one.
func UndefinedVar(l *Linter, at []diag.Span, unset map[string]struct{}, known []string) {
	for _, v := range slices.Sorted(maps.Keys(unset)) {
		l.report(&undefinedVar, at, "Usage of undefined variable '$%s'%s", v, suggestion(v, "$%s", known))
	}
}
