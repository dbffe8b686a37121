package lint

import (
	"github.com/distribution/reference"

	"github.com/strata-build/strata/diag"
)

var invalidDefaultArgInFrom = Rule{
	Name: "InvalidDefaultArgInFrom", Slug: "invalid-default-arg-in-from",
	Description: "Default value for global ARG results in an empty or invalid base image name",
}

// InvalidDefaultArgInFrom takes a base name as written, and as it is when no build argument is given.
func InvalidDefaultArgInFrom(l *Linter, at []diag.Span, written, byDefault string) {
	if _, err := reference.ParseNormalizedNamed(byDefault); err != nil {
		l.report(&invalidDefaultArgInFrom, at, "Default value for ARG %s results in empty or invalid base image name", written)
	}
}
