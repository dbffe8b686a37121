package remote

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/session"
)

// Credential asks the client for a login. A client that does not give it away may give tokens instead.
// The protocol knows hosts only.
func (s *Session) Credential(ctx context.Context, target string) (session.Credential, error) {
	host, _, _ := strings.Cut(target, "/")
	m, err := s.c.unary(ctx, "/moby.filesync.v1.Auth/Credentials", text(host))
	switch status.Code(err) {
	case codes.OK:
	case codes.Unimplemented, codes.PermissionDenied:
		return session.Credential{Tokens: tokens{s, host}}, nil
	default:
		return session.Credential{}, failed(ctx, err, "the login for %s", host)
	}
	name, err := m.field(1)
	if err != nil {
		return session.Credential{}, err
	}
	secret, err := m.field(2)
	if len(name) == 0 {
		return session.Credential{IdentityToken: string(secret)}, err
	}
	return session.Credential{Username: string(name), Password: string(secret)}, err
}

// tokens are what a client gives instead of its login at a host.
type tokens struct {
	s    *Session
	host string
}

// Token asks the client for a token of certain scopes.
func (t tokens) Token(ctx context.Context, r session.TokenRequest) (session.Token, error) {
	q := text("strata", t.host, r.Realm, r.Service)
	for _, scope := range r.Scopes {
		q.add(5, scope)
	}
	m, err := t.s.c.unary(ctx, "/moby.filesync.v1.Auth/FetchToken", q)
	if err != nil {
		return session.Token{}, failed(ctx, err, "a token for %s", t.host)
	}
	value, err := m.field(1)
	if err != nil {
		return session.Token{}, err
	}
	life, err := m.number(2)
	if err == nil && len(value) == 0 {
		err = diag.Errorf(diag.NotFound, "the client has no token for %s", t.host)
	}
	const longest = 24 * 60 * 60
	return session.Token{Value: string(value), Life: time.Duration(min(max(life, 0), longest)) * time.Second}, err
}
