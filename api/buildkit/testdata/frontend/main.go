// Frontend is a frontend in an image for the tests: it speaks LLBBridge over its input and output. The option "mode", or the
// build argument MODE, says what it does.
package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
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

func mode() string {
	if m := option("mode"); m != "" {
		return m
	}
	return option("build-arg:MODE")
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
	switch mode() {
	case "none":
		return
	case "crash":
		fail(fmt.Errorf("no way to go on"))
	case "error":
		_, err = c.Return(ctx, &gateway.ReturnRequest{Error: &spb.Status{Code: 2, Message: "the frontend says no"}})
	case "foreign":
		_, err = c.Return(ctx, &gateway.ReturnRequest{Result: &gateway.Result{Result: &gateway.Result_Ref{Ref: &gateway.Ref{Id: option("ref")}}}})
		if err == nil {
			os.Exit(9)
		}
		return
	case "hang":
		select {}
	case "context", "network":
		err = ofContext(ctx, c)
	case "define":
		err = define(ctx, c)
	case "warn":
		if err = warn(ctx, c); err == nil {
			err = build(ctx, c)
		}
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
	text := fmt.Sprintf("%s %d %d %s %s", mode(), len(in.Definitions), len(links), os.Getenv("BUILDKIT_EXPORTEDPRODUCT"), os.Getenv("OWN"))
	if id := option("requestid"); id != "" {
		_, err := c.Return(ctx, &gateway.ReturnRequest{Result: &gateway.Result{Metadata: map[string][]byte{"result.txt": []byte("asked " + id + "\n"), "result.json": []byte("{}")}}})
		return err
	}
	op, err := (&pb.Op{Platform: &pb.Platform{OS: "linux", Architecture: "amd64"}, Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{
		Input: -1, SecondaryInput: -1, Action: &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{Path: "/seen", Mode: 0o644, Data: []byte(text), Timestamp: -1}},
	}}}}}).MarshalVT()
	if err != nil {
		return err
	}
	return finish(ctx, c, op)
}

// finish returns what the last of some ops makes.
func finish(ctx context.Context, c gateway.LLBBridgeClient, ops ...[]byte) error {
	last, err := (&pb.Op{Inputs: []*pb.Input{{Digest: digest.FromBytes(ops[len(ops)-1]).String()}}}).MarshalVT()
	if err != nil {
		return err
	}
	r, err := c.Solve(ctx, &gateway.SolveRequest{Definition: &pb.Definition{Def: append(ops, last)}, Evaluate: true, AllowResultReturn: true, AllowResultArrayRef: true})
	if err != nil {
		st, _ := status.FromError(err)
		_, err = c.Return(ctx, &gateway.ReturnRequest{Error: st.Proto()})
		return err
	}
	_, err = c.Return(ctx, &gateway.ReturnRequest{Result: &gateway.Result{Result: r.Result.Result, Metadata: map[string][]byte{
		"frontend.test": []byte("x"), "containerimage.config": []byte(`{"architecture":"amd64","os":"linux","config":{"Labels":{"of":"` + option("label:of") + `"}},"rootfs":{"type":"layers"}}`),
	}}})
	return err
}

// ofContext returns the build context, or what a step with the network of the host makes of it.
func ofContext(ctx context.Context, c gateway.LLBBridgeClient) error {
	src, err := (&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "local://context", Attrs: map[string]string{"local.excludepatterns": `["Dockerfile*"]`}}}}).MarshalVT()
	if err != nil {
		return err
	}
	from := []*pb.Input{{Digest: digest.FromBytes(src).String()}}
	if mode() == "context" {
		all := &pb.FileAction{Input: -1, Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{Src: "/", Dest: "/", DirCopyContents: true, Mode: -1, Timestamp: -1}}}
		cp, err := (&pb.Op{Inputs: from, Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{all}}}}).MarshalVT()
		if err != nil {
			return err
		}
		return finish(ctx, c, src, cp)
	}
	exec := &pb.ExecOp{Meta: &pb.Meta{Args: []string{"/no"}, Cwd: "/"}, Network: pb.NetMode_HOST, Mounts: []*pb.Mount{{Dest: "/"}}}
	run, err := (&pb.Op{Inputs: from, Op: &pb.Op_Exec{Exec: exec}}).MarshalVT()
	if err != nil {
		return err
	}
	return finish(ctx, c, src, run)
}

// define returns what the definition in an option makes.
func define(ctx context.Context, c gateway.LLBBridgeClient) error {
	raw, err := base64.StdEncoding.DecodeString(option("def"))
	if err != nil {
		return err
	}
	def := &pb.Definition{}
	if err := def.UnmarshalVT(raw); err != nil {
		return err
	}
	return finish(ctx, c, def.Def[:len(def.Def)-1]...)
}

func warn(ctx context.Context, c gateway.LLBBridgeClient) error {
	_, err := c.Warn(ctx, &gateway.WarnRequest{
		Digest: digest.FromString("x").String(), Level: 1, Short: []byte("mind the frontend"), Info: &pb.SourceInfo{Filename: "Dockerfile", Data: []byte("a line\n")},
		Ranges: []*pb.Range{{Start: &pb.Position{Line: 1}, End: &pb.Position{Line: 1}}},
	})
	return err
}
