package remote

import (
	"context"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/strata-build/strata/diag"
)

// Verdict is a client's answer to a question about a source: a decision, or a request for what it needs to know first.
type Verdict struct {
	Action   spb.PolicyAction
	Messages []string     // why it is denied
	Update   *pb.SourceOp // what to use instead
	Request  *gateway.ResolveSourceMetaRequest
}

// CheckPolicy asks the client about a source, of which it is told what is known.
func (s *Session) CheckPolicy(ctx context.Context, p *pb.Platform, known *gateway.ResolveSourceMetaResponse) (*Verdict, error) {
	q := &message{}
	if p != nil {
		raw, err := p.MarshalVT()
		if err != nil {
			return nil, err
		}
		q.raw = protowire.AppendBytes(protowire.AppendTag(q.raw, 1, protowire.BytesType), raw)
	}
	raw, err := known.MarshalVT()
	if err != nil {
		return nil, err
	}
	q.raw = protowire.AppendBytes(protowire.AppendTag(q.raw, 2, protowire.BytesType), raw)
	m, err := s.c.unary(ctx, "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy", q)
	if err != nil {
		if st, ok := status.FromError(err); ok && ctx.Err() == nil {
			return nil, diag.Errorf(diag.Denied, "source policy of the client: %s", st.Message())
		}
		return nil, failed(ctx, err, "the source policy of the client")
	}
	return verdict(m)
}

func verdict(m *message) (*Verdict, error) {
	request, err := m.field(2)
	if err != nil {
		return nil, err
	}
	if request != nil {
		v := &Verdict{Request: &gateway.ResolveSourceMetaRequest{}}
		if v.Request.UnmarshalVT(request) != nil {
			return nil, errMessage
		}
		return v, nil
	}
	raw, err := m.field(1)
	if err != nil {
		return nil, err
	}
	if raw == nil {
		return nil, diag.Errorf(diag.Invalid, "source policy of the client: no decision in policy response")
	}
	decision := &message{raw}
	action, err := decision.number(1)
	if err != nil {
		return nil, err
	}
	v := &Verdict{Action: spb.PolicyAction(action)}
	all, err := decision.fields(2)
	if err != nil {
		return nil, err
	}
	for _, d := range all {
		text, err := (&message{d}).field(1)
		if err != nil {
			return nil, err
		}
		v.Messages = append(v.Messages, string(text))
	}
	update, err := decision.field(3)
	if err == nil && update != nil {
		v.Update = &pb.SourceOp{}
		if v.Update.UnmarshalVT(update) != nil {
			return nil, errMessage
		}
	}
	return v, err
}
