package buildkit

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	sourcepolicy "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
)

// serve runs a server with an engine of its own and returns its address.
func serve(t testing.TB, opt Options, with ...func(*engine.Options)) (addr string, e *engine.Engine) {
	t.Helper()
	addr, s := serveServer(t, opt, with...)
	return addr, s.e
}

// serveServer is serve for tests that look into the server.
func serveServer(t testing.TB, opt Options, with ...func(*engine.Options)) (addr string, s *Server) {
	t.Helper()
	addr, s, stop := serverAt(t, t.TempDir(), opt, with...)
	t.Cleanup(stop)
	return addr, s
}

// serveAt is serve with a directory, which can be served again after it was stopped.
func serveAt(t testing.TB, dir string, opt Options) (addr string, e *engine.Engine, stop func()) {
	t.Helper()
	addr, s, stop := serverAt(t, dir, opt)
	return addr, s.e, stop
}

func serverAt(t testing.TB, dir string, opt Options, with ...func(*engine.Options)) (addr string, s *Server, stop func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	eopt := engine.Options{OldRuntime: true, Root: filepath.Join(dir, "root"), Tracer: opt.Tracer}
	for _, f := range with {
		f(&eopt)
	}
	e, err := engine.Open(t.Context(), eopt)
	if err != nil {
		t.Fatal(err)
	}
	s, err = New(e, opt)
	if err != nil {
		t.Fatal(err)
	}
	addr = "unix://" + filepath.Join(dir, "s")
	l, err := Listen(addr, "", TLSFiles{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	return addr, s, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

// client is one connection.
type client struct {
	control.ControlClient
	gateway.LLBBridgeClient
	cc *grpc.ClientConn
}

func dial(t testing.TB, addr string) client {
	t.Helper()
	cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return client{control.NewControlClient(cc), gateway.NewLLBBridgeClient(cc), cc}
}

func inBuild(ctx context.Context, ref string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, buildID, ref)
}

// mkdir is the definition of an empty tree with one directory.
func mkdir(t testing.TB, name string) *pb.Definition {
	t.Helper()
	op := &pb.Op{
		Inputs: nil, Platform: &pb.Platform{OS: "linux", Architecture: "amd64"},
		Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{Input: -1, SecondaryInput: -1, Output: 0, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: name, Mode: 0o755, Timestamp: -1}}}}}},
	}
	return define(t, op)
}

func define(t testing.TB, ops ...*pb.Op) *pb.Definition {
	t.Helper()
	def := &pb.Definition{}
	var last string
	for _, op := range ops {
		b, err := op.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		def.Def = append(def.Def, b)
		last = digest.FromBytes(b).String()
	}
	b, err := (&pb.Op{Inputs: []*pb.Input{{Digest: last}}}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	def.Def = append(def.Def, b)
	return def
}

func TestHealthAndInfo(t *testing.T) {
	addr, _ := serve(t, Options{Labels: map[string]string{"a": "b"}, Version: "x"})
	c := dial(t, addr)
	h, err := grpc_health_v1.NewHealthClient(c.cc).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || h.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health %v, %v", h, err)
	}
	w, err := c.ListWorkers(t.Context(), &control.ListWorkersRequest{})
	if err != nil || len(w.Record) != 1 || w.Record[0].Labels["a"] != "b" || len(w.Record[0].Platforms) == 0 {
		t.Errorf("workers %v, %v", w, err)
	}
	if w, err = c.ListWorkers(t.Context(), &control.ListWorkersRequest{Filter: []string{`labels."a"==c`}}); err != nil || len(w.Record) != 0 {
		t.Errorf("filtered workers %v, %v", w, err)
	}
	if _, err := c.ListWorkers(t.Context(), &control.ListWorkersRequest{Filter: []string{"nothing==1"}}); err == nil {
		t.Error("a filter by an unknown field was accepted")
	}
}

