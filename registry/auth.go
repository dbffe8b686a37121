package registry

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/strictjson"
)

// login is what a client knows of authentication at one endpoint.
type login struct {
	mu     sync.Mutex
	chal   challenge // zero until the endpoint asked for a login
	tokens map[string]*token
}

// token is one bearer token. Its mutex is a channel so that waiting for another request's token can be given up.
type token struct {
	lock    chan struct{}
	value   string
	expires time.Time
}

func (c *Client) login(ep *endpoint) *login {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.logins[ep]
	if l == nil {
		l = &login{tokens: map[string]*token{}}
		c.logins[ep] = l
	}
	return l
}

// authorize returns the Authorization header for the scopes, "" as long as the endpoint has not asked for one. A value
// equal to rejected is not used again.
func (c *Client) authorize(ctx context.Context, ep *endpoint, scopes []string, rejected string) (string, error) {
	l := c.login(ep)
	l.mu.Lock()
	ch := l.chal
	l.mu.Unlock()
	switch ch.scheme {
	case "":
		return "", nil
	case "basic":
		cred, err := c.credential(ctx, loginTarget(ep, scopes))
		if err != nil || cred.Username == "" {
			return "", err
		}
		return "Basic " + basic(cred), nil
	}
	target := loginTarget(ep, scopes)
	scopes = normalizeScopes(append(slices.Clone(scopes), ch.scopes...))
	key := strings.Join(scopes, " ")
	l.mu.Lock()
	t := l.tokens[key]
	if t == nil {
		t = &token{lock: make(chan struct{}, 1)}
		l.tokens[key] = t
	}
	l.mu.Unlock()
	select {
	case t.lock <- struct{}{}:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	defer func() { <-t.lock }()
	if t.value != "" && "Bearer "+t.value != rejected && time.Now().Before(t.expires) {
		return "Bearer " + t.value, nil
	}
	value, life, err := c.fetchToken(ctx, ep, ch, tokenFor{target, scopes})
	if err != nil {
		return "", err
	}
	t.value, t.expires = value, time.Now().Add(life)
	return "Bearer " + value, nil
}

// challenged records what a 401 asks for. It reports whether there is anything to answer with.
func (c *Client) challenged(ep *endpoint, resp *http.Response) bool {
	ch, ok := parseChallenges(resp.Header.Values("WWW-Authenticate"))
	if !ok {
		return false
	}
	l := c.login(ep)
	l.mu.Lock()
	defer l.mu.Unlock()
	// Scopes of repositories belong to one request and are known to the caller; others ("aws") hold for all.
	ch.scopes = slices.DeleteFunc(ch.scopes, func(s string) bool { return strings.Contains(s, ":") })
	l.chal = ch
	return true
}

// loginTarget names what a login is looked for: the first repository of a request, or the endpoint if there is none.
func loginTarget(ep *endpoint, scopes []string) string {
	if len(scopes) > 0 {
		if rest, ok := strings.CutPrefix(scopes[0], "repository:"); ok {
			if i := strings.LastIndexByte(rest, ':'); i > 0 {
				return ep.name + "/" + rest[:i]
			}
		}
	}
	return ep.name
}

// loginPlaceOf is loginTarget for the path of a request's URL, "/v2/REPOSITORY/manifests/…".
func loginPlaceOf(ep *endpoint, path string) string {
	repo, ok := strings.CutPrefix(path, "/v2/")
	for _, what := range []string{"/manifests/", "/blobs/", "/tags/", "/referrers/"} {
		if i := strings.LastIndex(repo, what); ok && i > 0 {
			return ep.name + "/" + repo[:i]
		}
	}
	return ep.name
}

// tokenFor is what a token is asked for: whose login, and the rights.
type tokenFor struct {
	target string
	scopes []string
}

// fetchToken asks the token server. Source: distribution "Token Authentication" and "OAuth2 Token Authentication".
func (c *Client) fetchToken(ctx context.Context, ep *endpoint, ch challenge, what tokenFor) (string, time.Duration, error) {
	scopes := what.scopes
	cred, err := c.credential(ctx, what.target)
	if err != nil {
		return "", 0, err
	}
	if cred.AccessToken != "" {
		return cred.AccessToken, time.Hour, nil
	}
	realm, err := url.Parse(ch.realm)
	if err != nil || realm.Host == "" {
		return "", 0, diag.Errorf(diag.Invalid, "%s names an invalid token server %q", ep.name, ch.realm)
	}
	if base, err := ep.base(ctx); err != nil {
		return "", 0, err
	} else if realm.Scheme != "https" && (realm.Scheme != "http" || base.Scheme == "https") {
		return "", 0, diag.Errorf(diag.Denied, "%s is reached over https but sends logins to %s: refused", ep.name, Redact(realm))
	}
	if cred.Tokens != nil {
		t, err := cred.Tokens.Token(ctx, session.TokenRequest{Realm: ch.realm, Service: ch.service, Scopes: scopes})
		if err == nil {
			return t.Value, max(t.Life, 60*time.Second) * 9 / 10, nil
		}
		if diag.KindOf(err) != diag.NotFound {
			return "", 0, err
		}
	}
	var resp *http.Response
	err = c.retry(ctx, func() error {
		req, err := tokenRequest(ctx, realm, ch.service, scopes, cred)
		if err != nil {
			return err
		}
		send := ep.web.DoForeign
		if realm.Host == ep.host {
			send = ep.web.Do
		}
		resp, err = send(req)
		if err != nil {
			return failure(ep, realm, err)
		}
		return c.busy(ep, realm, resp)
	})
	if err != nil {
		return "", 0, err
	}
	defer Drain(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return "", 0, tokenRefused(ep, realm, cred, resp.StatusCode)
	}
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
	}
	if err := (strictjson.Limits{Bytes: 1 << 20}).Read(resp.Body, &answer); err != nil {
		return "", 0, diag.Errorf(diag.Unavailable, "the token server %s gave no valid answer: %w", Redact(realm), err)
	}
	value := answer.Token
	if value == "" {
		value = answer.AccessToken
	}
	if value == "" {
		return "", 0, diag.Errorf(diag.Unavailable, "the token server %s gave no token", Redact(realm))
	}
	// 60 s is the protocol's default. A tenth is left for the way.
	life := time.Duration(max(answer.ExpiresIn, 60)) * time.Second
	return value, life * 9 / 10, nil
}

