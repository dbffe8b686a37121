package buildkit

import (
	"context"
	"strings"
	"testing"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
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