func TestForwardedBuild(t *testing.T) {
	addr, e := serve(t, Options{})
	c := dial(t, addr)
	done := make(chan error, 1)
	var resp *control.SolveResponse
	go func() {
		var err error
		resp, err = c.ControlClient.Solve(t.Context(), &control.SolveRequest{Ref: "fwd", Exporters: []*control.Exporter{{Type: "image", Attrs: map[string]string{"name": "forwarded"}}}})
		done <- err
	}()
	ctx := inBuild(t.Context(), "fwd")
	pong, err := c.Ping(ctx, &gateway.PingRequest{})
	if err != nil || len(pong.LLBCaps) == 0 || len(pong.Workers) != 1 {
		t.Fatalf("ping %v, %v", pong, err)
	}
	caps := map[string]bool{}
	for _, x := range pong.FrontendAPICaps {
		caps[x.ID] = true
	}
	if !caps["gateway.exec"] || !caps["importcaches"] {
		t.Errorf("capabilities %v", caps)
	}
	r, err := c.LLBBridgeClient.Solve(ctx, &gateway.SolveRequest{Definition: mkdir(t, "/d"), AllowResultReturn: true, AllowResultArrayRef: true})
	if err != nil {
		t.Fatal(err)
	}
	ref := r.Result.GetRef()
	if ref.GetId() == "" || len(ref.GetDef().GetDef()) != 2 {
		t.Fatalf("ref %v", ref)
	}
	dir, err := c.ReadDir(ctx, &gateway.ReadDirRequest{Ref: ref.Id, DirPath: "/"})
	if err != nil || len(dir.Entries) != 1 || dir.Entries[0].Path != "d" || !os.FileMode(dir.Entries[0].Mode).IsDir() {
		t.Errorf("readdir %v, %v", dir, err)
	}
	if _, err := c.StatFile(ctx, &gateway.StatFileRequest{Ref: ref.Id, Path: "/d"}); err != nil {
		t.Error(err)
	}
	if _, err := c.ReadFile(ctx, &gateway.ReadFileRequest{Ref: ref.Id, FilePath: "/nope"}); err == nil || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := c.Evaluate(ctx, &gateway.EvaluateRequest{Ref: ref.Id}); err != nil {
		t.Error(err)
	}
	if _, err := dial(t, addr).Ping(ctx, &gateway.PingRequest{}); err == nil || !strings.Contains(err.Error(), "another client") {
		t.Errorf("another client's build was reached: %v", err)
	}
	conf := []byte(`{"architecture":"arm64","os":"linux","config":{"Env":["A=1"]},"x":1}`)
	if _, err := c.Return(ctx, &gateway.ReturnRequest{Result: &gateway.Result{
		Result: &gateway.Result_Ref{Ref: ref}, Metadata: map[string][]byte{metaConfig: conf},
	}}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if resp.ExporterResponse["containerimage.digest"] == "" || resp.ExporterResponse["image.name"] != "docker.io/library/forwarded:latest" {
		t.Errorf("response %v", resp)
	}
	im, err := e.InspectImage(t.Context(), "forwarded")
	if err != nil || im.Platforms[0].Config.Architecture != "arm64" || im.Platforms[0].Config.Config.Env[0] != "A=1" || len(im.Platforms[0].Layers) != 1 {
		t.Errorf("image %v, %v", im, err)
	}
	if _, err := c.Evaluate(ctx, &gateway.EvaluateRequest{Ref: ref.Id}); status.Code(err) != codes.NotFound {
		t.Errorf("the build has ended: %v", err)
	}
	checkHistory(t, c)
}

func checkHistory(t *testing.T, c client) {
	t.Helper()
	s, err := c.Status(t.Context(), &control.StatusRequest{Ref: "fwd"})
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for {
		m, err := s.Recv()
		if err != nil {
			break
		}
		for _, v := range m.Vertexes {
			names[v.Name] = names[v.Name] || v.Completed != nil
		}
	}
	if !names["exporting to image"] {
		t.Errorf("the journal of an ended build has %v", names)
	}
	h, err := c.ListenBuildHistory(t.Context(), &control.BuildHistoryRequest{EarlyExit: true, Filter: []string{"status==completed"}})
	if err != nil {
		t.Fatal(err)
	}
	ev, err := h.Recv()
	if err != nil || ev.Record.Ref != "fwd" || ev.Type != control.BuildHistoryEventType_COMPLETE {
		t.Errorf("history %v, %v", ev, err)
	}
	for _, u := range []*control.UpdateBuildHistoryRequest{{Ref: "fwd", Pinned: true}, {Ref: "fwd", Finalize: true}, {Ref: "fwd", Delete: true}} {
		if _, err := c.UpdateBuildHistory(t.Context(), u); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.UpdateBuildHistory(t.Context(), &control.UpdateBuildHistoryRequest{Ref: "fwd", Delete: true}); err == nil {
		t.Error("a build was removed twice")
	}
}

func TestFailedSolvesEndNothingElse(t *testing.T) {
	addr, _ := serve(t, Options{})
	c := dial(t, addr)
	done := make(chan error, 1)
	go func() {
		_, err := c.ControlClient.Solve(t.Context(), &control.SolveRequest{Ref: "b"})
		done <- err
	}()
	ctx := inBuild(t.Context(), "b")
	missing := define(t, &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{Input: -1, SecondaryInput: -1, Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: "/nope"}}}}}}})
	_, err := c.LLBBridgeClient.Solve(ctx, &gateway.SolveRequest{Definition: missing, Evaluate: true, AllowResultReturn: true})
	if err == nil {
		t.Fatal("removing nothing was no error")
	}
	found := false
	for _, d := range status.Convert(err).Proto().Details {
		found = found || d.TypeUrl == "github.com/moby/buildkit/errdefs.Vertex+json"
	}
	if !found {
		t.Errorf("the error names no vertex: %v", status.Convert(err).Proto())
	}
	if _, err := c.LLBBridgeClient.Solve(ctx, &gateway.SolveRequest{Definition: mkdir(t, "/d"), Evaluate: true, AllowResultReturn: true}); err != nil {
		t.Errorf("the next solve: %v", err)
	}
	if _, err := c.Return(ctx, &gateway.ReturnRequest{Error: status.New(codes.Unknown, "the frontend says no").Proto()}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "the frontend says no") {
		t.Errorf("solve: %v", err)
	}
}

