package lint

import "github.com/strata-build/strata/diag"

var multipleInstructionsDisallowed = Rule{
	Name: "MultipleInstructionsDisallowed", Slug: "multiple-instructions-disallowed",
	Description: "Multiple instructions of the same type should not be used in the same stage",
}

// MultipleInstructionsDisallowed reports the earlier of two CMD, ENTRYPOINT or HEALTHCHECK of a stage: it has no effect.
func MultipleInstructionsDisallowed(l *Linter, earlier []diag.Span, instruction string) {
	l.report(&multipleInstructionsDisallowed, earlier, "Multiple %s instructions should not be used in the same stage because only the last one will be used", instruction)
}
