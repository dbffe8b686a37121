package buildkit

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"

	"google.golang.org/grpc"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/session/remote"
)

// Tenancy says which clients share what they build.
type Tenancy string

const (
	// TenancyNone is one tenant for all clients, as in BuildKit: they share cache mounts, results, images, history and refs.
	TenancyNone Tenancy = "none"
	// TenancyClient makes each client a tenant of its own, known by the user of its Unix socket or by its certificate. The
	// engine's own user is the tenant of the engine's own commands.
	TenancyClient Tenancy = "client"
)

// Check reports a value that does not exist.
func (t Tenancy) Check() error {
	if t == "" || t == TenancyNone || t == TenancyClient {
		return nil
	}
	return diag.Errorf(diag.Invalid, "unknown tenancy %q", string(t)).WithHint(`it must be "none" or "client"`)
}

// tenant is what the clients of one tenant see of the server: their sessions, builds and history, and no others.
type tenant struct {
	name      string // "" = the engine's own user, or everybody
	sessions  *remote.Manager
	builds    builds
	producers producers
	history   *pastBuilds
}

// tenants are those that have come. They stay: there are no more than users and certificates.
type tenants struct {
	mu  sync.Mutex
	all map[string]*tenant
}

// tenant returns a tenant, whose directories and history are below the state root.
func (s *Server) tenant(name string) (*tenant, error) {
	s.tenants.mu.Lock()
	defer s.tenants.mu.Unlock()
	if t := s.tenants.all[name]; t != nil {
		return t, nil
	}
	root := s.e.TenantDir(name)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, diag.Errorf(diag.Unavailable, "the directory of %s: %w", name, err)
	}
	m, err := remote.NewManager(filepath.Join(root, "sessions"), s.opt.Log)
	if err != nil {
		return nil, err
	}
	s.e.OnDiskFailure(m.Distrust)
	past, err := newHistory(filepath.Join(root, "history"), s.opt.History, s.historySpace(name), s.opt.Log)
	if err != nil {
		return nil, err
	}
	t := &tenant{name: name, sessions: m, history: past, builds: builds{byRef: map[string]*build{}, changed: make(chan struct{})}}
	s.tenants.all[name] = t
	return t, nil
}

// historySpace returns how many bytes of the disk the history of a tenant may take: a quarter of the tenant's share.
func (s *Server) historySpace(tenant string) int64 {
	if tenant == "" {
		return math.MaxInt64
	}
	return s.e.TenantSpace() / 4
}

// each calls f for every tenant that has come.
func (s *Server) each(f func(*tenant)) {
	s.tenants.mu.Lock()
	defer s.tenants.mu.Unlock()
	for _, t := range s.tenants.all {
		f(t)
	}
}

// tenantOf names the tenant of a peer. A peer that nobody vouches for is no tenant.
func (s *Server) tenantOf(p remote.Peer) (string, error) {
	if s.opt.Tenancy != TenancyClient {
		return "", nil
	}
	switch p.Identity {
	case "":
		return "", diag.Errorf(diag.Denied, "the connection has no identity")
	case userIdentity(0), userIdentity(uint32(os.Geteuid())):
		return "", nil
	}
	return p.Identity, nil
}

// userIdentity is the identity of a user of this machine.
func userIdentity(uid uint32) string { return fmt.Sprintf("user %d", uid) }

// client is who a call's build works for.
func (s *Server) client(ctx context.Context) engine.Client {
	return engine.Client{Tenant: s.of(ctx).name, Name: peerOf(ctx).Identity}
}

type tenantKey struct{}

// belong lets a call belong to its bridge's tenant: it comes from a frontend.
func (b *bridge) belong(ctx context.Context) (context.Context, error) {
	return context.WithValue(ctx, tenantKey{}, b.of), nil
}

// enter lets a call belong to the tenant of its peer.
func (s *Server) enter(ctx context.Context) (context.Context, error) {
	name, err := s.tenantOf(peerOf(ctx))
	if err != nil {
		return nil, err
	}
	t, err := s.tenant(name)
	if err != nil {
		return nil, err
	}
	return context.WithValue(ctx, tenantKey{}, t), nil
}

// of returns the tenant that a call belongs to.
func (s *Server) of(ctx context.Context) *tenant {
	t, _ := ctx.Value(tenantKey{}).(*tenant)
	if t == nil {
		t = &tenant{} // a frontend of the engine's own command, which has no history
	}
	return t
}

// tenantStream is a stream of a tenant.
type tenantStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s tenantStream) Context() context.Context { return s.ctx }

// sees reports whether a tenant sees an item of the disk usage, and may remove it: those that it has made itself. The engine's own
// user sees everything.
func (t *tenant) sees(u engine.UsageItem) bool { return t.name == "" || u.Owner == t.name }
