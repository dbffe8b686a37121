package lint

import "github.com/strata-build/strata/diag"

var exposeInvalidFormat = Rule{
	Name: "ExposeInvalidFormat", Slug: "expose-invalid-format",
	Description: "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release",
}

// ExposeInvalidFormat takes a port as written, and the address and host port that were found in it.
func ExposeInvalidFormat(l *Linter, at []diag.Span, port, ip, hostPort string) {
	if ip != "" || hostPort != "" {
		l.report(&exposeInvalidFormat, at, "EXPOSE instruction should not define an IP address or host-port mapping, found '%s'", port)
	}
}
