package buildkit

import (
	"context"
	"fmt"
	"log/slog"
	"net"
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
	LogLimits    *LogLimits      // nil = clients that watch a build get its whole log
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
	health   *health.Server
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
	s.health = health.NewServer()
	s.health.SetServingStatus("", grpc_health_v1.HealthCheckResponse_SERVING)
	_, err = s.tenant("")
	return s, err
}

// Limits of messages, as in BuildKit, of their metadata, and of what comes of a call before a handler reads it, in bytes. The last
// is fixed: gRPC would let it grow to 16 MiB for each call.
const (
	maxMessage = 16 << 20
	maxHeader  = 1 << 20
	window     = 256 << 10
)

// greetPatience is how long a connection may take until the client has said who it is.
const greetPatience = 20 * time.Second

// Serve answers calls until ctx ends. Builds that run then are canceled, and are waited for.
func (s *Server) Serve(ctx context.Context, endpoints ...*Endpoint) error {
	s.stopping = ctx
	collect, enough := context.WithCancel(ctx)
	defer enough()
	accept, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	errs := make(chan error, len(endpoints))
	for _, l := range endpoints {
		wg.Go(func() {
			if err := s.accept(accept, l); err != nil {
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
	stop()
	wg.Wait()
	s.each(func(t *tenant) { t.history.saved.Wait() })
	return err
}

// accept serves the connections of an endpoint, each with a gRPC server of its own, until ctx ends. It returns when all of them
// have ended.
func (s *Server) accept(ctx context.Context, l *Endpoint) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	greeting := newGreetings()
	for wait := time.Duration(0); ; {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case err != nil && isTemporary(err): // out of descriptors, or the client has left already
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			return err
		}
		wait = 0
		end, ok := greeting.begin(conn.RemoteAddr())
		if !ok {
			_ = conn.Close()
			continue
		}
		wg.Go(func() { s.converse(ctx, l, conn, end) })
	}
}

// converse answers the calls of one connection until either side ends it. greeted is called when the client has said who it is, or
// has failed to.
func (s *Server) converse(ctx context.Context, l *Endpoint, conn net.Conn, greeted func()) {
	one := newOneConn(conn)
	k := &link{end: func() { _ = one.conn.Close() }}
	defer k.close()
	defer greeted()
	g := s.server(identify{base: l.credentials(), s: s, link: k, greeted: greeted}, k)
	defer context.AfterFunc(ctx, g.Stop)()
	_ = g.Serve(one) // it ends with the connection
	g.Stop()         // and waits for its calls
}

func (s *Server) server(who identify, k *link) *grpc.Server {
	g := grpc.NewServer(append(s.calls(s.enter, func(ctx context.Context) string { return peerOf(ctx).Identity }, k),
		grpc.Creds(who), grpc.ConnectionTimeout(s.greeting),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * time.Minute, Timeout: 20 * time.Second}), // who is gone is found out
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)...)
	control.RegisterControlServer(g, s)
	gateway.RegisterLLBBridgeServer(g, bridgeServer{s: s})
	g.RegisterService(s.contentAPI(), s)
	if s.opt.Tracer != nil {
		traces.RegisterTraceServiceServer(g, s.opt.Tracer)
	}
	grpc_health_v1.RegisterHealthServer(g, s.health)
	return g
}

// calls bounds messages, lets every call belong to the tenant that enter puts into its context, counts it for the client that
// client names, its messages for the link, and turns its error into a status.
func (s *Server) calls(enter func(context.Context) (context.Context, error), client func(context.Context) string, k *link) []grpc.ServerOption {
	begin := func(ctx context.Context, info *tap.Info) (context.Context, error) {
		giveBack, err := k.take(info.Header)
		if err != nil {
			return nil, toStatus(err)
		}
		counted, err := s.quota.begin(ctx, client(ctx), giveBack)
		if err != nil {
			giveBack()
			return nil, toStatus(err)
		}
		return counted, nil
	}
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
		defer s.recover(info.FullMethod, &err)
		end, err := handling(ctx)
		if err != nil {
			return nil, toStatus(err)
		}
		defer end()
		release, err := s.quota.hold(client(ctx), req)
		if err != nil {
			return nil, toStatus(err)
		}
		defer release()
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
		held := &heldStream{ServerStream: ss, hold: func(m any) (func(), error) { return s.quota.hold(client(ss.Context()), m) }}
		defer held.let(true)
		ctx, err := enter(ss.Context())
		if err == nil {
			err = handler(srv, tenantStream{held, ctx})
		}
		return toStatus(err)
	}
	return []grpc.ServerOption{
		grpc.InTapHandle(begin), grpc.UnaryInterceptor(unary), grpc.StreamInterceptor(stream), grpc.WaitForHandlers(true),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage), grpc.MaxHeaderListSize(maxHeader),
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(4 * window), grpc.ForceServerCodec(remote.Codec{}), grpc.StatsHandler(k),
	}
}

// recover turns a panic into one call's failure.
func (s *Server) recover(method string, err *error) {
	if p := recover(); p != nil {
		s.opt.Log.Error("a call failed inside", "method", method, "panic", p, "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, fmt.Sprintf("internal error: %v", p))
	}
}
