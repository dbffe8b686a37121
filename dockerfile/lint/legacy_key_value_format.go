package lint

import "github.com/strata-build/strata/diag"

var legacyKeyValueFormat = Rule{
	Name: "LegacyKeyValueFormat", Slug: "legacy-key-value-format",
	Description: "Legacy key/value format with whitespace separator should not be used",
}

// LegacyKeyValueFormat reports an ENV or LABEL without an equals sign.
func LegacyKeyValueFormat(l *Linter, at []diag.Span, instruction string) {
	l.report(&legacyKeyValueFormat, at, "\"%s key=value\" should be used instead of legacy \"%s key value\" format", instruction, instruction)
}
