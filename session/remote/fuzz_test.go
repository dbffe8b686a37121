package remote

import (
	"testing"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/pb"
)

// FuzzMessage reads what a client sends over its session: messages in their encoded form, and verdicts of a policy.
func FuzzMessage(f *testing.F) {
	f.Add(text("a", "b").raw)
	f.Add(blob([]byte("x")).raw)
	f.Add([]byte{0x12, 0x00})
	f.Add(nested(3))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &message{data}
		all, err := m.fields(1)
		last, err2 := m.field(1)
		if (err == nil) != (err2 == nil) || err == nil && len(all) > 0 && string(last) != string(all[len(all)-1]) {
			t.Fatalf("%q, %v; %q, %v", all, err, last, err2)
		}
		_, _ = m.number(1)
		_, _ = verdict(m)
		_ = (Codec{}).Unmarshal(data, &control.SolveRequest{})
		_ = (Codec{}).Unmarshal(data, &pb.Definition{})
	})
}
