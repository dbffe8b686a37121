package lint

import (
	"slices"
	"strings"

	"github.com/strata-build/strata/diag"
)

var secretsUsedInArgOrEnv = Rule{
	Name: "SecretsUsedInArgOrEnv", Slug: "secrets-used-in-arg-or-env",
	Description: "Sensitive data should not be used in the ARG or ENV commands",
}

// SecretsUsedInArgOrEnv looks at the words of a variable's name, such as GITHUB_TOKEN.
func SecretsUsedInArgOrEnv(l *Linter, at []diag.Span, instruction, name string) {
	words := strings.Split(strings.ToLower(name), "_")
	is := func(w string) bool {
		switch w {
		case "apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token":
			return true
		}
		return false
	}
	// These make of a secret's name that of something harmless: PUBLIC_KEY, PASSWORD_FILE, TOKEN_VERSION.
	harmless := func(w string) bool { return w == "public" || w == "file" || w == "version" }
	if slices.ContainsFunc(words, is) && !slices.ContainsFunc(words, harmless) {
		l.report(&secretsUsedInArgOrEnv, at, "Do not use ARG or ENV instructions for sensitive data (%s %q)", instruction, name)
	}
}
