package remote

import (
	"testing"

	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/strata-build/strata/diag"
)

// nested is a definition whose source file has a definition whose source file has one, and so on. It is built from the inside
// of the buffer outwards, in one pass.
func nested(levels int) []byte {
	buf := make([]byte, levels*20)
	at := len(buf)
	wrap := func(field protowire.Number) {
		n := len(buf) - at
		var head []byte
		head = protowire.AppendVarint(protowire.AppendTag(head, field, protowire.BytesType), uint64(n))
		at -= len(head)
		copy(buf[at:], head)
	}
	for range levels {
		wrap(3) // SourceInfo.definition
		wrap(2) // Source.infos
		wrap(3) // Definition.Source
	}
	return buf[at:]
}

// A client sends a definition of a million levels within the bytes of one message. Generated decoders recurse until the stack
// of the daemon ends, which nothing recovers from.
func TestMessageOfMillionLevels(t *testing.T) {
	deep := nested(1_000_000)
	if len(deep) > 16<<20 {
		t.Fatalf("the attack has %d bytes, more than a message may have", len(deep))
	}
	in := func(field protowire.Number) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, field, protowire.BytesType), deep)
	}
	info := protowire.AppendBytes(protowire.AppendTag(nil, 3, protowire.BytesType), deep)
	for _, c := range []struct {
		m   proto.Message
		raw []byte
	}{
		{&control.SolveRequest{}, in(2)},
		{&gateway.SolveRequest{}, in(1)},
		{&gateway.WarnRequest{}, protowire.AppendBytes(protowire.AppendTag(nil, 6, protowire.BytesType), info)},
		{&pb.Definition{}, deep},
	} {
		if err := (Codec{}).Unmarshal(c.raw, c.m); diag.KindOf(err) != diag.Invalid {
			t.Errorf("%T: %v", c.m, err)
		}
	}
	if err := (Codec{}).Unmarshal(nested(10), &pb.Definition{}); err != nil {
		t.Errorf("ten levels: %v", err)
	}
}
