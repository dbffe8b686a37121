package buildkit

import (
	"slices"
	"strings"
	"testing"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/pb"
)

func TestFrontendsThatMayBeUsed(t *testing.T) {
	names, err := NewRepositories([]string{"docker/dockerfile:1", "example.com/x/y"})
	if err != nil || !slices.Equal(names, []string{"docker.io/docker/dockerfile", "example.com/x/y"}) {
		t.Fatal(names, err)
	}
	if _, err := NewRepositories([]string{"A B"}); err == nil {
		t.Error("a name that is none was taken")
	}
	f := Frontends{Repositories: names}
	for source, want := range map[string]bool{"docker/dockerfile": true, "docker.io/docker/dockerfile:2@sha256:" + strings.Repeat("0", 64): true, "example.com/x/y:3": true, "example.com/x": false, "y": false, "A B": false} {
		if f.allows(source) != want || !(&Frontends{}).allows(source) {
			t.Error(source)
		}
	}
	inputs := map[string]*pb.Definition{"dockerfile": define(t, &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{
		Input: -1, SecondaryInput: -1, Action: &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{Path: "/Dockerfile", Mode: 0o644, Data: []byte("FROM scratch\n"), Timestamp: -1}},
	}}}}})}
	foreign := map[string]string{"source": "example.com/front", "build-arg:BUILDKIT_SYNTAX": "example.com/front"}
	built := map[string]string{"source": dockerfileFrontend}
	for _, x := range []struct {
		opt      Frontends
		frontend string
		attrs    map[string]string
		want     string
	}{
		{f, gatewayFrontend, foreign, "'example.com/front' is not an allowed gateway source"},
		{f, dockerfileFrontend, foreign, "'example.com/front' is not an allowed gateway source"},
		{f, gatewayFrontend, built, ""},
		{Frontends{NoGateway: true}, gatewayFrontend, foreign, `failed to find frontend: "gateway.v0"`},
		{Frontends{NoGateway: true}, dockerfileFrontend, foreign, `failed to find frontend: "gateway.v0"`},
		{Frontends{NoGateway: true}, dockerfileFrontend, nil, ""},
		{Frontends{NoDockerfile: true}, dockerfileFrontend, nil, `failed to find frontend: "dockerfile.v0"`},
		{Frontends{NoDockerfile: true}, gatewayFrontend, built, `failed to find frontend: "dockerfile.v0"`},
	} {
		addr, _, stop := serveAt(t, t.TempDir(), Options{Frontends: x.opt})
		_, err := dial(t, addr).ControlClient.Solve(t.Context(), &control.SolveRequest{Ref: "x", Frontend: x.frontend, FrontendAttrs: x.attrs, FrontendInputs: inputs})
		if (err == nil) != (x.want == "") || err != nil && !strings.Contains(err.Error(), x.want) {
			t.Errorf("%+v: %v", x, err)
		}
		stop()
	}
}
