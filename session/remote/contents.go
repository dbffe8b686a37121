package remote

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/session"
)

var _ session.Contents = (*Session)(nil)

const storeID = "buildkit-attachable-store-id"

// contentCall begins a call to one of the client's stores of content.
func (s *Session) contentCall(ctx context.Context, store string) (context.Context, func(), error) {
	if strings.ContainsFunc(store, func(r rune) bool { return r < ' ' || r > '~' }) {
		return nil, nil, diag.Errorf(diag.Invalid, "header key %q contains value with non-printable ASCII characters", storeID).
			WithHint("name the directory %q in ASCII", store)
	}
	ctx, done := s.c.call(ctx, map[string][]string{storeID: {store}})
	return ctx, done, nil
}

// contentFailed gives an error its kind: clients that lack a store or a blob say so in several ways.
func contentFailed(ctx context.Context, err error, store string, d digest.Digest) error {
	if c := status.Code(err); c == codes.Unknown || c == codes.Unimplemented {
		return diag.Errorf(diag.NotFound, "the client's store %q has no %s: %s", store, d, status.Convert(err).Message())
	}
	return failed(ctx, err, "%s in the client's store %q", d, store)
}

// StatContent implements session.Contents.
func (s *Session) StatContent(ctx context.Context, store string, d digest.Digest) (int64, error) {
	ctx, done, err := s.contentCall(ctx, store)
	if err != nil {
		return 0, err
	}
	defer done()
	var out message
	if err := s.c.cc.Invoke(ctx, "/containerd.services.content.v1.Content/Info", text(d.String()), &out); err != nil {
		return 0, contentFailed(ctx, err, store, d)
	}
	info, err := out.field(1)
	if err != nil {
		return 0, err
	}
	return (&message{raw: info}).number(2)
}

// ReadContent implements session.Contents.
func (s *Session) ReadContent(ctx context.Context, store string, d digest.Digest, offset int64) (io.ReadCloser, error) {
	ctx, done, err := s.contentCall(ctx, store)
	if err != nil {
		return nil, err
	}
	req := text(d.String())
	req.integer(2, offset)
	stream, err := s.c.cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/containerd.services.content.v1.Content/Read")
	if err == nil {
		err = errors.Join(stream.SendMsg(req), stream.CloseSend())
	}
	if err != nil {
		done()
		return nil, contentFailed(ctx, err, store, d)
	}
	r := &contentReader{ctx: ctx, stream: stream, done: done, store: store, d: d}
	if err := r.more(); err != nil && !errors.Is(err, io.EOF) { // so that a blob that is missing is told here
		done()
		return nil, err
	}
	return r, nil
}

type contentReader struct {
	ctx    context.Context
	stream grpc.ClientStream
	done   func()
	store  string
	d      digest.Digest
	buf    []byte
	err    error
}

func (r *contentReader) more() error {
	for len(r.buf) == 0 && r.err == nil {
		var m message
		err := r.stream.RecvMsg(&m)
		if err == nil {
			r.buf, r.err = m.field(protowire.Number(2))
			continue
		}
		if r.err = err; !errors.Is(err, io.EOF) {
			r.err = contentFailed(r.ctx, err, r.store, r.d)
		}
	}
	if len(r.buf) > 0 {
		return nil
	}
	return r.err
}

func (r *contentReader) Read(p []byte) (int, error) {
	if err := r.more(); err != nil {
		return 0, err
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

func (r *contentReader) Close() error {
	r.done()
	return nil
}

// WriteContent implements session.Contents.
func (s *Session) WriteContent(ctx context.Context, store string, d image.Descriptor, r io.Reader) error {
	ctx, done, err := s.contentCall(ctx, store)
	if err != nil {
		return err
	}
	defer done()
	return s.c.write(ctx, d, r)
}