func TestHostileCalls(t *testing.T) {
	addr, _ := serve(t, Options{Entitlements: []string{"network.host"}})
	c := dial(t, addr)
	long := strings.Repeat("x", 5000)
	for name, req := range map[string]*control.SolveRequest{
		"no ref":            {},
		"long ref":          {Ref: long},
		"no session":        {Ref: "a", Session: "../../x"},
		"frontend":          {Ref: "a", Frontend: long},
		"both":              {Ref: "a", Frontend: "dockerfile.v0", Definition: mkdir(t, "/d")},
		"exporter":          {Ref: "a", Exporters: []*control.Exporter{{Type: "\x00"}}, Definition: mkdir(t, "/d")},
		"entitlement":       {Ref: "a", Entitlements: []string{"everything"}},
		"not allowed":       {Ref: "a", Entitlements: []string{"security.insecure"}},
		"epoch":             {Ref: "a", Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"build-arg:SOURCE_DATE_EPOCH": "x"}},
		"platform":          {Ref: "a", Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"platform": "../.."}},
		"network":           {Ref: "a", Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"force-network-mode": "999"}},
		"caps":              {Ref: "a", Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"frontend.caps": "future"}},
		"subrequest":        {Ref: "a", Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"requestid": "future"}},
		"no client":         {Ref: "a", Frontend: "dockerfile.v0"},
		"nil input":         {Ref: "a", Frontend: "dockerfile.v0", FrontendInputs: map[string]*pb.Definition{"context": {Def: [][]byte{{0xff}}}}},
		"garbage":           {Ref: "a", Definition: &pb.Definition{Def: [][]byte{{0xff, 0xff}, nil}}},
		"policy":            {Ref: "a", Definition: mkdir(t, "/d"), SourcePolicy: &sourcepolicy.Policy{Rules: []*sourcepolicy.Rule{{}}}},
		"policy session":    {Ref: "a", Definition: mkdir(t, "/d"), SourcePolicySession: "x"},
		"security":          {Ref: "a", Definition: execOp(t, 999, 0)},
		"negative security": {Ref: "a", Definition: execOp(t, -1, 0)},
		"network enum":      {Ref: "a", Definition: execOp(t, 0, math.MaxInt32)},
		"host network":      {Ref: "a", Definition: execOp(t, 0, pb.NetMode_HOST)},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
			defer cancel()
			_, err := c.ControlClient.Solve(ctx, req)
			if err == nil || status.Code(err) == codes.Internal || ctx.Err() != nil {
				t.Errorf("error %v", err)
			}
		})
	}
	ended := make(chan error, 1)
	building, cancel := context.WithCancel(t.Context())
	go func() {
		_, err := c.ControlClient.Solve(building, &control.SolveRequest{Ref: "open"})
		ended <- err
	}()
	ctx := inBuild(t.Context(), "open")
	hostileGateway(t, c, ctx)
	if _, err := c.ControlClient.Solve(t.Context(), &control.SolveRequest{Ref: "open"}); err == nil || !strings.Contains(err.Error(), "job ID open exists") {
		t.Errorf("a ref was used twice: %v", err)
	}
	cancel()
	if err := <-ended; status.Code(err) != codes.Canceled {
		t.Errorf("a canceled build: %v", err)
	}
	if _, err := c.Info(t.Context(), &control.InfoRequest{}); err != nil {
		t.Errorf("the server has gone: %v", err)
	}
}

