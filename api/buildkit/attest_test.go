package buildkit

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"

	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/graph"
)

// mkfile is a definition of a tree with one file.
func mkfile(t *testing.T, name, data string) *pb.Definition {
	return define(t, &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{
		Input: -1, SecondaryInput: -1, Output: 0, Action: &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{Path: name, Mode: 0o644, Data: []byte(data)}},
	}}}}})
}

// attested builds through the gateway: one tree, and statements about it.
func attested(t *testing.T, c client, ref string, attrs map[string]string, statements ...*gateway.Attestation) (map[string]string, error) {
	t.Helper()
	done := make(chan error, 1)
	var resp *control.SolveResponse
	go func() {
		var err error
		resp, err = c.ControlClient.Solve(t.Context(), &control.SolveRequest{
			Ref: ref, FrontendAttrs: attrs, Exporters: []*control.Exporter{{Type: "image", Attrs: map[string]string{"name": ref}}},
		})
		done <- err
	}()
	ctx := inBuild(t.Context(), ref)
	made := func(def *pb.Definition) *gateway.Ref {
		r, err := c.LLBBridgeClient.Solve(ctx, &gateway.SolveRequest{Definition: def, AllowResultReturn: true, AllowResultArrayRef: true})
		if err != nil {
			t.Fatal(err)
		}
		return r.Result.GetRef()
	}
	out := &gateway.Result{Result: &gateway.Result_Ref{Ref: made(mkfile(t, "/f", "data"))}}
	if len(statements) > 0 {
		held := made(mkfile(t, "/statement.json", `{"name":"stated"}`))
		for _, s := range statements {
			s.Ref = held
		}
		out.Attestations = map[string]*gateway.Attestations{graph.FormatPlatform(engine.Native()): {Attestation: statements}}
	}
	if _, err := c.Return(ctx, &gateway.ReturnRequest{Result: out}); err != nil {
		<-done
		return nil, err
	}
	if err := <-done; err != nil {
		return nil, err
	}
	return resp.ExporterResponse, nil
}

