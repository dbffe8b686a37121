package buildkit

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// raw sends and receives bytes as they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = b
	return nil
}
func (raw) Name() string { return "proto" }

// calls are the methods of the API. Those that change what later calls see are among them: each call has a build of its own.
func calls() (methods []string) {
	for _, d := range []grpc.ServiceDesc{control.Control_ServiceDesc, gateway.LLBBridge_ServiceDesc} {
		for _, m := range d.Methods {
			methods = append(methods, "/"+d.ServiceName+"/"+m.MethodName)
		}
		for _, m := range d.Streams {
			methods = append(methods, "/"+d.ServiceName+"/"+m.StreamName)
		}
	}
	return methods
}

// FuzzCalls sends any bytes to any method, within a build that runs: whatever comes back, the server is there afterwards.
func FuzzCalls(f *testing.F) {
	addr, _ := serve(f, Options{Entitlements: []string{"network.host", "security.insecure", "device"}})
	c := dial(f, addr)
	methods := calls()
	def := &pb.Definition{Def: [][]byte{{0x0a, 0}, nil}, Metadata: map[string]*pb.OpMetadata{"x": nil}}
	for i := range methods {
		for _, m := range []interface{ MarshalVT() ([]byte, error) }{
			&control.SolveRequest{Ref: "r", Definition: mkdir(f, "/d"), Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"a": "b"}, Session: "none"},
			&control.SolveRequest{Ref: "r", Definition: def, Exporters: []*control.Exporter{nil, {Type: "local"}}, Cache: &control.CacheOptions{Exports: []*control.CacheOptionsEntry{nil}}},
			&gateway.SolveRequest{Definition: mkdir(f, "/d"), FrontendInputs: map[string]*pb.Definition{"i": nil}, FrontendOpt: map[string]string{"filename": "x"}, Evaluate: true},
			&gateway.ReadFileRequest{Ref: "other", FilePath: "/../../etc/passwd", Range: &gateway.FileRange{Offset: -1, Length: -1}},
			&gateway.ReturnRequest{Result: &gateway.Result{Metadata: map[string][]byte{"containerimage.config": []byte("{"), "refs.platforms": []byte("[")}, Attestations: map[string]*gateway.Attestations{"p": nil}}},
			&gateway.NewContainerRequest{ContainerID: "c", Mounts: []*pb.Mount{nil, {Dest: "/", ResultID: "x"}}, Network: 77, Platform: &pb.Platform{}},
			&gateway.ExecMessage{ProcessID: "p", Input: &gateway.ExecMessage_Init{Init: &gateway.InitMessage{ContainerID: "other", Meta: nil, Fds: []uint32{1 << 31}}}},
			&gateway.WarnRequest{Digest: "x", Level: 1 << 40, Info: &pb.SourceInfo{}, Ranges: []*pb.Range{nil}},
		} {
			b, err := m.MarshalVT()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(uint8(i), b)
		}
		f.Add(uint8(i), []byte(nil))
	}
	var count atomic.Int64
	f.Fuzz(func(t *testing.T, method uint8, data []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		ref := fmt.Sprint("fuzz", count.Add(1))
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = c.ControlClient.Solve(ctx, &control.SolveRequest{Ref: ref})
		}()
		if _, err := c.Ping(inBuild(ctx, ref), &gateway.PingRequest{}); err != nil {
			t.Fatal(err)
		}
		var answer []byte
		s, err := c.cc.NewStream(inBuild(ctx, ref), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, methods[int(method)%len(methods)], grpc.ForceCodec(raw{}))
		if err == nil {
			_ = s.SendMsg(&data)
			_ = s.CloseSend()
			_ = s.RecvMsg(&answer) // an error is as good as an answer
		}
		cancel()
		<-ended
		if _, err := grpc_health_v1.NewHealthClient(c.cc).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
			t.Fatal(err)
		}
	})
}
