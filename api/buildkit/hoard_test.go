package buildkit

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// until waits for a condition that another goroutine brings about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// requestBytes returns what the server counts of requests for all clients.
func (s *Server) requestBytes() (n int64) {
	s.quota.mu.Lock()
	defer s.quota.mu.Unlock()
	for _, c := range s.quota.clients {
		n += c.requests
	}
	return n
}

// A client sends large requests whose handlers do not end: listeners of the history, builds that wait for their client.
// 400 of 15 MB would hold 6 GB.
func TestAttackRequestsThatHandlersKeep(t *testing.T) {
	const most = 1 << 20
	addr, s := serveServer(t, Options{Limits: Limits{RequestBytes: most}})
	large := strings.Repeat("x", most/3)
	for name, begin := range map[string]func(context.Context, client, int) error{
		"listeners": func(ctx context.Context, c client, _ int) error {
			l, err := c.ListenBuildHistory(ctx, &control.BuildHistoryRequest{Ref: large})
			if err == nil {
				_, err = l.Recv()
			}
			return err
		},
		"builds": func(ctx context.Context, c client, i int) error {
			_, err := c.ControlClient.Solve(ctx, &control.SolveRequest{Ref: fmt.Sprintf("waits %d", i), FrontendAttrs: map[string]string{"a": large}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			c := dial(t, addr)
			errs := make(chan error, 3)
			for i := range 3 {
				go func() { errs <- begin(ctx, c, i) }()
			}
			if err := <-errs; !exhausted(err, "have messages of more than 1048576 bytes") {
				t.Errorf("%v", err)
			}
			if _, err := c.Info(t.Context(), &control.InfoRequest{}); err != nil { // a small request
				t.Error(err)
			}
			cancel()
			until(t, "what ended requests held is still counted", func() bool { return s.requestBytes() == 0 })
		})
	}
}

// A client fills the standard input of processes that do not read it.
func TestAttackInputThatNobodyReads(t *testing.T) {
	const most = 8 << 20
	addr, s := serveServer(t, Options{Limits: Limits{RequestBytes: most}})
	c := dial(t, addr)
	ctx, end := forward(t, c, "stdin")
	defer end()
	id := rootRef(t, ctx, c)
	if _, err := c.NewContainer(ctx, &gateway.NewContainerRequest{ContainerID: "c", Mounts: []*pb.Mount{{Dest: "/", ResultID: id}}}); err != nil {
		t.Fatal(err)
	}
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.ExecProcess(running)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("x"), 3<<20)
	for i := range 4 {
		for _, m := range []*gateway.ExecMessage{
			{Input: &gateway.ExecMessage_Init{Init: &gateway.InitMessage{ContainerID: "c", Fds: []uint32{0}, Meta: &pb.Meta{Args: []string{"/bin/busybox", "sleep", "1000"}, Cwd: "/"}}}},
			{Input: &gateway.ExecMessage_File{File: &gateway.FdMessage{Fd: 0, Data: data}}},
		} {
			m.ProcessID = fmt.Sprint(i)
			if err := stream.Send(m); err != nil {
				break // Recv says why
			}
		}
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if !exhausted(err, "have messages of more than") {
		t.Errorf("%v", err)
	}
	cancel()
	if _, err := c.ReleaseContainer(ctx, &gateway.ReleaseContainerRequest{ContainerID: "c"}); err != nil {
		t.Log(err) // that processes were running
	}
	until(t, "what processes did not read is still counted", func() bool { return s.requestBytes() < 1000 }) // the build's own
}

// A client asks for large files in many calls at once: the answers are in memory before the first is sent.
func TestAttackManyLargeAnswers(t *testing.T) {
	q := newQuota(Limits{})
	var done []func()
	for range maxReaders {
		d, err := q.read(t.Context(), "mallory")
		if err != nil {
			t.Fatal(err)
		}
		done = append(done, d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := q.read(ctx, "mallory"); err == nil {
		t.Error("one more call makes its answer")
	}
	d, err := q.read(t.Context(), "another client")
	if err != nil {
		t.Fatal(err)
	}
	d()
	done[0]()
	if done[0], err = q.read(t.Context(), "mallory"); err != nil {
		t.Fatal(err)
	}
	for _, d := range done {
		d()
	}
	if len(q.readers) != 0 {
		t.Errorf("%d clients are remembered", len(q.readers))
	}

	addr, s := serveServer(t, Options{})
	c := dial(t, addr)
	in, end := forward(t, c, "reader")
	defer end()
	r, err := c.LLBBridgeClient.Solve(in, &gateway.SolveRequest{Definition: mkdir(t, "/d"), AllowResultReturn: true, AllowResultArrayRef: true, Evaluate: true})
	if err != nil {
		t.Fatal(err)
	}
	who := ""
	s.quota.mu.Lock()
	for name := range s.quota.clients {
		who = name
	}
	s.quota.mu.Unlock()
	for i := range done {
		if done[i], err = s.quota.read(t.Context(), who); err != nil {
			t.Fatal(err)
		}
	}
	list := func() error {
		_, err := c.ReadDir(in, &gateway.ReadDirRequest{Ref: r.Result.GetRef().GetId(), DirPath: "/"})
		return err
	}
	got := make(chan error, 1)
	go func() { got <- list() }()
	until(t, "ReadDir does not wait for its turn", func() bool {
		s.quota.mu.Lock()
		defer s.quota.mu.Unlock()
		return s.quota.readers[who].calls == maxReaders+1
	})
	for _, d := range done {
		d()
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// A client begins builds that fail at once, with large requests and errors: 200 of 15 MB took 4 GB of memory and 2.4 GB of the
// disk for two days.
func TestAttackHistoryOfHugeRecords(t *testing.T) {
	addr, s := serveServer(t, Options{})
	c := dial(t, addr)
	many := map[string]string{}
	for i := range 100_000 {
		many[fmt.Sprintf("key %d", i)] = "value"
	}
	text := strings.Repeat("ä", 2<<20)
	for ref, req := range map[string]*control.SolveRequest{
		"text":      {Frontend: "none", FrontendAttrs: map[string]string{"a": text, "b": "short"}},
		"key":       {Frontend: "none", FrontendAttrs: map[string]string{text: "b"}},
		"many":      {Frontend: "none", FrontendAttrs: many},
		"frontend":  {Frontend: text},
		"exporters": {Frontend: "none", Exporters: []*control.Exporter{{Type: text}, {Type: "local", Attrs: many}, {Type: "local", Attrs: map[string]string{"dest": text}}}},
	} {
		req.Ref = ref
		if _, err := c.ControlClient.Solve(t.Context(), req); err == nil {
			t.Fatalf("%s: no error", ref)
		}
	}
	failed := make(chan error, 1)
	go func() {
		_, err := c.ControlClient.Solve(t.Context(), &control.SolveRequest{Ref: "error"})
		failed <- err
	}()
	if _, err := c.Return(inBuild(t.Context(), "error"), &gateway.ReturnRequest{Error: &spb.Status{Code: 2, Message: text[:3<<20]}}); err != nil {
		t.Fatal(err)
	}
	<-failed
	refs, records := past(t, c, &control.BuildHistoryRequest{})
	if len(refs) != 6 {
		t.Errorf("%q", refs)
	}
	for ref, r := range records {
		if n := r.SizeVT(); n > maxRecord {
			t.Errorf("%s: the record has %d bytes", ref, n)
		}
	}
	if r := records["text"]; r.FrontendAttrs["b"] != "short" || !strings.HasSuffix(r.FrontendAttrs["a"], "ä...") {
		t.Errorf("%.100q", r.FrontendAttrs)
	}
	s.each(func(x *tenant) {
		for ref, r := range x.history.records {
			if r.size != int64(r.SizeVT()) || r.size > maxRecord {
				t.Errorf("%s: %d", ref, r.size)
			}
		}
	})
}

// A client's history has limits of its own: of builds, and of bytes in memory and on disk. Pinned builds are within them.
func TestAttackHistoryWithoutEnd(t *testing.T) {
	addr, s := serveServer(t, Options{})
	c := dial(t, addr)
	var h *pastBuilds
	s.each(func(x *tenant) { h = x.history })
	h.most = 300 << 10
	build := func(ref string) {
		t.Helper()
		failed := make(chan error, 1)
		go func() {
			_, err := c.ControlClient.Solve(t.Context(), &control.SolveRequest{Ref: ref})
			failed <- err
		}()
		detail := &anypb.Any{TypeUrl: "x", Value: []byte(ref + strings.Repeat("x", 100<<10))}
		if _, err := c.Return(inBuild(t.Context(), ref), &gateway.ReturnRequest{Error: &spb.Status{Code: 2, Message: "e", Details: []*anypb.Any{detail}}}); err != nil {
			t.Fatal(err)
		}
		if err := <-failed; err == nil {
			t.Error("no error")
		}
	}
	pin := func(ref string) error {
		_, err := c.UpdateBuildHistory(t.Context(), &control.UpdateBuildHistoryRequest{Ref: ref, Pinned: true})
		return err
	}
	build("0")
	if err := pin("0"); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		build(fmt.Sprint(i + 1))
	}
	_, records := past(t, c, &control.BuildHistoryRequest{})
	if refs := slices.Sorted(maps.Keys(records)); !slices.Equal(refs, []string{"0", "4"}) {
		t.Errorf("%q", refs)
	}
	if err := pin("4"); !exhausted(err, "half of what the history may have") {
		t.Errorf("a second pin: %v", err)
	}
}

// A build asks for the plan of a large Dockerfile again and again: each plan is kept until the build's end.
func TestAttackPlansOfLargeDockerfiles(t *testing.T) {
	const size = 100 << 10
	file := func(content []byte) *pb.Definition {
		return define(t, &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{
			Input: -1, SecondaryInput: -1,
			Action: &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{Path: "/Dockerfile", Mode: 0o644, Data: content, Timestamp: -1}},
		}}}}})
	}
	// The definition is small: it copies the file in.
	large := []byte("FROM scratch\n" + strings.Repeat("LABEL a="+strings.Repeat("x", 991)+"\n", size/1000))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(large) }))
	t.Cleanup(server.Close)
	download := define(t, &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: server.URL + "/Dockerfile", Attrs: map[string]string{"http.filename": "Dockerfile"}}}})
	for name, ask := range map[string]*gateway.SolveRequest{
		"input":   {FrontendInputs: map[string]*pb.Definition{"dockerfile": download, "context": file(nil)}},
		"context": {FrontendOpt: map[string]string{"context": server.URL + "/Dockerfile"}},
	} {
		t.Run(name, func(t *testing.T) {
			addr, _ := serveServer(t, Options{Limits: Limits{GraphBytes: 3*size + size/2}})
			c := dial(t, addr)
			ctx, end := forward(t, c, "planner")
			defer end()
			ask.Frontend, ask.AllowResultReturn, ask.AllowResultArrayRef = "dockerfile.v0", true, true
			var err error
			n := 0
			for ; n < 10 && err == nil; n++ {
				_, err = c.LLBBridgeClient.Solve(ctx, ask)
			}
			if n > 4 || !exhausted(err, "definitions of more than") {
				t.Errorf("after %d: %v", n, err)
			}
		})
	}
}
