package lint

import (
	"slices"
	"strings"

	"github.com/strata-build/strata/diag"
)

var invalidDefinitionDescription = Rule{
	Name: "InvalidDefinitionDescription", Slug: "invalid-definition-description", Experimental: true,
	Description: "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment.",
}

// InvalidDefinitionDescription looks at the comment right above a named FROM or an ARG.
func InvalidDefinitionDescription(l *Linter, at []diag.Span, instruction string, names, comments []string) {
	if len(comments) == 0 || len(names) == 0 {
		return
	}
	first, _, _ := strings.Cut(comments[len(comments)-1], " ")
	if slices.Contains(names, first) {
		return
	}
	example := names[0]
	if len(names) > 1 {
		example = "<arg_key>"
	}
	l.report(&invalidDefinitionDescription, at, "Comment for %s should follow the format: `# %s <description>`", instruction, example)
}
