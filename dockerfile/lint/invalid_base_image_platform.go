package lint

import "github.com/strata-build/strata/diag"

var invalidBaseImagePlatform = Rule{Name: "InvalidBaseImagePlatform", Description: "Base image platform does not match expected target platform"}

// InvalidBaseImagePlatform reports an image that is of another platform than asked for, as the caller found.
func InvalidBaseImagePlatform(l *Linter, at []diag.Span, image, want, got string) {
	l.report(&invalidBaseImagePlatform, at, "Base image %s was pulled with platform %q, expected %q for current build", image, got, want)
}