func execOp(t *testing.T, s pb.SecurityMode, n pb.NetMode) *pb.Definition {
	t.Helper()
	return define(t, &pb.Op{Platform: &pb.Platform{OS: "linux", Architecture: "amd64"}, Op: &pb.Op_Exec{Exec: &pb.ExecOp{
		Meta: &pb.Meta{Args: []string{"x"}, Cwd: "/"}, Mounts: []*pb.Mount{{Input: -1, Dest: "/", Output: 0}}, Security: s, Network: n,
	}}})
}

func hostileGateway(t *testing.T, c client, ctx context.Context) {
	calls := map[string]func(context.Context) error{
		"solve nothing known": func(ctx context.Context) error {
			_, err := c.LLBBridgeClient.Solve(ctx, &gateway.SolveRequest{Frontend: "../x"})
			return err
		},
		"read no ref": func(ctx context.Context) error {
			_, err := c.ReadFile(ctx, &gateway.ReadFileRequest{Ref: "../x", FilePath: "/"})
			return err
		},
		"read negative": func(ctx context.Context) error {
			_, err := c.ReadFile(ctx, &gateway.ReadFileRequest{FilePath: "/", Range: &gateway.FileRange{Offset: -1}})
			return err
		},
		"read root": func(ctx context.Context) error {
			_, err := c.ReadFile(ctx, &gateway.ReadFileRequest{FilePath: "/"})
			return err
		},
		"stat nothing": func(ctx context.Context) error {
			_, err := c.StatFile(ctx, &gateway.StatFileRequest{Path: "\x00"})
			return err
		},
		"evaluate": func(ctx context.Context) error {
			_, err := c.Evaluate(ctx, &gateway.EvaluateRequest{Ref: strings.Repeat("r", 300)})
			return err
		},
		"no source": func(ctx context.Context) error {
			_, err := c.ResolveSourceMeta(ctx, &gateway.ResolveSourceMetaRequest{})
			return err
		},
		"odd source": func(ctx context.Context) error {
			_, err := c.ResolveSourceMeta(ctx, &gateway.ResolveSourceMetaRequest{Source: &pb.SourceOp{Identifier: "foo://bar"}})
			return err
		},
		"odd image": func(ctx context.Context) error {
			_, err := c.ResolveImageConfig(ctx, &gateway.ResolveImageConfigRequest{Ref: "UPPER!"})
			return err
		},
		"odd resolver": func(ctx context.Context) error {
			_, err := c.ResolveImageConfig(ctx, &gateway.ResolveImageConfigRequest{Ref: "a", ResolverType: 77})
			return err
		},
		"release": func(ctx context.Context) error {
			_, err := c.ReleaseContainer(ctx, &gateway.ReleaseContainerRequest{ContainerID: "../x"})
			return err
		},
	}
	for name, call := range calls {
		if err := call(ctx); err == nil || status.Code(err) == codes.Internal {
			t.Errorf("%s: error %v", name, err)
		}
		if err := call(t.Context()); err == nil { // of no build
			t.Errorf("%s: no error without a build", name)
		}
	}
	if _, err := c.ReadDir(ctx, &gateway.ReadDirRequest{DirPath: "/"}); err != nil {
		t.Errorf("the empty tree: %v", err)
	}
	if _, err := c.Warn(ctx, &gateway.WarnRequest{Digest: "x", Short: []byte("w"), Level: -5}); err != nil {
		t.Errorf("an odd warning: %v", err)
	}
}