func tokenRequest(ctx context.Context, realm *url.URL, service string, scopes []string, cred session.Credential) (*http.Request, error) {
	u := *realm
	if cred.IdentityToken != "" {
		form := url.Values{
			"grant_type": {"refresh_token"}, "service": {service}, "client_id": {"strata"},
			"refresh_token": {cred.IdentityToken}, "scope": {strings.Join(scopes, " ")},
		}
		body := form.Encode()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(body))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	}
	q := u.Query()
	if service != "" {
		q.Set("service", service)
	}
	for _, s := range scopes {
		q.Add("scope", s)
	}
	if cred.Username != "" {
		q.Set("account", cred.Username)
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err == nil && cred.Username != "" {
		req.Header.Set("Authorization", "Basic "+basic(cred))
	}
	return req, err
}

func tokenRefused(ep *endpoint, realm *url.URL, cred session.Credential, status int) error {
	if status != http.StatusUnauthorized && status != http.StatusForbidden && status != http.StatusBadRequest {
		return diag.Errorf(diag.Unavailable, "the token server %s answered %s", Redact(realm), statusText(status))
	}
	return ep.refusedLogin(cred)
}

// refusedLogin says which login a registry did not take, or that it wants one.
func (ep *endpoint) refusedLogin(cred session.Credential) *diag.Error {
	var err *diag.Error
	file := func(format string) string {
		if cred.From == "" {
			return ""
		}
		return fmt.Sprintf(format, cred.From)
	}
	switch {
	case cred.IdentityToken != "" || cred.AccessToken != "":
		err = diag.Errorf(diag.Denied, "%s rejected the stored token%s", ep.name, file(" (from %s)"))
	case cred.Username != "":
		err = diag.Errorf(diag.Denied, "%s rejected user %s's password%s", ep.name, cred.Username, file(" (from %s)"))
	default:
		err = diag.Errorf(diag.Denied, "%s requires a login%s", ep.name, file(" (no entry for "+ep.name+" in %s)"))
	}
	return err.WithHint("docker login %s", ep.name)
}

func basic(cred session.Credential) string {
	return base64.StdEncoding.EncodeToString([]byte(cred.Username + ":" + cred.Password))
}

// normalizeScopes sorts scopes, drops repeats and those that a wider one of the same repository covers.
func normalizeScopes(in []string) []string {
	slices.Sort(in)
	in = slices.Compact(in)
	return slices.DeleteFunc(slices.Clone(in), func(s string) bool {
		repo, ok := strings.CutSuffix(s, ":pull")
		return ok && slices.Contains(in, repo+":pull,push")
	})
}
