package buildkit

import (
	"context"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/strata-build/strata/diag"
)

// encoded is a message in its encoded form: those of containerd's content API are a few fields, and its generated package
// brings a module of its own.
type encoded struct{ raw []byte }

func (m *encoded) MarshalVT() ([]byte, error) { return m.raw, nil }

// SizeVT is what [sizeOf] calls.
func (m *encoded) SizeVT() int { return len(m.raw) }

func (m *encoded) UnmarshalVT(b []byte) error {
	m.raw = append(m.raw[:0], b...)
	return nil
}

func (m *encoded) bytes(n protowire.Number, b []byte) {
	m.raw = protowire.AppendBytes(protowire.AppendTag(m.raw, n, protowire.BytesType), b)
}

func (m *encoded) integer(n protowire.Number, v int64) {
	m.raw = protowire.AppendVarint(protowire.AppendTag(m.raw, n, protowire.VarintType), uint64(v))
}

// fields reads a request: a digest in field 1, an offset in field 2 and a size in field 3.
func (m *encoded) fields() (d digest.Digest, offset, size int64, err error) {
	for b := m.raw; len(b) > 0; {
		num, typ, k := protowire.ConsumeTag(b)
		if k < 0 {
			return "", 0, 0, errRequest
		}
		b = b[k:]
		n := protowire.ConsumeFieldValue(num, typ, b)
		if n < 0 {
			return "", 0, 0, errRequest
		}
		switch {
		case num == 1 && typ == protowire.BytesType:
			v, _ := protowire.ConsumeBytes(b)
			d = digest.Digest(v)
		case num == 2 && typ == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(b)
			offset = int64(v)
		case num == 3 && typ == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(b)
			size = int64(v)
		}
		b = b[n:]
	}
	if offset < 0 || size < 0 {
		return "", 0, 0, errRequest
	}
	return d, offset, size, d.Validate()
}

var errRequest = diag.Errorf(diag.Invalid, "the request cannot be read")

// contentAPI is the part of containerd's content service that reads: what the history names, and nothing else of the state.
func (s *Server) contentAPI() *grpc.ServiceDesc {
	streams := func(name string, f func(grpc.ServerStream, *encoded) error) grpc.StreamDesc {
		return grpc.StreamDesc{StreamName: name, ServerStreams: true, Handler: func(_ any, ss grpc.ServerStream) error {
			var in encoded
			if err := ss.RecvMsg(&in); err != nil {
				return err
			}
			return f(ss, &in)
		}}
	}
	info := func(_ any, ctx context.Context, dec func(any) error, via grpc.UnaryServerInterceptor) (any, error) {
		var in encoded
		if err := dec(&in); err != nil {
			return nil, err
		}
		call := func(ctx context.Context, _ any) (any, error) { return s.contentInfo(ctx, &in) }
		return via(ctx, &in, &grpc.UnaryServerInfo{FullMethod: "/containerd.services.content.v1.Content/Info"}, call)
	}
	return &grpc.ServiceDesc{
		ServiceName: "containerd.services.content.v1.Content", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Info", Handler: info}},
		Streams: []grpc.StreamDesc{streams("List", s.contentList), streams("Read", s.contentRead)},
	}
}

// described is containerd's Info.
func described(d string, size int64) []byte {
	var m encoded
	m.bytes(1, []byte(d))
	m.integer(2, size)
	return m.raw
}

func (s *Server) contentInfo(ctx context.Context, in *encoded) (*encoded, error) {
	d, _, _, err := in.fields()
	if err != nil {
		return nil, err
	}
	f, b, err := s.of(ctx).history.files.Open(d)
	if diag.KindOf(err) == diag.NotFound {
		return nil, notFound(d)
	}
	if err != nil {
		return nil, err
	}
	out := &encoded{}
	out.bytes(1, described(b.Digest.String(), b.Size))
	return out, f.Close()
}

func (s *Server) contentList(ss grpc.ServerStream, _ *encoded) error {
	out := &encoded{}
	for _, b := range s.of(ss.Context()).history.files.Blobs() {
		out.bytes(1, described(b.Digest.String(), b.Size))
	}
	return ss.SendMsg(out)
}

func (s *Server) contentRead(ss grpc.ServerStream, in *encoded) error {
	d, offset, size, err := in.fields()
	if err != nil {
		return err
	}
	r, b, err := s.of(ss.Context()).history.files.Open(d)
	if diag.KindOf(err) == diag.NotFound {
		return notFound(d)
	}
	if err != nil {
		return err
	}
	defer r.Close()
	end := b.Size
	if size > 0 {
		end = min(end, offset+size)
	}
	buf := make([]byte, 1<<20)
	for offset < end {
		n, err := r.ReadAt(buf[:min(int64(len(buf)), end-offset)], offset)
		if n == 0 && err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		out := &encoded{}
		out.integer(1, offset)
		out.bytes(2, buf[:n])
		if err := ss.SendMsg(out); err != nil {
			return err
		}
		offset += int64(n)
	}
	return nil
}
