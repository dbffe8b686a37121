package lint

import (
	"path"
	"slices"

	"github.com/moby/patternmatcher"

	"github.com/strata-build/strata/diag"
)

var copyIgnoredFile = Rule{Name: "CopyIgnoredFile", Slug: "copy-ignored-file", Description: "Attempting to Copy file that is excluded by .dockerignore"}

// CopyIgnoredFile holds a source path of COPY or ADD (cmd is "Copy" or "Add") against .dockerignore. Patterns with
// exceptions are left alone: below an excluded directory there may be files that are not.
func CopyIgnoredFile(l *Linter, at []diag.Span, m *patternmatcher.PatternMatcher, cmd, src string) {
	if m == nil || m.Exclusions() {
		return
	}
	src = path.Clean(src)
	if (src == "." || src == "/") && !slices.ContainsFunc(m.Patterns(), excludesAll) {
		return
	}
	if ok, err := m.MatchesOrParentMatches(src); err == nil && ok {
		l.report(&copyIgnoredFile, at, "Attempting to %s file %q that is excluded by .dockerignore", cmd, src)
	}
}

func excludesAll(p *patternmatcher.Pattern) bool {
	s := p.String()
	return s == "*" || s == "**" || s == "**/*"
}
