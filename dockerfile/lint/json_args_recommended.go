package lint

import "github.com/strata-build/strata/diag"

var jsonArgsRecommended = Rule{
	Name: "JSONArgsRecommended", Slug: "json-args-recommended",
	Description: "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
}

// JSONArgsRecommended looks at a CMD or ENTRYPOINT in shell form. Where SHELL was set, the shell is meant.
func JSONArgsRecommended(l *Linter, at []diag.Span, instruction string, shellSet bool) {
	if !shellSet {
		l.report(&jsonArgsRecommended, at, "JSON arguments recommended for %s to prevent unintended behavior related to OS signals", instruction)
	}
}
