package remote

import (
	"context"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// Exporter is one that a client chooses.
type Exporter struct {
	Type  string
	Attrs map[string]string
}

// exporterPatience is how long a client may take to say what is to be done with a result.
const exporterPatience = 30 * time.Second

// callExporter calls a method that clients need not have; then the answer is nil.
func (s *Session) callExporter(ctx context.Context, name string, in *message) (*message, error) {
	method := "/moby.exporter.v1.Exporter/" + name
	if !s.c.told(method) {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, exporterPatience)
	defer cancel()
	out, err := s.c.unary(ctx, method, in)
	switch status.Code(err) {
	case codes.OK:
		return out, nil
	case codes.Unavailable, codes.Unimplemented:
		return nil, nil
	}
	return nil, failed(ctx, err, "the client's exporter")
}

// FindExporters asks the client for exporters of a result: its metadata, and names of what it is made of.
func (s *Session) FindExporters(ctx context.Context, meta map[string][]byte, refs []string) ([]Exporter, error) {
	in := &message{}
	for _, k := range slices.Sorted(maps.Keys(meta)) {
		in.entry(1, k, meta[k])
	}
	for _, r := range refs {
		in.add(2, r)
	}
	res, err := s.callExporter(ctx, "FindExporters", in)
	if err != nil || res == nil {
		return nil, err
	}
	var out []Exporter
	err = res.each(1, func(raw []byte) error {
		m := &message{raw}
		kind, err := m.field(1)
		if err != nil {
			return err
		}
		x := Exporter{Type: string(kind), Attrs: map[string]string{}}
		out = append(out, x)
		return m.each(2, func(raw []byte) error {
			e := &message{raw}
			k, err := e.field(1)
			if err != nil {
				return err
			}
			v, err := e.field(2)
			x.Attrs[string(k)] = string(v)
			return err
		})
	})
	return out, err
}

// FinalizeExport tells the client what was exported, before the build ends. Its complaint is the build's failure.
func (s *Session) FinalizeExport(ctx context.Context, response map[string]string) error {
	in := &message{}
	for _, k := range slices.Sorted(maps.Keys(response)) {
		in.entry(1, k, []byte(response[k]))
	}
	_, err := s.callExporter(ctx, "FinalizeExport", in)
	return err
}

// entry appends an entry of a map field.
func (m *message) entry(n protowire.Number, key string, value []byte) {
	e := text(key)
	e.raw = protowire.AppendBytes(protowire.AppendTag(e.raw, 2, protowire.BytesType), value)
	m.raw = protowire.AppendBytes(protowire.AppendTag(m.raw, n, protowire.BytesType), e.raw)
}

// each calls f with the values of a repeated field of bytes, strings or messages.
func (m *message) each(n protowire.Number, f func([]byte) error) error {
	for b := m.raw; len(b) > 0; {
		num, typ, k := protowire.ConsumeTag(b)
		if k < 0 {
			return errMessage
		}
		b = b[k:]
		if k = protowire.ConsumeFieldValue(num, typ, b); k < 0 {
			return errMessage
		}
		if num == n && typ == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b)
			if err := f(v); err != nil {
				return err
			}
		}
		b = b[k:]
	}
	return nil
}
