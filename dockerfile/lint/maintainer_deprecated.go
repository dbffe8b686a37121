package lint

import "github.com/strata-build/strata/diag"

var maintainerDeprecated = Rule{
	Name: "MaintainerDeprecated", Slug: "maintainer-deprecated",
	Description: "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
}

// MaintainerDeprecated reports every MAINTAINER.
func MaintainerDeprecated(l *Linter, at []diag.Span) {
	l.report(&maintainerDeprecated, at, "Maintainer instruction is deprecated in favor of using label")
}
