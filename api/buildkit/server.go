package buildkit

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	traces "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/session/remote"
	"github.com/strata-build/strata/tracing"
)

// Options say what the server allows and tells about itself.
type Options struct {
	Log          *slog.Logger
	Version      string            // of this program
	Entitlements []string          // that a build may ask for: network.host, security.insecure, device
	Labels       map[string]string // of the worker, besides its own
	ProxyNetwork bool              // the steps of all builds have a proxy alone
	Frontends    Frontends
	Limits       Limits // of each client
	History      HistoryOptions
	Tracer       *tracing.Tracer // nil = builds are not traced. It is the engine's to close
	Tenancy      Tenancy         // "" = TenancyNone
	GC           []GCRule        // carried out at the start and after builds
}

// Server is an engine as BuildKit's clients see it.
type Server struct {
	control.UnimplementedControlServer

	e        *engine.Engine
	opt      Options
	id       string // of the worker
	tenants  tenants
	conns    atomic.Int64
	quota    *quota
	greeting time.Duration   // for a client to say who it is
	stopping context.Context // ends when the server is to end
	built    chan struct{}   // a build has ended since the last collection
}

// New makes a server. Directories of clients are kept below the engine's root.
func New(e *engine.Engine, opt Options) (*Server, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	id, err := engine.RootID(e.Root())
	if err != nil {
		return nil, err
	}
	if err := opt.Tenancy.Check(); err != nil {
		return nil, err
	}
	s := &Server{built: make(chan struct{}, 1), quota: newQuota(opt.Limits), e: e, opt: opt, id: id, greeting: greetPatience, tenants: tenants{all: map[string]*tenant{}}}
	_, err = s.tenant("")
	return s, err
}

// Limits of messages, as in BuildKit, and of their metadata, in bytes.
const (
	maxMessage = 16 << 20
	maxHeader  = 1 << 20
)

// greetPatience is how long a connection may take until the client has said who it is.
const greetPatience = 20 * time.Second

// Serve answers calls until ctx ends. Builds that run then are canceled, and are waited for.
func (s *Server) Serve(ctx context.Context, endpoints ...*Endpoint) error {
	s.stopping = ctx
	collect, enough := context.WithCancel(ctx)
	defer enough()
	var wg sync.WaitGroup
	errs := make(chan error, len(endpoints))
	servers := make([]*grpc.Server, len(endpoints))
	for i, l := range endpoints {
		servers[i] = s.server(l)
		wg.Go(func() {
			if err := servers[i].Serve(l.Listener); err != nil {
				errs <- diag.Errorf(diag.Unavailable, "%s: %w", l.Addr(), err)
			}
		})
	}
	wg.Go(func() { s.collecting(collect) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-errs:
	}
	enough()
	for _, g := range servers {
		g.Stop() // ends the calls' contexts and waits for them
	}
	wg.Wait()
	s.each(func(t *tenant) { t.history.saved.Wait() })
	return err
}

func (s *Server) server(l *Endpoint) *grpc.Server {
	g := grpc.NewServer(append(s.calls(s.enter, func(ctx context.Context) string { return peerOf(ctx).Identity }),
		grpc.Creds(newIdentify(l.tls, &s.conns, s.quota)), grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage), grpc.ForceServerCodec(remote.Codec{}),
		grpc.ConnectionTimeout(s.greeting), grpc.MaxHeaderListSize(maxHeader),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * time.Minute, Timeout: 20 * time.Second}), // who is gone is found out
		grpc.WaitForHandlers(true), grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)...)
	control.RegisterControlServer(g, s)
	gateway.RegisterLLBBridgeServer(g, bridgeServer{s: s})
	g.RegisterService(s.contentAPI(), s)
	if s.opt.Tracer != nil {
		traces.RegisterTraceServiceServer(g, s.opt.Tracer)
	}
	h := health.NewServer()
	h.SetServingStatus("", grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(g, h)
	return g
}

// calls lets every call belong to the tenant that enter puts into its context, counts it for the client that client names, and
// turns its error into a status.
func (s *Server) calls(enter func(context.Context) (context.Context, error), client func(context.Context) string) []grpc.ServerOption {
	begin := func(ctx context.Context, _ *tap.Info) (context.Context, error) {
		ctx, err := s.quota.begin(ctx, client(ctx))
		return ctx, toStatus(err)
	}
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
		defer s.recover(info.FullMethod, &err)
		end, err := handling(ctx)
		if err != nil {
			return nil, toStatus(err)
		}
		defer end()
		if ctx, err = enter(ctx); err == nil {
			resp, err = handler(ctx, req)
		}
		return resp, toStatus(err)
	}
	stream := func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
		defer s.recover(info.FullMethod, &err)
		end, err := handling(ss.Context())
		if err != nil {
			return toStatus(err)
		}
		defer end()
		ctx, err := enter(ss.Context())
		if err == nil {
			err = handler(srv, tenantStream{ss, ctx})
		}
		return toStatus(err)
	}
	return []grpc.ServerOption{grpc.InTapHandle(begin), grpc.UnaryInterceptor(unary), grpc.StreamInterceptor(stream)}
}

// recover turns a panic into one call's failure.
func (s *Server) recover(method string, err *error) {
	if p := recover(); p != nil {
		s.opt.Log.Error("a call failed inside", "method", method, "panic", p, "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, fmt.Sprintf("internal error: %v", p))
	}
}
