package diag

import (
	"regexp"
	"strings"
)

const mask = "xxxxx"

var (
	// userinfo is the login of a URL in a text: what is before the last "@" of the authority.
	userinfo = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)([^\s/?#"'<>\\` + "`" + `]*)@`)
	// brokenLogin is one whose password was not escaped, so that it has a "/", a "?" or a "#": after the colon is no port.
	brokenLogin = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#@:\[]*:[0-9]*[^0-9\s/?#@"'<>\\` + "`" + `][^\s"'<>\\` + "`" + `]*@`)
	// secretQuery is a parameter of a URL that is secret by its name: signatures, tokens, keys. In JSON, "&" is \u0026.
	secretQuery = regexp.MustCompile(`(?i)((?:[?&;]|\\u0026)[a-z0-9_.%-]*(?:signature|sig|token|credential|secret|password|passwd|api[_-]?key|accesskeyid|key-pair-id|authorization|policy|jwt|code)=)[^&;#\s"'<>\\` + "`" + `]+`)
)

// Redact hides what may be secret in the URLs of a text: logins, and parameters of queries that are secret by their names,
// such as those of signed URLs. A login is written as xxxxx, or as xxxxx:xxxxx where it has a password. The user of an ssh
// URL is no secret.
func Redact(s string) string {
	if !strings.Contains(s, "://") {
		return s
	}
	if strings.Contains(s, "@") {
		s = brokenLogin.ReplaceAllString(s, "${1}"+mask+":"+mask+"@")
		s = userinfo.ReplaceAllStringFunc(s, func(m string) string {
			scheme, login, _ := strings.Cut(m, "://")
			switch {
			case strings.Contains(login, ":"):
				login = mask + ":" + mask + "@"
			case login != "@" && !strings.EqualFold(scheme, "ssh"):
				login = mask + "@"
			}
			return scheme + "://" + login
		})
	}
	if strings.Contains(s, "=") {
		s = secretQuery.ReplaceAllString(s, "${1}"+mask)
	}
	return s
}
