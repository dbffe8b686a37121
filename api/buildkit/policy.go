package buildkit

import (
	"context"
	"errors"
	"maps"
	"strings"

	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/policy"
	"github.com/strata-build/strata/session/remote"
)

// policyOf makes the source policy of a build: the rules of its request, and the session that wants to be asked. The bridge, by
// which metadata is resolved that the session asks for, is there as soon as the build has begun.
func (s *Server) policyOf(ctx context.Context, req *control.SolveRequest, br func() *bridge) (*policy.Policy, func(), error) {
	var opt policy.Options
	done := func() {}
	if req.SourcePolicySession != "" {
		sess, err := s.of(ctx).sessions.Open(ctx, req.SourcePolicySession, peerOf(ctx))
		if err != nil {
			return nil, nil, err
		}
		done = sess.Close
		opt.Check = func(ctx context.Context, src *pb.SourceOp, p graph.Platform, asked *int) (*pb.SourceOp, error) {
			return br().ask(ctx, sess, inquiry{src, platformTo(p), asked})
		}
	}
	p, err := policy.New(opt, req.SourcePolicy)
	if err != nil {
		done()
		return nil, nil, err
	}
	return p, done, nil
}

// asPolicy is a policy as the engine takes it: none is nil.
func asPolicy(p *policy.Policy) engine.SourcePolicy {
	if p == nil {
		return nil
	}
	return p
}

// inquiry is what a client is asked about a source.
type inquiry struct {
	src      *pb.SourceOp
	platform *pb.Platform
	asked    *int
}

// ask asks a client about a source until it has decided; meanwhile it may want to know more.
func (b *bridge) ask(ctx context.Context, sess *remote.Session, q inquiry) (*pb.SourceOp, error) {
	known := &gateway.ResolveSourceMetaResponse{Source: q.src}
	for {
		if err := policy.Question(q.asked); err != nil {
			return nil, err
		}
		v, err := sess.CheckPolicy(ctx, q.platform, known)
		if err != nil {
			return nil, err
		}
		switch {
		case v.Request != nil:
			if known, err = b.tell(ctx, q.src, v.Request); err != nil {
				return nil, err
			}
		case v.Action == spb.PolicyAction_CONVERT && v.Update == nil:
			return nil, diag.Errorf(diag.Invalid, "source policy of the client: convert action requires updated source")
		case v.Action == spb.PolicyAction_CONVERT:
			return v.Update, nil
		case v.Action == spb.PolicyAction_ALLOW:
			return nil, nil
		default:
			err := diag.Errorf(diag.Denied, "source %q not allowed by policy: action %s", q.src.Identifier, v.Action)
			for _, m := range v.Messages {
				err = err.WithHint("%s", strings.TrimPrefix(err.Hint+"; "+m, "; "))
			}
			return nil, denied{err, v.Messages}
		}
	}
}

// tell resolves what a client wants to know of a source, and of no other.
func (b *bridge) tell(ctx context.Context, src *pb.SourceOp, req *gateway.ResolveSourceMetaRequest) (*gateway.ResolveSourceMetaResponse, error) {
	if id := req.Source.GetIdentifier(); id != src.Identifier {
		return nil, diag.Errorf(diag.Invalid, "policy requested different source identifier: %q != %q", id, src.Identifier)
	}
	if !maps.Equal(req.Source.Attrs, src.Attrs) {
		return nil, diag.Errorf(diag.Invalid, "policy requested different source attrs for %q", src.Identifier)
	}
	known, err := b.sourceMeta(ctx, req, b.policy.Unchecked())
	if err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "error resolving source metadata from policy request: %w", err)
	}
	return known, nil
}

// denied is an error with what a policy has to say to the user.
type denied struct {
	error
	messages []string
}

func (e denied) Unwrap() error { return e.error }

// denyDetail is the part of an error that BuildKit's clients read the messages from: policysession.DecisionResponse as JSON.
type denyDetail struct {
	Action       string       `json:"action"`
	DenyMessages []denyReason `json:"denyMessages"`
}

type denyReason struct {
	Message string `json:"message"`
}

// denyMessages finds the messages of an error.
func denyMessages(err error) (denyDetail, bool) {
	e, ok := errors.AsType[denied](err)
	if !ok || len(e.messages) == 0 {
		return denyDetail{}, false
	}
	d := denyDetail{Action: spb.PolicyAction_DENY.String()}
	for _, m := range e.messages {
		d.DenyMessages = append(d.DenyMessages, denyReason{m})
	}
	return d, true
}

// withPolicies is the build's policy with those of one request.
func (b *bridge) withPolicies(all []*spb.Policy) (*policy.Policy, error) {
	if len(all) == 0 {
		return b.policy, nil
	}
	return b.policy.With(all...)
}

func platformTo(p graph.Platform) *pb.Platform {
	if p.OS == "" {
		return nil
	}
	return &pb.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
}
