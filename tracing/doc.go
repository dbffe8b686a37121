// Package tracing begins traces of builds, keeps those that the history wants, and sends all of them where OTEL_EXPORTER_OTLP_ENDPOINT
// says. Package span adds to them.
//
// A [Tracer] takes spans of this process, and those that clients send of theirs, as OpenTelemetry's collector does. A
// [Recording] is the spans of one trace so far.
//
//	t, err := tracing.New(ctx, "0.1", true)
//	ctx, end := t.Begin(ctx, "build")
//	rec := t.Record(ctx)
//	end(err)
//	data := rec.JSON()
//	err = t.Close(ctx)
package tracing