// statementsOf reads what the store has of statements about an image, by type.
func statementsOf(t *testing.T, e *engine.Engine, name string) map[string]string {
	t.Helper()
	im, err := e.InspectImage(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, a := range im.Platforms[0].Attestations {
		b, err := e.OpenBlob(context.Background(), a.Digest)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(b.Reader())
		if err != nil {
			t.Fatal(err)
		}
		b.Close()
		out[a.PredicateType] = string(data)
	}
	return out
}

func TestAttestationsOfClients(t *testing.T) {
	addr, e := serve(t, Options{})
	c := dial(t, addr)
	spdx := &gateway.Attestation{Kind: gateway.AttestationKind_InToto, Path: "/statement.json", InTotoPredicateType: "https://spdx.dev/Document"}
	raw := &gateway.Attestation{Kind: gateway.AttestationKind_InToto, Path: "/statement.json", InTotoPredicateType: "https://example.com/a", InTotoSubjects: []*gateway.InTotoSubject{
		{Kind: gateway.InTotoSubjectKind_Raw, Name: "other", Digest: []string{"sha256:" + strings.Repeat("a", 64)}},
	}}
	// There is a bill of materials: no scanner, which this test has none of, is asked.
	resp, err := attested(t, c, "attested", map[string]string{"attest:sbom": "", "attest:provenance": "mode=max", "asked": "yes"}, spdx, raw)
	if err != nil {
		t.Fatal(err)
	}
	got := statementsOf(t, e, "attested")
	if want := []string{"https://example.com/a", "https://slsa.dev/provenance/v1", "https://spdx.dev/Document"}; !slices.Equal(slices.Sorted(maps.Keys(got)), want) {
		t.Fatalf("%v", got)
	}
	if !strings.Contains(got["https://example.com/a"], `"name": "other"`) || !strings.Contains(got["https://spdx.dev/Document"], "pkg:docker/attested@latest") {
		t.Errorf("%v", got)
	}
	var p struct {
		Subject   []struct{ Digest map[string]string }
		Predicate struct {
			BuildDefinition struct {
				ExternalParameters struct{ Request map[string]any }
				InternalParameters struct{ BuildConfig struct{ LLBDefinition []any } }
			}
			RunDetails struct {
				Metadata struct {
					Buildkit map[string]any `json:"buildkit_metadata"`
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(got["https://slsa.dev/provenance/v1"]), &p); err != nil {
		t.Fatal(err)
	}
	if p.Subject[0].Digest["sha256"] == "" || strings.HasSuffix(resp["containerimage.digest"], p.Subject[0].Digest["sha256"]) {
		t.Errorf("the subject is the image, and the answer the index: %+v, %v", p.Subject, resp)
	}
	if d := p.Predicate.BuildDefinition; len(d.InternalParameters.BuildConfig.LLBDefinition) != 2 || d.ExternalParameters.Request["frontend"] != nil || d.ExternalParameters.Request["compatibilityVersion"] != 30.0 {
		t.Errorf("%+v", d)
	}
	if p.Predicate.RunDetails.Metadata.Buildkit["layers"] == nil {
		t.Errorf("%+v", p.Predicate.RunDetails)
	}
	if _, err := attested(t, c, "plain", nil); err != nil {
		t.Fatal(err)
	}
	if got := statementsOf(t, e, "plain"); len(got) != 0 {
		t.Errorf("nobody asked: %v", got)
	}
}

func TestBadAttestations(t *testing.T) {
	addr, _ := serve(t, Options{})
	c := dial(t, addr)
	for name, bad := range map[string]struct {
		attrs map[string]string
		a     *gateway.Attestation
		want  string
	}{
		"type":       {attrs: map[string]string{"attest:nonsense": ""}, want: `unknown attestation type "nonsense"`},
		"mode":       {attrs: map[string]string{"attest:provenance": "mode=x"}, want: "invalid mode"},
		"version":    {attrs: map[string]string{"build-arg:BUILDKIT_ATTEST_PROVENANCE": "version=x"}, want: "invalid provenance SLSA version"},
		"generator":  {attrs: map[string]string{"attest:sbom": "generator="}, want: "generator cannot be empty"},
		"path":       {a: &gateway.Attestation{}, want: "does not have set path"},
		"kind":       {a: &gateway.Attestation{Kind: 9, Path: "/statement.json"}, want: "unknown attestation kind"},
		"subject":    {a: &gateway.Attestation{Path: "/statement.json", InTotoSubjects: []*gateway.InTotoSubject{{Kind: 9}}}, want: "unknown attestation subject"},
		"digest":     {a: &gateway.Attestation{Path: "/statement.json", InTotoSubjects: []*gateway.InTotoSubject{{Kind: gateway.InTotoSubjectKind_Raw, Digest: []string{"x"}}}}, want: "invalid checksum digest"},
		"provenance": {a: &gateway.Attestation{Path: "/statement.json", InTotoPredicateType: "https://slsa.dev/provenance/v1"}, want: "may not set provenance"},
		"missing":    {a: &gateway.Attestation{Path: "/nosuch"}, want: "cannot read in-toto attestation"},
	} {
		t.Run(name, func(t *testing.T) {
			if bad.a == nil {
				_, err := c.ControlClient.Solve(t.Context(), &control.SolveRequest{Ref: "bad-" + name, FrontendAttrs: bad.attrs, Definition: mkfile(t, "/f", "x")})
				if err == nil || !strings.Contains(err.Error(), bad.want) {
					t.Errorf("%v", err)
				}
				return
			}
			if _, err := attested(t, c, "bad-"+name, nil, bad.a); err == nil || !strings.Contains(err.Error(), bad.want) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestPlatformsByVersionOfTheSystem(t *testing.T) {
	req, err := request(map[string]string{"platform": "windows(1.2.3)/amd64,windows(1.1.0)/amd64,windows(1.2.3)/amd64"})
	if err != nil || len(req.Platforms) != 2 || req.Platforms[1].OSVersion != "1.1.0" {
		t.Errorf("%+v, %v", req.Platforms, err)
	}
}
