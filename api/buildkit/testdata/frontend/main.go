// Frontend is a frontend in an image for the tests: it speaks LLBBridge over its input and output. The option "mode" says what
// it does.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// stdio is a connection over the program's input and output.
type stdio struct{ net.Conn }

func (stdio) Read(p []byte) (int, error)       { return os.Stdin.Read(p) }
func (stdio) Write(p []byte) (int, error)      { return os.Stdout.Write(p) }
func (stdio) Close() error                     { return nil }
func (stdio) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (stdio) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (stdio) SetDeadline(time.Time) error      { return nil }
func (stdio) SetReadDeadline(time.Time) error  { return nil }
func (stdio) SetWriteDeadline(time.Time) error { return nil }

func option(name string) string {
	for _, e := range os.Environ() {
		if k, v, _ := strings.Cut(e, "="); strings.HasPrefix(k, "BUILDKIT_FRONTEND_OPT_") && strings.HasPrefix(v, name+"=") {
			return strings.TrimPrefix(v, name+"=")
		}
	}
	return ""
}

func main() {
	cc, err := grpc.NewClient("passthrough:///stdio", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return stdio{}, nil }))
	if err != nil {
		fail(err)
	}
	c := gateway.NewLLBBridgeClient(cc)
	ctx := context.Background()
	if p, err := c.Ping(ctx, &gateway.PingRequest{}); err != nil || len(p.Workers) != 1 {
		fail(fmt.Errorf("ping %v, %w", p, err))
	}
	switch option("mode") {
	case "none":
		return
	case "crash":
		fail(fmt.Errorf("no way to go on"))
	case "error":
		_, err = c.Return(ctx, &gateway.ReturnRequest{Error: &status.Status{Code: 2, Message: "the frontend says no"}})
	case "foreign":
		_, err = c.Return(ctx, &gateway.ReturnRequest{Result: &gateway.Result{Result: &gateway.Result_Ref{Ref: &gateway.Ref{Id: option("ref")}}}})
		if err == nil {
			os.Exit(9)
		}
		return
	case "hang":
		select {}
	default:
		err = build(ctx, c)
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(3)
}

// build returns a file that tells what the frontend has seen.
func build(ctx context.Context, c gateway.LLBBridgeClient) error {
	in, err := c.Inputs(ctx, &gateway.InputsRequest{})
	if err != nil {
		return err
	}
	meta, err := os.ReadFile("/run/config/buildkit/metadata/frontend.bin")
	if err != nil || (&pb.Definition{}).UnmarshalVT(meta) != nil {
		return fmt.Errorf("the frontend's own definition: %w", err)
	}
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	text := fmt.Sprintf("%s %d %d %s %s", option("mode"), len(in.Definitions), len(links), os.Getenv("BUILDKIT_EXPORTEDPRODUCT"), os.Getenv("OWN"))
	op, err := (&pb.Op{Platform: &pb.Platform{OS: "linux", Architecture: "amd64"}, Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{
		Input: -1, SecondaryInput: -1, Action: &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{Path: "/seen", Mode: 0o644, Data: []byte(text), Timestamp: -1}},
	}}}}}).MarshalVT()
	if err != nil {
		return err
	}
	last, err := (&pb.Op{Inputs: []*pb.Input{{Digest: digest.FromBytes(op).String()}}}).MarshalVT()
	if err != nil {
		return err
	}
	r, err := c.Solve(ctx, &gateway.SolveRequest{Definition: &pb.Definition{Def: [][]byte{op, last}}, AllowResultReturn: true, AllowResultArrayRef: true})
	if err != nil {
		return err
	}
	_, err = c.Return(ctx, &gateway.ReturnRequest{Result: &gateway.Result{Result: r.Result.Result, Metadata: map[string][]byte{"frontend.test": []byte("x")}}})
	return err
}
