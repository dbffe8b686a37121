package buildkit

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"
)

func exhausted(err error, word string) bool {
	return err != nil && strings.Contains(err.Error(), word)
}

// A client opens connections until the daemon has no descriptors left.
func TestClientOfManyConnections(t *testing.T) {
	addr, _ := serve(t, Options{Limits: Limits{Connections: 3}})
	var open []client
	for range 3 {
		c := dial(t, addr)
		if _, err := c.Info(t.Context(), &control.InfoRequest{}); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := dial(t, addr).Info(ctx, &control.InfoRequest{}); err == nil {
		t.Error("a fourth connection was taken")
	}
	open[0].cc.Close()
	for { // the server hears of the end a moment later
		_, err := dial(t, addr).Info(ctx, &control.InfoRequest{})
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// A client begins calls and does not end them.
func TestClientOfManyCalls(t *testing.T) {
	addr, _ := serve(t, Options{Limits: Limits{Calls: 3}})
	c := dial(t, addr)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 3 {
		s, err := c.ListenBuildHistory(ctx, &control.BuildHistoryRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Header(); err != nil { // it is under way
			t.Fatal(err)
		}
	}
	if _, err := dial(t, addr).Info(t.Context(), &control.InfoRequest{}); !exhausted(err, "3 calls") {
		t.Errorf("%v", err)
	}
	cancel()
	for end := time.Now().Add(20 * time.Second); ; {
		_, err := c.Info(t.Context(), &control.InfoRequest{})
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// A client begins calls and never sends their messages: no handler runs, but each has a stream and a goroutine.
func TestAttackCallsWithoutMessages(t *testing.T) {
	addr, _ := serve(t, Options{Limits: Limits{Calls: 3}})
	c := dial(t, addr)
	ctx, cancel := context.WithCancel(t.Context())
	for range 3 {
		if _, err := c.cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, "/moby.buildkit.v1.Control/Solve"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Info(t.Context(), &control.InfoRequest{}); !exhausted(err, "3 calls") {
		t.Errorf("%v", err)
	}
	cancel()
	for end := time.Now().Add(20 * time.Second); ; {
		_, err := c.Info(t.Context(), &control.InfoRequest{})
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// A handler that goes on when its stream has ended still counts.
func TestAttackHandlersOutliveTheirStreams(t *testing.T) {
	q := newQuota(Limits{Calls: 1})
	ctx, cancel := context.WithCancel(t.Context())
	ctx, err := q.begin(ctx, "mallory", func() {})
	if err != nil {
		t.Fatal(err)
	}
	end, err := handling(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := q.begin(t.Context(), "mallory", func() {}); !exhausted(err, "1 calls") {
		t.Errorf("%v", err)
	}
	end()
	for q.take("mallory", share{calls: 1}) != nil { // the stream's end is noted by another goroutine
		time.Sleep(time.Millisecond)
	}
	if _, err := handling(ctx); err == nil {
		t.Error("a handler begins after the end of its call")
	}
}

// A client sends one definition after another within a build that it does not end.
func TestClientOfManyGraphs(t *testing.T) {
	addr, _ := serve(t, Options{Limits: Limits{GraphBytes: 100 << 10}})
	c := dial(t, addr)
	ctx, end := forward(t, c, "hoarder")
	def := mkdir(t, "/"+strings.Repeat("x", 30<<10))
	var err error
	n := 0
	for ; n < 10 && err == nil; n++ {
		_, err = c.LLBBridgeClient.Solve(ctx, &gateway.SolveRequest{Definition: def})
	}
	if n != 4 || !exhausted(err, "definitions of more than") {
		t.Errorf("after %d: %v", n, err)
	}
	end()
	ctx, end = forward(t, c, "next")
	defer end()
	if _, err := c.LLBBridgeClient.Solve(ctx, &gateway.SolveRequest{Definition: def}); err != nil {
		t.Errorf("after the build's end: %v", err)
	}
}

// A client asks for one container after another, in one build after another.
func TestAttackContainersOfManyBuilds(t *testing.T) {
	addr, _ := serve(t, Options{Limits: Limits{Containers: 2}})
	c := dial(t, addr)
	var ends []func()
	ctxs := make([]context.Context, 3)
	for i := range ctxs {
		var end func()
		ctxs[i], end = forward(t, c, fmt.Sprintf("build %d", i))
		ends = append(ends, end)
	}
	one := func(i int) error {
		id := rootRef(t, ctxs[i], c)
		_, err := c.NewContainer(ctxs[i], &gateway.NewContainerRequest{ContainerID: fmt.Sprint(i), Mounts: []*pb.Mount{{Dest: "/", ResultID: id}}})
		return err
	}
	for i := range 2 {
		if err := one(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := one(2); !exhausted(err, "have 2 containers") {
		t.Errorf("a third container: %v", err)
	}
	inputs, attrs := frontendInput(t)
	ask := &gateway.SolveRequest{Frontend: "gateway.v0", FrontendOpt: attrs, FrontendInputs: inputs, AllowResultReturn: true, AllowResultArrayRef: true}
	if _, err := c.LLBBridgeClient.Solve(ctxs[2], ask); !exhausted(err, "have 2 containers") {
		t.Errorf("a frontend: %v", err)
	}
	if _, err := c.ReleaseContainer(ctxs[0], &gateway.ReleaseContainerRequest{ContainerID: "0"}); err != nil {
		t.Fatal(err)
	}
	for range 3 { // each gives its place back
		if _, err := c.LLBBridgeClient.Solve(ctxs[2], ask); err != nil {
			t.Errorf("a frontend in the place of a container: %v", err)
		}
	}
	ends[1]() // the end of a build removes its container
	for i := range 2 {
		if err := one(2 * i); err != nil {
			t.Errorf("after the end of a build: %v", err)
		}
	}
	ends[0]()
	ends[2]()
}

// A frontend asks for frontends without end.
func TestAttackEndlessFrontends(t *testing.T) {
	addr, s := serveServer(t, Options{})
	c := dial(t, addr)
	ctx, end := forward(t, c, "endless")
	defer end()
	def := define(t, &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{
		Input: -1, SecondaryInput: -1,
		Action: &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{Path: "/Dockerfile", Mode: 0o644, Data: []byte("FROM scratch\nLABEL a=b\n"), Timestamp: -1}},
	}}}}})
	ask := func() error {
		_, err := c.LLBBridgeClient.Solve(ctx, &gateway.SolveRequest{
			Frontend: "dockerfile.v0", FrontendInputs: map[string]*pb.Definition{"dockerfile": def, "context": def}, AllowResultReturn: true, AllowResultArrayRef: true,
		})
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	s.each(func(t *tenant) {
		t.builds.mu.Lock()
		defer t.builds.mu.Unlock()
		for _, b := range t.builds.byRef {
			b.bridge.asked.Store(maxAsked - 1)
		}
	})
	if err := ask(); err != nil {
		t.Error(err)
	}
	if err := ask(); !exhausted(err, "asked frontends more than") {
		t.Errorf("one more: %v", err)
	}
}

// The definitions of nested builds count for their client until the build ends.
func TestDefinitionsOfNestedBuildsCount(t *testing.T) {
	q := newQuota(Limits{GraphBytes: 100})
	one, two := q.charger("mallory"), q.charger("mallory")
	if err := one.add(60); err != nil {
		t.Fatal(err)
	}
	if err := two.add(60); !exhausted(err, "definitions of more than") {
		t.Errorf("%v", err)
	}
	one.end()
	if err := two.add(60); err != nil {
		t.Error(err)
	}
	two.end()
	two.end()
	if len(q.clients) != 0 {
		t.Errorf("%v is left", q.clients)
	}
}

// Finding duplicates among platforms took time that grew with the square of their number, and nothing ended it.
func TestAttackManyPlatforms(t *testing.T) {
	var b strings.Builder
	for i := range 60_000 {
		fmt.Fprintf(&b, "linux/arm/v%d,", i)
	}
	if _, err := request(map[string]string{"platform": b.String() + "linux/amd64"}); !exhausted(err, "60001 platforms") {
		t.Errorf("%v", err)
	}
	if r, err := request(map[string]string{"platform": "linux/amd64,linux/amd64,linux/arm64"}); err != nil || len(r.Platforms) != 2 {
		t.Errorf("%v %v", r.Platforms, err)
	}
}
