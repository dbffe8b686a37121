package lint

import (
	"strings"

	"github.com/strata-build/strata/diag"
)

var consistentInstructionCasing = Rule{
	Name: "ConsistentInstructionCasing", Slug: "consistent-instruction-casing",
	Description: "All commands within the Dockerfile should use the same casing (either upper or lower)",
}

// Word is an instruction's keyword as it was written.
type Word struct {
	Text     string
	At       []diag.Span
	Comments []string
}

// ConsistentInstructionCasing holds every keyword against the casing of the majority.
func ConsistentInstructionCasing(l *Linter, words []Word) {
	var lower, upper int
	for _, w := range words {
		switch w.Text {
		case strings.ToLower(w.Text):
			lower++
		case strings.ToUpper(w.Text):
			upper++
		}
	}
	want, fold := "uppercase", strings.ToUpper
	if lower > upper {
		want, fold = "lowercase", strings.ToLower
	}
	for _, w := range words {
		if w.Text != fold(w.Text) {
			l.With(w.Comments).report(&consistentInstructionCasing, w.At, "Command '%s' should match the case of the command majority (%s)", w.Text, want)
		}
	}
}
