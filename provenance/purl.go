package provenance

import (
	"net/url"

	"github.com/strata-build/strata/diag"
)

// masked is an address that tells that there was a login, but not which, and no secrets of a query.
func masked(address string, login *url.Userinfo) string {
	u, err := url.Parse(address)
	if login == nil || err != nil {
		return diag.Redact(Redact(address))
	}
	u.User = login
	return diag.Redact(Redact(u.String()))
}

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
