package buildkit

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// typeURL begins the types of error details: BuildKit's clients know them by these names, in JSON.
const typeURL = "github.com/moby/buildkit/errdefs."

// vertexError says which vertex an error is of.
type vertexError struct {
	error
	vertex graph.Digest
}

func (e vertexError) Unwrap() error { return e.error }

// originError says where the Dockerfile of a build comes from.
type originError struct {
	error
	def *pb.Definition
}

func (e originError) Unwrap() error { return e.error }

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
	st := &spb.Status{Code: int32(codes.Unknown), Message: err.Error()}
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
		switch {
		case strings.HasPrefix(d.Hint, "did you mean"):
			st.Message += " (" + d.Hint + ")" // as BuildKit writes it
		case d.Hint != "":
			st.Message += "\nhint: " + d.Hint
		}
		origin, _ := errors.AsType[originError](err)
		for _, at := range d.At {
			info := sourceInfo(at.Source)
			if info != nil {
				info.Definition = origin.def
			}
			st.Details = append(st.Details, detail("Source", &errdefs.Source{Info: info, Ranges: []*pb.Range{rangeOf(at)}}))
		}
	}
	if v, ok := errors.AsType[vertexError](err); ok {
		st.Details = append(st.Details, detail("Vertex", &errdefs.Vertex{Digest: v.vertex.String()}))
	}
	if d, ok := errors.AsType[detailed](err); ok {
		st.Details = append(st.Details, detail(d.name, d.detail))
	}
	return status.ErrorProto(st)
}

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

func sourceInfo(s *diag.Source) *pb.SourceInfo {
	if s == nil {
		return nil
	}
	return &pb.SourceInfo{Filename: s.Name, Data: s.Data, Language: "Dockerfile"}
}

func rangeOf(s diag.Span) *pb.Range {
	r := &pb.Range{Start: &pb.Position{Line: int32(s.First)}, End: &pb.Position{Line: int32(max(s.First, s.Last))}}
	if s.Col > 0 {
		r.Start.Character = int32(s.Col - 1)
		r.End.Character = int32(s.Col - 1 + s.Width)
	}
	return r
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
