package cache

import (
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/registry"
)

// Rules are the operator's, for the caches that clients name.
type Rules struct {
	// Trusted are patterns of the names of caches whose results serve every build, such as "registry.example.com/ci/*".
	Trusted []string
	// Credentials are the URLs of buckets that get the credentials of this process's environment. A bucket that a client names
	// elsewhere is used with the client's own credentials, or without any.
	Credentials []string
	// AllowMetadata lets clients name servers at link-local addresses and at those of clouds' metadata services.
	AllowMetadata bool
	// RefuseActions refuses caches in GitHub's service: the operator wants them to be verified, and nothing here can do that.
	RefuseActions bool
}

// Check reports what cannot be a rule.
func (r *Rules) Check() error {
	for _, p := range r.Trusted {
		if _, err := path.Match(p, ""); err != nil || p == "" {
			return diag.Errorf(diag.Invalid, "%q is not a pattern of caches", p).WithHint("write names such as registry.example.com/ci/*, as --cache-from has them")
		}
	}
	for _, c := range r.Credentials {
		if u, err := url.Parse(c); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil {
			return diag.Errorf(diag.Invalid, "%q is not the URL of a bucket", c).WithHint("write https://BUCKET.s3.REGION.amazonaws.com, or https://HOST/BUCKET")
		}
	}
	return nil
}

// trusts reports whether the results of a cache serve every build. In a pattern, a star stands for any characters.
func (r *Rules) trusts(id string) bool {
	return slices.ContainsFunc(r.Trusted, func(p string) bool {
		ok, err := path.Match(strings.ReplaceAll(p, "/", "\x00"), strings.ReplaceAll(id, "/", "\x00"))
		return err == nil && ok
	})
}

// lends reports whether a bucket gets the credentials of the environment.
func (r *Rules) lends(bucket *url.URL) bool {
	at := strings.TrimSuffix(bucket.Path, "/") + "/"
	return slices.ContainsFunc(r.Credentials, func(c string) bool {
		u, err := url.Parse(c)
		return err == nil && u.Scheme == bucket.Scheme && strings.EqualFold(u.Host, bucket.Host) &&
			strings.HasPrefix(at, strings.TrimSuffix(u.Path, "/")+"/") && !strings.Contains(at, "/../")
	})
}

// client returns an HTTP client for servers that clients name.
func (r *Rules) client() *http.Client {
	return &http.Client{Transport: registry.Transport(r.AllowMetadata)}
}

// stayingClient follows no redirects: a signature is for one host, and a session token must not reach another.
func (r *Rules) stayingClient() *http.Client {
	c := r.client()
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c
}

// placeOf names where the blobs of a cache are.
func placeOf(s Spec, id string, env Env) string {
	env.Rules = Rules{}
	return "cache " + origin(s, id, env)
}

// origin names a cache for solve: "" is one that the operator trusts. What one client calls so may be another one's something
// else where the name alone does not say where the cache is; then the client is part of it.
func origin(s Spec, id string, env Env) string {
	switch s.Type {
	case "local":
		return id + " of " + env.Client
	case "gha":
		return id + " at " + s.Attrs["url_v2"] + s.Attrs["url"] + " of " + env.Client
	case "registry", "inline":
		if ref, err := registry.ParseRef(id); err == nil {
			id = ref.String()
		}
		if v := s.Attrs["registry.insecure"]; v != "" && v != "false" && v != "0" {
			return id + " without verification"
		}
	}
	if env.Rules.trusts(id) {
		return ""
	}
	return id
}
