package remote

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/session"
)

// toStore is a directory for an OCI layout whose blobs Send puts into the client's content store. The client writes the index
// itself, from the descriptor in the answer to its build.
func (s *Session) toStore(ctx context.Context) (session.Output, error) {
	dir, err := os.MkdirTemp(s.m.slots.root, outgoing)
	if err != nil {
		return session.Output{}, err
	}
	context.AfterFunc(ctx, func() { _ = os.RemoveAll(dir) })
	return session.Output{Dir: dir, Send: func(ctx context.Context) error {
		defer os.RemoveAll(dir)
		blobs, err := os.ReadDir(filepath.Join(dir, "blobs/sha256"))
		if err != nil {
			return err
		}
		for _, b := range blobs {
			if err := s.c.put(ctx, filepath.Join(dir, "blobs/sha256", b.Name()), digest.NewDigestFromEncoded(digest.SHA256, b.Name())); err != nil {
				return err
			}
		}
		return nil
	}}, nil
}

// Actions of containerd's content API.
const (
	actWrite  = 1
	actCommit = 2
)

// put writes one blob into the client's content store; one that is there stays.
func (c *client) put(ctx context.Context, path string, d digest.Digest) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	ctx, done := c.call(ctx, map[string][]string{storeID: {"export"}})
	defer done()
	return c.write(ctx, image.Descriptor{Digest: d, Size: st.Size()}, f)
}

// write writes one blob into the content store that the call's metadata names.
func (c *client) write(ctx context.Context, d image.Descriptor, r io.Reader) error {
	stream, err := c.cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/containerd.services.content.v1.Content/Write")
	if err != nil {
		return failed(ctx, err, "the client's content store")
	}
	buf := make([]byte, chunk)
	for at := int64(0); ; {
		n, rerr := io.ReadFull(r, buf)
		if rerr != nil && !errors.Is(rerr, io.EOF) && !errors.Is(rerr, io.ErrUnexpectedEOF) {
			return rerr
		}
		m := &message{}
		m.integer(1, actWrite)
		last := at+int64(n) == d.Size
		if last {
			m = &message{}
			m.integer(1, actCommit)
		} else if n == 0 {
			return diag.Errorf(diag.Conflict, "%s ended after %d bytes instead of %d", d.Digest, at, d.Size)
		}
		m.add(2, "strata-"+d.Digest.String())
		m.integer(3, d.Size)
		m.add(4, d.Digest.String())
		m.integer(5, at)
		m.raw = protowire.AppendBytes(protowire.AppendTag(m.raw, 6, protowire.BytesType), buf[:n])
		at += int64(n)
		if err = stream.SendMsg(m); err == nil || errors.Is(err, io.EOF) {
			err = stream.RecvMsg(&message{}) // where an error is told, too
		}
		switch {
		case status.Code(err) == codes.AlreadyExists, err == nil && last:
			_ = stream.CloseSend() // all is there
			return nil
		case err != nil:
			return failed(ctx, err, "the client's content store")
		}
	}
}
