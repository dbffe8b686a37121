package tracing

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/strata-build/strata/span"
)

func quiet(t *testing.T) {
	for _, name := range []string{"OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"} {
		t.Setenv(name, "")
	}
}

func TestNobodyAsks(t *testing.T) {
	quiet(t)
	tr, err := New(t.Context(), "1", false)
	if tr != nil || err != nil {
		t.Errorf("%v %v", tr, err)
	}
	ctx, end := tr.Begin(t.Context(), "build")
	end(nil)
	if same, end := span.Start(ctx, "step"); same != ctx || end == nil {
		t.Error("a span without a trace")
	}
	if data, err := tr.Record(ctx).JSON(); data != nil || err != nil || tr.Close(ctx) != nil {
		t.Errorf("%q %v", data, err)
	}
}

func TestRecording(t *testing.T) {
	quiet(t)
	tr, err := New(t.Context(), "1", true)
	if err != nil {
		t.Fatal(err)
	}
	other, endOther := tr.Begin(t.Context(), "another build")
	ctx, end := tr.Begin(t.Context(), "build", "ref", "x")
	rec := tr.Record(ctx)
	shared := span.Same(context.Background(), ctx) // work of a flight
	_, endStep := span.Start(shared, "step", "path", "/a")
	endStep(errors.New("it broke"))
	_, endOfOther := span.Start(other, "step of another")
	endOfOther(nil)
	endOther(nil)
	end(nil)
	data, err := rec.JSON()
	text := string(data)
	if err != nil || strings.Contains(text, "another") {
		t.Errorf("%v %s", err, text)
	}
	for _, want := range []string{`"Name": "build"`, `"Name": "step"`, `"it broke"`, `"/a"`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	if len(tr.open) != 0 {
		t.Error("a recording that ended is kept")
	}
}

func TestSending(t *testing.T) {
	quiet(t)
	got := make(chan *collector.ExportTraceServiceRequest, 1)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		m := &collector.ExportTraceServiceRequest{}
		if err := proto.Unmarshal(body, m); err != nil {
			t.Error(err)
		}
		got <- m
	}))
	defer s.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", s.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "pigeon")
	if _, err := New(t.Context(), "1", false); err == nil {
		t.Error("an unknown protocol was accepted")
	}
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	tr, err := New(t.Context(), "1", false)
	if err != nil {
		t.Fatal(err)
	}
	_, end := tr.Begin(t.Context(), "build")
	end(nil)
	if err := tr.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := <-got
	if name := m.ResourceSpans[0].ScopeSpans[0].Spans[0].Name; name != "build" || !strings.Contains(m.ResourceSpans[0].Resource.String(), "strata") {
		t.Errorf("%v", m)
	}
}
