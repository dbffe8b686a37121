package buildkit

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strata-build/strata/session/remote"
	"github.com/strata-build/strata/tracing"
)

// past lists the history.
func past(t *testing.T, c client, req *control.BuildHistoryRequest) (refs []string, records map[string]*control.BuildHistoryRecord) {
	t.Helper()
	req.EarlyExit = true
	s, err := c.ListenBuildHistory(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	records = map[string]*control.BuildHistoryRecord{}
	for {
		e, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return refs, records
		}
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, e.Record.Ref)
		records[e.Record.Ref] = e.Record
	}
}

// readBlob reads from the content API; it is "" for what is not there.
func readBlob(t *testing.T, c client, d *control.Descriptor) string {
	t.Helper()
	if d == nil {
		t.Fatal("no descriptor")
	}
	s, err := c.cc.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/containerd.services.content.v1.Content/Read", grpc.ForceCodec(remote.Codec{}))
	if err != nil {
		t.Fatal(err)
	}
	req := &encoded{}
	req.bytes(1, []byte(d.Digest))
	if err := errors.Join(s.SendMsg(req), s.CloseSend()); err != nil {
		t.Fatal(err)
	}
	var all []byte
	for {
		m := &encoded{}
		err := s.RecvMsg(m)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return ""
		}
		all = append(all, data(m)...)
	}
	if d.Digest != digest.FromBytes(all).String() || d.Size != int64(len(all)) {
		t.Errorf("%s: %d bytes", d.Digest, len(all))
	}
	return string(all)
}

// data is field 2 of a message.
func data(m *encoded) []byte {
	for b := m.raw; len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil
		}
		b = b[n:]
		if num == 2 {
			v, _ := protowire.ConsumeBytes(b)
			return v
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return nil
		}
		b = b[n:]
	}
	return nil
}

func solve(t *testing.T, c client, ref string, def *pb.Definition) error {
	t.Helper()
	_, err := c.ControlClient.Solve(t.Context(), &control.SolveRequest{Ref: ref, Definition: def, Exporters: nil})
	return err
}

func missing(t *testing.T) *pb.Definition {
	return define(t, &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{
		Input: -1, SecondaryInput: -1, Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: "/missing"}},
	}}}}})
}

