package remote

import (
	"strings"
	"testing"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/strata-build/strata/diag"
)

// nest appends a message as a field.
func nest(m *message, n protowire.Number, raw []byte) {
	m.raw = protowire.AppendBytes(protowire.AppendTag(m.raw, n, protowire.BytesType), raw)
}

func TestCheckPolicy(t *testing.T) {
	m := manager(t)
	f := &fakeClient{}
	attach(t, m, "s", Peer{Conn: "c", Identity: "i"}, f)
	s := open(t, m, "s", Peer{Conn: "c", Identity: "i"})
	src := &pb.SourceOp{Identifier: "docker-image://x:1", Attrs: map[string]string{"a": "b"}}
	ask := func(answer *message) (*Verdict, error) {
		f.policy = func(q *message) *message {
			platform, _ := q.field(1)
			known, _ := q.field(2)
			var p pb.Platform
			var k gateway.ResolveSourceMetaResponse
			if p.UnmarshalVT(platform) != nil || k.UnmarshalVT(known) != nil || p.OS != "linux" || k.Source.Identifier != src.Identifier || k.Source.Attrs["a"] != "b" {
				t.Errorf("the client was told %v %v", &p, &k)
			}
			return answer
		}
		return s.CheckPolicy(t.Context(), &pb.Platform{OS: "linux"}, &gateway.ResolveSourceMetaResponse{Source: src})
	}
	deny := &message{}
	deny.integer(1, int64(spb.PolicyAction_DENY))
	nest(deny, 2, text("one").raw)
	nest(deny, 2, text("two").raw)
	answer := &message{}
	nest(answer, 1, deny.raw)
	v, err := ask(answer)
	if err != nil || v.Action != spb.PolicyAction_DENY || strings.Join(v.Messages, " ") != "one two" || v.Update != nil || v.Request != nil {
		t.Errorf("%+v %v", v, err)
	}
	raw, err := (&pb.SourceOp{Identifier: "docker-image://y:1"}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	convert := &message{}
	convert.integer(1, int64(spb.PolicyAction_CONVERT))
	nest(convert, 3, raw)
	answer = &message{}
	nest(answer, 1, convert.raw)
	if v, err = ask(answer); err != nil || v.Action != spb.PolicyAction_CONVERT || v.Update.GetIdentifier() != "docker-image://y:1" {
		t.Errorf("%+v %v", v, err)
	}
	answer = &message{}
	nest(answer, 1, nil) // an empty decision: to allow is the zero value
	if v, err = ask(answer); err != nil || v.Action != spb.PolicyAction_ALLOW {
		t.Errorf("%+v %v", v, err)
	}
	if raw, err = (&gateway.ResolveSourceMetaRequest{Source: src, ResolveMode: "pull"}).MarshalVT(); err != nil {
		t.Fatal(err)
	}
	answer = &message{}
	nest(answer, 2, raw)
	if v, err = ask(answer); err != nil || v.Request.GetResolveMode() != "pull" || v.Request.Source.Attrs["a"] != "b" {
		t.Errorf("%+v %v", v, err)
	}
	if _, err = ask(&message{}); err == nil || !strings.Contains(err.Error(), "no decision") {
		t.Error(err)
	}
	if _, err = ask(&message{raw: []byte{0xff}}); err == nil {
		t.Error("a broken answer was taken")
	}
	f.policy = nil
	if _, err = s.CheckPolicy(t.Context(), nil, &gateway.ResolveSourceMetaResponse{Source: src}); diag.KindOf(err) != diag.Denied || !strings.Contains(err.Error(), "policy broke") {
		t.Error(err)
	}
}
