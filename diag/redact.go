package diag

import (
	"io"
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
		s = brokenLogin.ReplaceAllStringFunc(s, hideLogin)
		s = userinfo.ReplaceAllStringFunc(s, hideLogin)
	}
	if strings.Contains(s, "=") {
		s = secretQuery.ReplaceAllString(s, "${1}"+mask)
	}
	return s
}

// hideLogin hides the login in "scheme://login@".
func hideLogin(m string) string {
	scheme, login, _ := strings.Cut(m, "://")
	switch {
	case strings.HasPrefix(scheme, "docker-image"), strings.HasPrefix(scheme, "oci-layout"): // name@digest
		return m
	case strings.Contains(login, ":"):
		login = mask + ":" + mask + "@"
	case login != "@" && !strings.EqualFold(scheme, "ssh"):
		login = mask + "@"
	}
	return scheme + "://" + login
}

// Redacted returns the source with a text that everybody may read; a nil source stays nil.
func (s *Source) Redacted() *Source {
	if s == nil {
		return nil
	}
	text := string(s.Data)
	hidden := Redact(text)
	if hidden == text {
		return s
	}
	c := *s
	c.Data = []byte(hidden)
	return &c
}

// Redacted returns the warning with texts that everybody may read; a nil warning stays nil.
func (w *Warning) Redacted() *Warning {
	if w == nil {
		return nil
	}
	c := *w
	c.Msg, c.URL, c.Detail, c.At = Redact(w.Msg), Redact(w.URL), redactAll(w.Detail), redactSpans(w.At)
	return &c
}

func redactAll(lines []string) []string {
	var out []string
	for _, l := range lines {
		out = append(out, Redact(l))
	}
	return out
}

func redactSpans(at []Span) []Span {
	var out []Span
	for _, s := range at {
		s.Source = s.Source.Redacted()
		out = append(out, s)
	}
	return out
}

// RedactWriter returns a writer of lines, such as a log's, that everybody may read. Each call of Write has whole lines.
func RedactWriter(w io.Writer) io.Writer { return redactWriter{w} }

type redactWriter struct{ w io.Writer }

func (r redactWriter) Write(p []byte) (int, error) {
	if _, err := io.WriteString(r.w, Redact(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}
