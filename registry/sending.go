package registry

import (
	"context"
	"hash"
	"io"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
)

// sending is the body of an upload: it counts, hashes a whole blob, and notices that nothing moves.
type sending struct {
	p    *push
	stop context.CancelCauseFunc
	at   int64
	left int64

	total atomic.Int64 // bytes that the transport took
	ended atomic.Bool  // all of them
}

// open is called for every attempt of one request.
func (s *sending) open() (io.ReadCloser, error) {
	src, err := s.p.Open(s.at)
	if err != nil {
		return nil, err
	}
	s.ended.Store(false)
	b := &sendingBody{s: s, src: src, left: s.left}
	if s.at == 0 && s.left == s.p.Desc.Size {
		b.hash = s.p.Desc.Digest.Algorithm().Hash()
	}
	return b, nil
}

type sendingBody struct {
	s    *sending
	src  io.ReadCloser
	left int64
	hash hash.Hash
}

func (b *sendingBody) Read(buf []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.src.Read(buf[:min(int64(len(buf)), b.left)])
	b.left -= int64(n)
	if b.hash != nil {
		b.hash.Write(buf[:n])
		if b.left == 0 {
			if got := digest.NewDigest(b.s.p.Desc.Digest.Algorithm(), b.hash); got != b.s.p.Desc.Digest {
				return 0, b.fail(diag.Errorf(diag.Internal, "the blob %s is damaged: its digest is %s", b.s.p.Desc.Digest, got))
			}
		}
	}
	b.s.total.Add(int64(n))
	if b.s.p.Progress != nil && n > 0 {
		b.s.p.Progress(b.s.at + b.s.left - b.left)
	}
	if b.left == 0 {
		b.s.ended.Store(true)
		return n, io.EOF
	}
	if err == io.EOF {
		return n, b.fail(diag.Errorf(diag.Internal, "the blob %s is shorter than the %d bytes of its descriptor", b.s.p.Desc.Digest, b.s.p.Desc.Size))
	}
	if err != nil {
		return n, b.fail(err)
	}
	return n, nil
}

// fail ends the request: an error of the source is not one of the network.
func (b *sendingBody) fail(err error) error {
	b.s.stop(err)
	return err
}

func (b *sendingBody) Close() error { return b.src.Close() }

// watch ends the request when less than 1 KiB/s left for limit, or when the registry does not answer within commitTime
// after the last byte. The function that it returns ends the watch.
func (s *sending) watch(limit time.Duration) func() {
	done := make(chan struct{})
	go func() {
		tick := time.NewTicker(limit)
		defer tick.Stop()
		last, ended := int64(-1), time.Duration(0)
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			got := s.total.Load()
			if s.ended.Load() || s.left == 0 {
				if ended += limit; ended > commitTime {
					s.stop(errStalled)
					return
				}
				continue
			}
			if last >= 0 && got-last < int64(limit.Seconds()*1024) {
				s.stop(errStalled)
				return
			}
			last = got
		}
	}()
	return func() { close(done) }
}
