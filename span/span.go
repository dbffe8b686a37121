// Package span tells OpenTelemetry what takes how long, at five seams: a build, a vertex, a registry request, a command in its
// sandbox, an export.
//
// A span is part of the trace that the context is in. Where there is none, nothing is done: there is no global state, and what
// is not asked for costs a look into the context. Package tracing begins traces.
//
//	ctx, end := span.Start(ctx, "export image", "name", name)
//	err := export(ctx)
//	end(err)
package span

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/strata-build/strata/diag"
)

// scope names this program in traces.
const scope = "github.com/strata-build/strata"

// Start begins a span below the one of ctx, and returns the context of what happens in it, and what ends it. The error is how it
// ended; about are names and values of attributes, in turn.
func Start(ctx context.Context, name string, about ...string) (context.Context, func(error)) {
	above := trace.SpanFromContext(ctx)
	if !above.IsRecording() {
		return ctx, nothing
	}
	return On(ctx, above.TracerProvider(), name, about...)
}

// On is Start for who begins a trace.
func On(ctx context.Context, p trace.TracerProvider, name string, about ...string) (context.Context, func(error)) {
	var kv []attribute.KeyValue
	for i := 1; i < len(about); i += 2 {
		kv = append(kv, attribute.String(about[i-1], diag.Redact(about[i])))
	}
	ctx, s := p.Tracer(scope).Start(ctx, diag.Redact(name), trace.WithAttributes(kv...))
	return ctx, func(err error) {
		if err != nil {
			text := diag.Redact(err.Error())
			s.RecordError(errors.New(text)) // its type is of no use to those who read traces
			s.SetStatus(codes.Error, text)
		}
		s.End()
	}
}

func nothing(error) {}

// Same puts the span of one context into another: work that is shared by builds runs in a context of its own.
func Same(ctx, from context.Context) context.Context {
	if s := trace.SpanFromContext(from); s.IsRecording() {
		return trace.ContextWithSpan(ctx, s)
	}
	return ctx
}
