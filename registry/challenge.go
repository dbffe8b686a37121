package registry

import "strings"

// challenge is one WWW-Authenticate header. Source: RFC 9110 section 11.6.1.
type challenge struct {
	scheme         string // "bearer" or "basic", lower case
	realm, service string
	scopes         []string
}

// parseChallenges picks what this client can answer: a bearer challenge before a basic one.
func parseChallenges(headers []string) (challenge, bool) {
	var best challenge
	for _, h := range headers {
		scheme, rest, _ := strings.Cut(strings.TrimSpace(h), " ")
		c := challenge{scheme: strings.ToLower(scheme)}
		for name, value := range params(rest) {
			switch name {
			case "realm":
				c.realm = value
			case "service":
				c.service = value
			case "scope":
				c.scopes = strings.Fields(value)
			}
		}
		if c.scheme == "bearer" && c.realm != "" || c.scheme == "basic" && best.scheme == "" {
			best = c
		}
	}
	return best, best.scheme != ""
}

// params parses name=value and name="quoted value" pairs, separated by commas.
func params(s string) map[string]string {
	out := map[string]string{}
	for s = strings.TrimLeft(s, " ,"); s != ""; s = strings.TrimLeft(s, " ,") {
		name, rest, ok := strings.Cut(s, "=")
		if !ok {
			return out
		}
		var value string
		if strings.HasPrefix(rest, `"`) {
			value, rest = quoted(rest[1:])
		} else {
			value, rest, _ = strings.Cut(rest, ",")
			value = strings.TrimSpace(value)
		}
		out[strings.ToLower(strings.TrimSpace(name))] = value
		s = rest
	}
	return out
}

// quoted reads up to the closing quote and returns what follows it.
func quoted(s string) (value, rest string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:]
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}
