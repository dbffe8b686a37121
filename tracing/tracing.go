package tracing

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"sync"

	"github.com/moby/buildkit/util/tracing/transform"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/span"
)

// Tracer begins traces. A nil one begins none.
type Tracer struct {
	collector.UnimplementedTraceServiceServer

	provider *sdk.TracerProvider
	out      sdk.SpanExporter // nil = traces are sent nowhere

	mu   sync.Mutex
	open map[trace.TraceID][]*Recording
}

// Wanted reports whether the environment asks for traces to be sent. https://opentelemetry.io/docs/specs/otel/protocol/exporter/
func Wanted() bool {
	return os.Getenv("OTEL_TRACES_EXPORTER") == "otlp" || os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}

// New makes a tracer. It is nil if nobody wants traces: neither the environment nor, as record says, the caller.
func New(ctx context.Context, version string, record bool) (*Tracer, error) {
	if !record && !Wanted() {
		return nil, nil
	}
	t := &Tracer{open: map[trace.TraceID][]*Recording{}}
	opts := []sdk.TracerProviderOption{sdk.WithSpanProcessor(recorder{t}), sdk.WithSampler(sdk.AlwaysSample())}
	about, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", "strata"), attribute.String("service.version", version)), resource.WithFromEnv())
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "the attributes of traces: %w", err)
	}
	opts = append(opts, sdk.WithResource(about))
	if Wanted() {
		if t.out, err = exporter(ctx); err != nil {
			return nil, err
		}
		opts = append(opts, sdk.WithBatcher(t.out))
	}
	t.provider = sdk.NewTracerProvider(opts...)
	return t, nil
}

func exporter(ctx context.Context) (sdk.SpanExporter, error) {
	protocol := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
	if protocol == "" {
		protocol = os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
	}
	var c otlptrace.Client
	switch protocol {
	case "", "grpc": // BuildKit's default
		c = otlptracegrpc.NewClient()
	case "http/protobuf":
		c = otlptracehttp.NewClient()
	default:
		return nil, diag.Errorf(diag.Unsupported, "traces cannot be sent by the protocol %q", protocol).WithHint("OTEL_EXPORTER_OTLP_PROTOCOL must be grpc or http/protobuf")
	}
	x, err := otlptrace.New(ctx, c)
	if err != nil {
		return nil, diag.Errorf(diag.Unavailable, "traces cannot be sent: %w", err)
	}
	return x, nil
}

// Close sends what is still to be sent.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}

// Begin begins a span in the trace that ctx is in, or in a new one.
func (t *Tracer) Begin(ctx context.Context, name string, about ...string) (context.Context, func(error)) {
	if t == nil {
		return ctx, func(error) {}
	}
	return span.On(ctx, t.provider, name, about...)
}

// From makes ctx part of the trace that headers name, as W3C's Trace Context has it: get returns the value of one.
func From(ctx context.Context, get func(name string) string) context.Context {
	c := propagation.MapCarrier{}
	for _, name := range (propagation.TraceContext{}).Fields() {
		c[name] = get(name)
	}
	return propagation.TraceContext{}.Extract(ctx, c)
}

// Export takes spans of a client.
func (t *Tracer) Export(ctx context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	spans := transform.Spans(req.GetResourceSpans())
	for _, s := range spans {
		t.keep(s)
	}
	if t.out != nil {
		if err := t.out.ExportSpans(ctx, spans); err != nil {
			return nil, diag.Errorf(diag.Unavailable, "the spans cannot be passed on: %w", err)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// maxSpans bounds what is kept of one trace.
const maxSpans = 20000

// Recording is what is known of one trace.
type Recording struct {
	t  *Tracer
	id trace.TraceID

	mu    sync.Mutex
	spans []tracetest.SpanStub
}

// Record keeps the spans of the trace that ctx is in, from now until JSON is called. It is nil if there is no trace.
func (t *Tracer) Record(ctx context.Context) *Recording {
	id := trace.SpanContextFromContext(ctx).TraceID()
	if t == nil || !id.IsValid() {
		return nil
	}
	r := &Recording{t: t, id: id}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open[id] = append(t.open[id], r)
	return r
}

func (t *Tracer) keep(s sdk.ReadOnlySpan) {
	t.mu.Lock()
	open := t.open[s.SpanContext().TraceID()]
	t.mu.Unlock()
	for _, r := range open {
		r.mu.Lock()
		if len(r.spans) < maxSpans {
			r.spans = append(r.spans, tracetest.SpanStubFromReadOnlySpan(s))
		}
		r.mu.Unlock()
	}
}

// MediaType is the form of JSON: one object after the other, each a span as OpenTelemetry's Go SDK names its parts.
const MediaType = "application/vnd.buildkit.otlp.json.v0"

// JSON ends the recording and returns the spans; nil if there are none.
func (r *Recording) JSON() ([]byte, error) {
	if r == nil {
		return nil, nil
	}
	r.t.mu.Lock()
	left := r.t.open[r.id][:0:0]
	for _, o := range r.t.open[r.id] {
		if o != r {
			left = append(left, o)
		}
	}
	if r.t.open[r.id] = left; len(left) == 0 {
		delete(r.t.open, r.id)
	}
	r.t.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	var errs []error
	for _, s := range r.spans {
		errs = append(errs, enc.Encode(s))
	}
	return b.Bytes(), errors.Join(errs...)
}

// recorder is a span processor that keeps what has ended.
type recorder struct{ t *Tracer }

func (recorder) OnStart(context.Context, sdk.ReadWriteSpan) {}
func (r recorder) OnEnd(s sdk.ReadOnlySpan)                 { r.t.keep(s) }
func (recorder) Shutdown(context.Context) error             { return nil }
func (recorder) ForceFlush(context.Context) error           { return nil }
