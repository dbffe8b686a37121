package provenance

import "net/url"

// Redact hides the name and the password in a URL.
func Redact(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.User == nil {
		return s
	}
	const mask = "xxxxx"
	switch _, password := u.User.Password(); {
	case password && u.User.Username() == "":
		u.User = url.UserPassword("", mask)
	case password:
		u.User = url.UserPassword(mask, mask)
	default:
		u.User = url.User(mask)
	}
	return u.String()
}
