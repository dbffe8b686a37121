package buildkit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/opencontainers/go-digest"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/llb"
	"github.com/strata-build/strata/provenance"
)

// typeURL begins the types of error details: BuildKit's clients know them by these names, in JSON.
const typeURL = "github.com/moby/buildkit/errdefs."

// vertexError says which vertex an error is of.
type vertexError struct {
	error
	vertex graph.Digest
}

func (e vertexError) Unwrap() error { return e.error }

// detailed is an error with a detail of one of BuildKit's types.
type detailed struct {
	error
	name   string // "Subrequest"
	detail proto.Message
}

func (e detailed) Unwrap() error { return e.error }

// toStatus makes of an error what BuildKit's clients expect: a bare message for all that a user can do something about (other
// codes are shown in front of it), and details from which clients print the source.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	st := &spb.Status{Code: int32(codes.Unknown), Message: diag.Redact(message(err))}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		st.Code = int32(codes.DeadlineExceeded)
	case diag.KindOf(err) == diag.Canceled:
		st.Code = int32(codes.Canceled)
	}
	if n, ok := errors.AsType[*noJob](err); ok {
		st.Code, st.Message = int32(codes.NotFound), n.Error()
	}
	if d, ok := errors.AsType[*diag.Error](err); ok {
		if d.Hint != "" && !suggests(d) {
			st.Message += "\nhint: " + diag.Redact(d.Hint)
		}
		for _, at := range slices.Backward(d.At) { // clients show the last one first
			st.Details = append(st.Details, detail("Source", &errdefs.Source{Info: llb.SourceInfo(at.Source), Ranges: llb.Ranges(at)}))
		}
	}
	if v, ok := errors.AsType[vertexError](err); ok {
		st.Details = append(st.Details, detail("Vertex", &errdefs.Vertex{Digest: v.vertex.String()}))
	}
	if m, ok := errors.AsType[*provenance.IncompleteError](err); ok {
		st.Details = append(st.Details, detail("ProvenanceMaterialsIncomplete", incompleteOf(m)))
	}
	if c, ok := errors.AsType[*engine.CompatibilityError](err); ok {
		st.Details = append(st.Details, detail("CompatibilityFeature", &errdefs.CompatibilityFeature{Version: int64(c.Version), Feature: c.Feature}))
	}
	if d, ok := errors.AsType[detailed](err); ok {
		st.Details = append(st.Details, detail(d.name, d.detail))
	}
	if d, ok := denyMessages(err); ok {
		raw, jerr := json.Marshal(d)
		if jerr == nil {
			st.Details = append(st.Details, &anypb.Any{TypeUrl: "github.com/moby/buildkit/policysession.DecisionResponse+json", Value: raw})
		}
	}
	return status.ErrorProto(st)
}

// message is an error's text as BuildKit writes it, without a hint but for a word that was perhaps meant.
func message(err error) string {
	msg := err.Error()
	if g, ok := errors.AsType[*dockerfile.GrammarError](err); ok {
		msg = fmt.Sprintf("dockerfile parse error on line %d: %s", g.Line, msg)
	}
	if c, ok := errors.AsType[*engine.ContentError](err); ok {
		msg = fmt.Sprintf("failed to compute cache key: failed to calculate checksum of ref %s: %s", c.Input, msg)
	} else if p, ok := errors.AsType[*fs.PathError](err); ok && diag.KindOf(err) == diag.NotFound && !strings.Contains(msg, p.Error()) {
		msg += ": " + p.Error()
	}
	if d, ok := errors.AsType[*diag.Error](err); ok && suggests(d) {
		msg += " (" + strings.Replace(d.Hint, "did you mean --", "did you mean ", 1) + ")"
	}
	return msg
}

func suggests(d *diag.Error) bool { return strings.HasPrefix(d.Hint, "did you mean") }

// detail encodes a message as its type does: those with a oneof have a JSON of their own.
func detail(name string, m proto.Message) *anypb.Any {
	var b []byte
	var err error
	if _, ok := m.(json.Marshaler); ok {
		b, err = protojson.Marshal(m)
	} else {
		b, err = json.Marshal(m)
	}
	if err != nil {
		b = []byte("{}") // a value that was made here has JSON
	}
	return &anypb.Any{TypeUrl: typeURL + name + "+json", Value: b}
}

// detailOf is a detail of a type that is not BuildKit's errdefs.
func detailOf(url string, m proto.Message) *anypb.Any {
	d := detail("", m)
	d.TypeUrl = url
	return d
}

func incompleteOf(e *provenance.IncompleteError) *errdefs.ProvenanceMaterialsIncomplete {
	out := &errdefs.ProvenanceMaterialsIncomplete{}
	for _, l := range e.Locals {
		out.Incomplete = append(out.Incomplete, &errdefs.ProvenanceMaterialIncomplete{Name: l, Reason: "local_source"})
	}
	for _, m := range e.Missed {
		out.Incomplete = append(out.Incomplete, &errdefs.ProvenanceMaterialIncomplete{Name: m.Step, Method: m.Method, Uri: m.URL, Reason: m.Reason})
	}
	return out
}

// noJob says that a build is not known.
type noJob struct{ ref string }

func (e *noJob) Error() string { return "no such job " + e.ref }

// notFound has the code by which clients of a content store tell that a blob is missing.
func notFound(d digest.Digest) error {
	return status.Errorf(codes.NotFound, "content %s: not found", d)
}

func unsupported(format string, args ...any) error {
	return diag.Errorf(diag.Unsupported, format, args...)
}
