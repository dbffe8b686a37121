package lint

import "github.com/strata-build/strata/diag"

var workdirRelativePath = Rule{
	Name: "WorkdirRelativePath", Slug: "workdir-relative-path",
	Description: "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes",
}

// WorkdirRelativePath reports the first WORKDIR of a stage, which the caller found to be relative.
func WorkdirRelativePath(l *Linter, at []diag.Span, dir string) {
	l.report(&workdirRelativePath, at, "Relative workdir %q can have unexpected results if the base image changes", dir)
}