func TestSocketsAreGuarded(t *testing.T) {
	if _, err := Listen("tcp://127.0.0.1:0", "", TLSFiles{}); diag.KindOf(err) != diag.Denied {
		t.Errorf("TCP without certificates: %v", err)
	}
	for _, a := range []string{"", "unix:/x", "http://x", "fd://3"} {
		if _, err := Listen(a, "", TLSFiles{}); diag.KindOf(err) != diag.Invalid {
			t.Errorf("%q: %v", a, err)
		}
	}
	path := filepath.Join(t.TempDir(), "d", "s")
	l, err := Listen("unix://"+path, "", TLSFiles{})
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := Listen("unix://"+path, "", TLSFiles{}); diag.KindOf(err) != diag.Conflict {
		t.Errorf("a socket that is served was taken over: %v", err)
	}
	l.Listener.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Listen("unix://"+path, "", TLSFiles{}) // a dead daemon's
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestMutualTLS(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	files, pair, pool := certificates(t, dir)
	e, err := engine.Open(t.Context(), engine.Options{OldRuntime: true, Root: filepath.Join(dir, "root")})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	s, err := New(e, Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen("tcp://127.0.0.1:0", "", files)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()
	call := func(conf *tls.Config) error {
		cc, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(conf)))
		if err != nil {
			t.Fatal(err)
		}
		defer cc.Close()
		_, err = control.NewControlClient(cc).Info(t.Context(), &control.InfoRequest{})
		return err
	}
	if err := call(&tls.Config{RootCAs: pool, ServerName: "strata", Certificates: []tls.Certificate{pair}}); err != nil {
		t.Errorf("with a certificate: %v", err)
	}
	if err := call(&tls.Config{RootCAs: pool, ServerName: "strata"}); err == nil {
		t.Error("a client without a certificate was let in")
	}
}

// certificates makes one certificate that is its own authority, for both sides.
func certificates(t *testing.T, dir string) (TLSFiles, tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "strata"}, DNSNames: []string{"strata"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
	f := TLSFiles{Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key"), CA: filepath.Join(dir, "cert")}
	if err := errors.Join(os.WriteFile(f.Cert, certPEM, 0o600), os.WriteFile(f.Key, keyPEM, 0o600)); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return f, pair, pool
}