func TestHistorySurvives(t *testing.T) {
	dir := t.TempDir()
	addr, e, stop := serveAt(t, dir, Options{})
	base(t, e)
	c := dial(t, addr)
	res, err := c.ControlClient.Solve(t.Context(), &control.SolveRequest{
		Ref: "good", Definition: mkdir(t, "/a"), Exporters: []*control.Exporter{{Type: "image", Attrs: map[string]string{"name": "made"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := solve(t, c, "bad", missing(t)); err == nil {
		t.Fatal("a file that is not there was removed")
	}
	stop()
	addr, e, stop = serveAt(t, dir, Options{})
	t.Cleanup(stop)
	c = dial(t, addr)
	refs, recs := past(t, c, &control.BuildHistoryRequest{})
	if !slices.Equal(refs, []string{"good", "bad"}) {
		t.Fatalf("%q", refs)
	}
	good, bad := recs["good"], recs["bad"]
	if good.NumTotalSteps != 2 || good.CompletedAt == nil || good.ExporterResponse["containerimage.digest"] != res.ExporterResponse["containerimage.digest"] {
		t.Errorf("%v", good)
	}
	if len(bad.Error.Details) != 0 || !strings.Contains(bad.Error.Message, "/missing") {
		t.Errorf("%v", bad.Error)
	}
	var st spb.Status
	if err := proto.Unmarshal([]byte(readBlob(t, c, bad.ExternalError)), &st); err != nil || st.Message != bad.Error.Message || len(st.Details) < 2 {
		t.Errorf("%v %v", &st, err)
	}
	if log := readBlob(t, c, good.Logs); !strings.Contains(log, "mkdir /a") {
		t.Errorf("%q", log)
	}
	checkOrigin(t, c, good)
	if len(bad.Result.GetAttestations()) != 0 {
		t.Errorf("of a build that failed: %v", bad.Result)
	}
	// The image goes; what the history needs of it stays.
	if err := e.RemoveImage(t.Context(), "made"); err != nil {
		t.Fatal(err)
	}
	if pr, err := c.Prune(t.Context(), &control.PruneRequest{All: true}); err != nil {
		t.Fatal(err)
	} else if _, err := pr.Recv(); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	manifest := readBlob(t, c, good.Result.Results[0])
	if !strings.Contains(manifest, "config") {
		t.Errorf("%q", manifest)
	}
	s, err := c.Status(t.Context(), &control.StatusRequest{Ref: "good"})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := s.Recv(); err != nil || len(m.Vertexes) == 0 || m.Vertexes[0].Name != "mkdir /a" {
		t.Errorf("%v %v", m, err)
	}
	if _, err := c.UpdateBuildHistory(t.Context(), &control.UpdateBuildHistoryRequest{Ref: "good", Delete: true}); err != nil {
		t.Fatal(err)
	}
	if refs, _ := past(t, c, &control.BuildHistoryRequest{}); !slices.Equal(refs, []string{"bad"}) || readBlob(t, c, good.Result.Results[0]) != "" || readBlob(t, c, good.Logs) != "" {
		t.Errorf("what a deleted record named is there: %q", refs)
	}
}

// checkOrigin checks that a record tells what was built, though nobody asked for attestations.
func checkOrigin(t *testing.T, c client, r *control.BuildHistoryRecord) {
	t.Helper()
	list := r.Result.GetAttestations()
	if len(list) != 1 || list[0].MediaType != typeProvenance || list[0].Annotations["in-toto.io/predicate-type"] != "https://slsa.dev/provenance/v1" {
		t.Fatalf("%v", list)
	}
	if text := readBlob(t, c, list[0]); !strings.Contains(text, `"buildDefinition"`) || !strings.Contains(text, `"/a"`) {
		t.Errorf("%q", text)
	}
}

func TestHistoryLimits(t *testing.T) {
	addr, _ := serve(t, Options{History: HistoryOptions{Entries: 2}})
	c := dial(t, addr)
	for i := range 4 {
		if err := solve(t, c, fmt.Sprint("b", i), mkdir(t, fmt.Sprint("/", i))); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if _, err := c.UpdateBuildHistory(t.Context(), &control.UpdateBuildHistoryRequest{Ref: "b0", Pinned: true}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if refs, recs := past(t, c, &control.BuildHistoryRequest{}); !slices.Equal(refs, []string{"b0", "b2", "b3"}) || !recs["b0"].Pinned {
		t.Errorf("%q", refs)
	}
	if refs, _ := past(t, c, &control.BuildHistoryRequest{Limit: 2}); !slices.Equal(refs, []string{"b3", "b2"}) {
		t.Errorf("%q", refs)
	}
	for filter, want := range map[string]int{
		"startedAt>1h": 3, "startedAt<1h": 0, "duration<1h,ref==b2": 1, "completedAt>=2001-01-02T15:04:05Z": 3, "status==error": 0, "status!=error": 3,
	} {
		if refs, _ := past(t, c, &control.BuildHistoryRequest{Filter: []string{filter}}); len(refs) != want {
			t.Errorf("%s: %q", filter, refs)
		}
	}
	for _, req := range []*control.BuildHistoryRequest{{Limit: -1}, {Filter: []string{"startedAt>soon"}}, {Filter: []string{"duration>x"}}} {
		s, err := c.ListenBuildHistory(t.Context(), req)
		if err == nil {
			_, err = s.Recv()
		}
		if err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%v: %v", req, err)
		}
	}
}

func TestHistoryDisabled(t *testing.T) {
	addr, _ := serve(t, Options{History: HistoryOptions{Disabled: true}})
	c := dial(t, addr)
	if err := solve(t, c, "one", mkdir(t, "/a")); err != nil {
		t.Fatal(err)
	}
	if refs, _ := past(t, c, &control.BuildHistoryRequest{}); len(refs) != 0 {
		t.Errorf("%q", refs)
	}
	s, err := c.Status(t.Context(), &control.StatusRequest{Ref: "one"}) // as clients do who begin to listen late
	if err != nil {
		t.Fatal(err)
	}
	if m, err := s.Recv(); err != nil || len(m.Vertexes) == 0 {
		t.Errorf("%v %v", m, err)
	}
}

func TestTrace(t *testing.T) {
	tracer, err := tracing.New(t.Context(), "test", true)
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := serve(t, Options{Tracer: tracer})
	c := dial(t, addr)
	const id = "0af7651916cd43dd8448eb211c80319c"
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+id+"-b7ad6b7169203331-01")
	if _, err := c.ControlClient.Solve(ctx, &control.SolveRequest{Ref: "one", Definition: mkdir(t, "/a"), Exporters: []*control.Exporter{{Type: "image"}}}); err != nil {
		t.Fatal(err)
	}
	_, recs := past(t, c, &control.BuildHistoryRequest{Ref: "one"}) // written now: somebody asks
	checkOrigin(t, c, recs["one"])
	// The client's own spans come after the build.
	now := uint64(time.Now().UnixNano())
	mine := &tracepb.Span{TraceId: []byte("\x0a\xf7\x65\x19\x16\xcd\x43\xdd\x84\x48\xeb\x21\x1c\x80\x31\x9c"), SpanId: []byte("\xb7\xad\x6b\x71\x69\x20\x33\x31"), Name: "of the client", StartTimeUnixNano: now, EndTimeUnixNano: now}
	spans := &tracepb.ResourceSpans{ScopeSpans: []*tracepb.ScopeSpans{{Scope: &common.InstrumentationScope{Name: "test"}, Spans: []*tracepb.Span{mine}}}}
	if _, err := collector.NewTraceServiceClient(c.cc).Export(t.Context(), &collector.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{spans}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.UpdateBuildHistory(t.Context(), &control.UpdateBuildHistoryRequest{Ref: "one", Finalize: true}); err != nil {
		t.Fatal(err)
	}
	_, recs = past(t, c, &control.BuildHistoryRequest{Ref: "one"})
	checkOrigin(t, c, recs["one"])
	trace := readBlob(t, c, recs["one"].Trace)
	for _, want := range []string{`"Name": "build"`, `"Name": "mkdir /a"`, `"Name": "exporting to image"`, `"Name": "of the client"`, id} {
		if !strings.Contains(trace, want) {
			t.Errorf("no %s in %s", want, trace)
		}
	}
}

func TestRecordFields(t *testing.T) {
	for context, want := range map[string]string{
		"https://example.com/a.git#main:dir": "https://example.com/a.git", "git@example.com:a/b": "git@example.com:a/b", "https://example.com/x.tar": "", "": "",
	} {
		r := &control.BuildHistoryRecord{FrontendAttrs: map[string]string{"context": context}, CreatedAt: timestamppb.Now()}
		if got, _ := recordField(r, "repository"); got != want {
			t.Errorf("%q: %q", context, got)
		}
	}
}
