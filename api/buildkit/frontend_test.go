package buildkit

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// frontendInput is the test frontend as an input of a request, and the attributes that choose it.
func frontendInput(t *testing.T) (map[string]*pb.Definition, map[string]string) {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "frontend")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./testdata/frontend")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	def := define(t, &pb.Op{Platform: &pb.Platform{OS: "linux", Architecture: "amd64"}, Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{
		Input: -1, SecondaryInput: -1, Action: &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{Path: "/frontend", Mode: 0o755, Data: data, Timestamp: -1}},
	}}}}})
	conf := `{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/frontend"],"Env":["OWN=1"],"Labels":{"moby.buildkit.frontend.network.none":"true","moby.buildkit.frontend.caps":"moby.buildkit.frontend.inputs,a+b"}}}`
	meta, err := json.Marshal(map[string][]byte{metaConfig: []byte(conf)})
	if err != nil {
		t.Fatal(err)
	}
	return map[string]*pb.Definition{"front": def}, map[string]string{"source": "mine", "context:mine": "input:front", "input-metadata:front": string(meta)}
}

func TestFrontendInImage(t *testing.T) {
	addr, _ := serve(t, Options{})
	c := dial(t, addr)
	inputs, attrs := frontendInput(t)
	ctx, end := forward(t, c, "front")
	foreign := rootRef(t, ctx, c)
	solve := func(mode string, more map[string]string) (*gateway.SolveResponse, error) {
		opt := maps.Clone(attrs)
		opt["mode"], opt["ref"] = mode, foreign
		maps.Copy(opt, more)
		return c.LLBBridgeClient.Solve(ctx, &gateway.SolveRequest{Frontend: "gateway.v0", FrontendOpt: opt, FrontendInputs: inputs, AllowResultReturn: true, AllowResultArrayRef: true})
	}
	r, err := solve("ok", map[string]string{"frontend.caps": "a"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.ReadFile(ctx, &gateway.ReadFileRequest{Ref: r.Result.GetRef().GetId(), FilePath: "/seen"})
	if err != nil || string(f.Data) != "ok 1 1 buildkit 1" || string(r.Result.Metadata["frontend.test"]) != "x" {
		t.Errorf("%q, %v, %v", f.GetData(), err, r.Result.Metadata)
	}
	// A Dockerfile that asks for the frontend gets it.
	opt := maps.Clone(attrs)
	opt["mode"] = "asked"
	delete(opt, "source")
	in := maps.Clone(inputs)
	in["dockerfile"] = define(t, &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{
		Input: -1, SecondaryInput: -1, Action: &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{Path: "/Dockerfile", Mode: 0o644, Data: []byte("# syntax=mine with words\nNOTHING OF OURS\n"), Timestamp: -1}},
	}}}}})
	if r, err = c.LLBBridgeClient.Solve(ctx, &gateway.SolveRequest{Frontend: "dockerfile.v0", FrontendOpt: opt, FrontendInputs: in, AllowResultReturn: true, AllowResultArrayRef: true}); err != nil {
		t.Fatal(err)
	}
	if f, err = c.ReadFile(ctx, &gateway.ReadFileRequest{Ref: r.Result.GetRef().GetId(), FilePath: "/seen"}); err != nil || string(f.Data) != "asked 2 1 buildkit 1" {
		t.Errorf("%q, %v", f.GetData(), err)
	}
	for mode, want := range map[string]string{
		"none": "ended without a result", "crash": "exit code: 3\nno way to go on", "error": "the frontend says no", "foreign": "no such ref",
	} {
		if _, err := solve(mode, nil); err == nil || !strings.Contains(err.Error(), want) || status.Code(err) != codes.Unknown {
			t.Errorf("%s: %v", mode, err)
		}
	}
	for name, more := range map[string]map[string]string{
		"a capability": {"frontend.caps": "future"}, "no source": {"source": ""}, "a bad name": {"source": "../x:y:z"}, "no input": {"context:mine": "input:none"},
		"a bad context": {"context:mine": "what://ever"}, "a development gateway": {"gateway-devel": ""}, "a zero": {"x": "a\x00b"},
	} {
		if _, err := solve("ok", more); err == nil || status.Code(err) == codes.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
	end()
	hangs(t, c, inputs, attrs)
}

// hangs cancels a build whose frontend does nothing.
func hangs(t *testing.T, c client, inputs map[string]*pb.Definition, attrs map[string]string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	attrs["mode"] = "hang"
	if _, err := c.ControlClient.Solve(ctx, &control.SolveRequest{Ref: "hang", Frontend: "gateway.v0", FrontendAttrs: attrs, FrontendInputs: inputs}); err == nil {
		t.Error("a frontend that hangs has ended")
	}
	// The directory of the engine's root is part of all mounts that a container needs.
	for range 100 {
		data, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || !strings.Contains(string(data), t.Name()) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("mounts are left")
}
