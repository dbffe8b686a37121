package lint

import (
	"strings"

	"github.com/strata-build/strata/diag"
)

var fromAsCasing = Rule{Name: "FromAsCasing", Slug: "from-as-casing", Description: "The 'as' keyword should match the case of the 'from' keyword"}

// FromAsCasing compares the two keywords as they were written. A FROM of mixed case is left to ConsistentInstructionCasing.
func FromAsCasing(l *Linter, at []diag.Span, from, as string) {
	lower, upper := from == strings.ToLower(from), from == strings.ToUpper(from)
	if lower && as != strings.ToLower(as) || upper && as != strings.ToUpper(as) {
		l.report(&fromAsCasing, at, "'%s' and '%s' keywords' casing do not match", as, from)
	}
}
