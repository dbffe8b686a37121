package source

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/registry"
)

// remoteURL is a remote in normal form, without secrets in its address.
type remoteURL struct {
	arg    string // as git takes it
	origin string // scheme://host/ of http remotes, to bind credentials to; "" else
	header string // Authorization for origin; "" = no login
	ssh    bool
}

// remote returns a source's remote, with the login that the build has for it.
func (g *Git) remote(ctx context.Context, op *graph.Git) (remoteURL, error) {
	n, err := graph.Normalize(op)
	if err != nil {
		return remoteURL{}, err
	}
	op = n.(*graph.Git)
	r := remoteURL{arg: op.Remote}
	u, err := url.Parse(op.Remote)
	switch {
	case err != nil || u.Host == "" || u.Scheme == "ssh": // user@host:path may be no URL
		r.ssh = true
	case u.Scheme == "http" || u.Scheme == "https":
		r.origin = u.Scheme + "://" + u.Host + "/"
		if r.header, err = g.authorization(ctx, op, u.Host); err != nil {
			return r, err
		}
	}
	return r, nil
}

// address is where git asks for a remote: where the remote's server sends its readers. With a login, redirects are followed here and
// not by git, which would send the login along to another host.
func (g *Git) address(ctx context.Context, r remoteURL) (string, error) {
	if r.header == "" {
		return r.arg, nil
	}
	g.mu.Lock()
	at, ok := g.moved[r.arg]
	g.mu.Unlock()
	if ok {
		return at, nil
	}
	at, err := redirected(ctx, r, g.env.AllowMetadata)
	if err == nil {
		g.mu.Lock()
		g.moved[r.arg] = at
		g.mu.Unlock()
	}
	return at, err
}

// redirected asks the server of a remote for its refs, and returns the address that answered.
func redirected(ctx context.Context, r remoteURL, allowMetadata bool) (string, error) {
	const refs = "/info/refs"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.arg+refs+"?service=git-upload-pack", nil)
	if err != nil {
		return "", diag.Errorf(diag.Invalid, "%s: %w", r.arg, err)
	}
	req.Header.Set("Authorization", r.header)
	req.Header.Set("User-Agent", "git/strata") // some servers answer git alone
	web := registry.NewWeb(registry.WebOptions{Header: 30 * time.Second, AllowMetadata: allowMetadata})
	defer web.Close()
	resp, err := web.Do(req)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case errors.Is(err, registry.ErrRedirect):
		return "", diag.Errorf(diag.Denied, "%s: %w", r.arg, err)
	default:
		return r.arg, nil // git says what is wrong
	}
	resp.Body.Close()
	u := *resp.Request.URL
	at, ok := strings.CutSuffix(u.Path, refs)
	if resp.StatusCode != http.StatusOK || !ok {
		return r.arg, nil
	}
	u.Path, u.RawPath, u.RawQuery, u.User = at, "", "", nil
	return u.String(), nil
}

// reached notes that this build's login reads the remote.
func (g *Git) reached(r remoteURL) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reach[r.arg] = true
}

// mayRead makes sure that this build's login reads the remote, before commits of it are used that another build has fetched.
// The owner of the state may read all of it anyway: his builds need no network for what is there.
func (g *Git) mayRead(ctx context.Context, op *graph.Git, r remoteURL) error {
	if g.env.Client.Owner {
		return nil
	}
	g.mu.Lock()
	ok := g.reach[r.arg]
	g.mu.Unlock()
	if ok {
		return nil
	}
	at, err := g.address(ctx, r)
	if err != nil {
		return err
	}
	run, done, err := g.runner(ctx, op, r)
	if err != nil {
		return err
	}
	defer done()
	if _, err := run.git(ctx, "", "ls-remote", "-q", "--", at, "HEAD"); err != nil {
		return err
	}
	g.reached(r)
	return nil
}

// authorization returns the header for the remote's own host, "" without a login.
func (g *Git) authorization(ctx context.Context, op *graph.Git, host string) (string, error) {
	if op.Login != nil {
		password, _ := op.Login.Password()
		return "basic " + base64.StdEncoding.EncodeToString([]byte(op.Login.Username()+":"+password)), nil
	}
	if g.env.Session == nil {
		return "", nil
	}
	token := func(v string) string {
		return "basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+v))
	}
	header := func(v string) string { return v }
	for _, s := range []struct {
		id, host string
		form     func(string) string
	}{
		{op.AuthHeader, "." + host, header}, {op.AuthToken, "." + host, token}, {op.AuthHeader, "", header}, {op.AuthToken, "", token},
	} {
		if s.id == "" {
			continue
		}
		v, err := g.env.Session.Secret(ctx, s.id+s.host)
		if diag.KindOf(err) == diag.NotFound && err != nil {
			continue // the default names are asked for whether they exist or not
		}
		if err != nil {
			return "", err
		}
		return s.form(strings.TrimSpace(string(v))), nil
	}
	return "", nil
}
