package lint

import (
	"strings"

	"github.com/strata-build/strata/diag"
)

var exposeProtoCasing = Rule{Name: "ExposeProtoCasing", Slug: "expose-proto-casing", Description: "Protocol in EXPOSE instruction should be lowercase"}

// ExposeProtoCasing takes a port as written and its protocol.
func ExposeProtoCasing(l *Linter, at []diag.Span, port, proto string) {
	if proto != strings.ToLower(proto) {
		l.report(&exposeProtoCasing, at, "Defined protocol '%s' in EXPOSE instruction should be lowercase", port)
	}
}
