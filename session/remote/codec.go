package remote

import (
	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/llb"
)

// Codec uses the generated encoders, which are faster than reflection, and takes other messages that have their methods. The
// generated decoders recurse as deep as a message says: they decode the messages that come often, none of which can nest.
type Codec struct{}

var _ encoding.Codec = Codec{}

func (Codec) Name() string { return "proto" }

func (Codec) Marshal(v any) ([]byte, error) {
	switch m := v.(type) {
	case interface{ MarshalVT() ([]byte, error) }:
		return m.MarshalVT()
	case proto.Message:
		return proto.Marshal(m)
	}
	return nil, diag.Errorf(diag.Internal, "%T is no message", v)
}

func (Codec) Unmarshal(b []byte, v any) error {
	switch m := v.(type) {
	case *control.BytesMessage:
		return m.UnmarshalVT(b)
	case *types.Packet:
		return m.UnmarshalVT(b)
	case *gateway.ExecMessage:
		return m.UnmarshalVT(b)
	case proto.Message:
		return llb.Unmarshal(b, m)
	case interface{ UnmarshalVT([]byte) error }: // that of a room of this program
		return m.UnmarshalVT(b)
	}
	return diag.Errorf(diag.Internal, "%T is no message", v)
}

func useCodec() grpc.CallOption { return grpc.ForceCodec(Codec{}) }

// message is a protobuf message of string and bytes fields in its encoded form.
type message struct{ raw []byte }

// MarshalVT and UnmarshalVT are what [Codec] calls.
func (m *message) MarshalVT() ([]byte, error) { return m.raw, nil }

// UnmarshalVT takes a message as it is.
func (m *message) UnmarshalVT(b []byte) error {
	m.raw = append(m.raw[:0], b...)
	return nil
}

// text makes a message whose fields, numbered from 1, are strings; empty ones are left out.
func text(fields ...string) *message {
	m := &message{}
	for i, f := range fields {
		if f != "" {
			m.add(protowire.Number(i+1), f)
		}
	}
	return m
}

// blob makes a message whose field 1 is bytes.
func blob(b []byte) *message {
	return &message{raw: protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), b)}
}

// field returns the last value of a bytes or string field; nil if it is absent.
func (m *message) field(n protowire.Number) ([]byte, error) {
	all, err := m.fields(n)
	if len(all) == 0 {
		return nil, err
	}
	return all[len(all)-1], err
}

// fields returns all values of a bytes or string field.
func (m *message) fields(n protowire.Number) (out [][]byte, err error) {
	for b := m.raw; len(b) > 0; {
		num, typ, k := protowire.ConsumeTag(b)
		if k < 0 {
			return nil, errMessage
		}
		b = b[k:]
		if num == n && typ == protowire.BytesType {
			v, k := protowire.ConsumeBytes(b)
			if k < 0 {
				return nil, errMessage
			}
			out, b = append(out, v), b[k:]
			continue
		}
		if k = protowire.ConsumeFieldValue(num, typ, b); k < 0 {
			return nil, errMessage
		}
		b = b[k:]
	}
	return out, nil
}

// number returns the last value of an integer field; 0 if it is absent.
func (m *message) number(n protowire.Number) (int64, error) {
	var out uint64
	for b := m.raw; len(b) > 0; {
		num, typ, k := protowire.ConsumeTag(b)
		if k < 0 {
			return 0, errMessage
		}
		b = b[k:]
		if num == n && typ == protowire.VarintType {
			if out, k = protowire.ConsumeVarint(b); k < 0 {
				return 0, errMessage
			}
			b = b[k:]
			continue
		}
		if k = protowire.ConsumeFieldValue(num, typ, b); k < 0 {
			return 0, errMessage
		}
		b = b[k:]
	}
	return int64(out), nil
}

// integer appends an integer field; 0 is left out.
func (m *message) integer(n protowire.Number, v int64) {
	if v != 0 {
		m.raw = protowire.AppendVarint(protowire.AppendTag(m.raw, n, protowire.VarintType), uint64(v))
	}
}

// add appends a string field.
func (m *message) add(n protowire.Number, v string) {
	m.raw = protowire.AppendString(protowire.AppendTag(m.raw, n, protowire.BytesType), v)
}

var errMessage = diag.Errorf(diag.Invalid, "the client sent a message that cannot be read")
