package buildkit

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	sourcepolicy "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/status"

	"github.com/strata-build/strata/diag"
)

// download is the definition of a file of a web server.
func download(t *testing.T, url string) *pb.Definition {
	return define(t, &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: url}}, Platform: &pb.Platform{OS: "linux", Architecture: "amd64"}})
}

func ruleOf(action sourcepolicy.PolicyAction, id, to string) *sourcepolicy.Policy {
	r := &sourcepolicy.Rule{Action: action, Selector: &sourcepolicy.Selector{Identifier: id}}
	if to != "" {
		r.Updates = &sourcepolicy.Update{Identifier: to}
	}
	return &sourcepolicy.Policy{Rules: []*sourcepolicy.Rule{r}}
}

func TestSourcePolicies(t *testing.T) {
	addr, _ := serve(t, Options{})
	c := dial(t, addr)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("file " + r.URL.Path))
	}))
	defer web.Close()
	deny := ruleOf(sourcepolicy.PolicyAction_DENY, web.URL+"/bad", "")
	if _, err := c.ControlClient.Solve(t.Context(), &control.SolveRequest{Ref: "a", Definition: download(t, web.URL+"/bad"), SourcePolicy: deny}); err == nil || !strings.Contains(err.Error(), "source denied by policy") {
		t.Errorf("the whole build: %v", err)
	}
	if _, err := c.ControlClient.Solve(t.Context(), &control.SolveRequest{Ref: "b", Definition: download(t, web.URL+"/good"), SourcePolicy: deny}); err != nil {
		t.Error(err)
	}

	done := make(chan error, 1)
	go func() {
		_, err := c.ControlClient.Solve(t.Context(), &control.SolveRequest{Ref: "fwd", SourcePolicy: deny})
		done <- err
	}()
	ctx := inBuild(t.Context(), "fwd")
	convert := []*sourcepolicy.Policy{ruleOf(sourcepolicy.PolicyAction_CONVERT, web.URL+"/old", web.URL+"/new")}
	meta, err := c.ResolveSourceMeta(ctx, &gateway.ResolveSourceMetaRequest{
		Source: &pb.SourceOp{Identifier: web.URL + "/old"}, SourcePolicies: convert,
		HTTP: &gateway.ResolveSourceHTTPRequest{ChecksumRequest: &gateway.ChecksumRequest{Algo: gateway.ChecksumRequest_CHECKSUM_ALGO_SHA512, Suffix: []byte("+")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if meta.Source.Identifier != web.URL+"/new" || meta.HTTP.Checksum != digest.FromString("file /new").String() || meta.HTTP.Filename != "new" || meta.HTTP.ChecksumResponse.Digest != digest.SHA512.FromString("file /new+").String() {
		t.Errorf("%v", meta)
	}
	if _, err := c.ResolveSourceMeta(ctx, &gateway.ResolveSourceMetaRequest{Source: &pb.SourceOp{Identifier: web.URL + "/bad"}}); err == nil || !strings.Contains(err.Error(), "source denied by policy") {
		t.Errorf("the build's policy: %v", err)
	}
	r, err := c.LLBBridgeClient.Solve(ctx, &gateway.SolveRequest{Definition: download(t, web.URL+"/old"), SourcePolicies: convert, AllowResultReturn: true, AllowResultArrayRef: true})
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.ReadFile(ctx, &gateway.ReadFileRequest{Ref: r.Result.GetRef().GetId(), FilePath: "/new"})
	if err != nil || string(f.Data) != "file /new" {
		t.Errorf("%v %v", f, err)
	}
	if _, err := c.LLBBridgeClient.Solve(ctx, &gateway.SolveRequest{Definition: download(t, web.URL+"/bad"), AllowResultReturn: true}); err == nil || !strings.Contains(err.Error(), "source denied by policy") {
		t.Errorf("a definition of the frontend: %v", err)
	}
	if _, err := c.Return(ctx, &gateway.ReturnRequest{Result: &gateway.Result{}}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDenyMessages(t *testing.T) {
	err := toStatus(denied{diag.Errorf(diag.Denied, "no"), []string{"one", "two"}})
	var got denyDetail
	for _, d := range status.Convert(err).Proto().Details {
		if d.TypeUrl == "github.com/moby/buildkit/policysession.DecisionResponse+json" {
			if err := json.Unmarshal(d.Value, &got); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got.Action != "DENY" || len(got.DenyMessages) != 2 || got.DenyMessages[1].Message != "two" {
		t.Errorf("%+v", got)
	}
	if _, ok := denyMessages(context.Canceled); ok {
		t.Error("messages of nothing")
	}
}
