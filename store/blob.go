package store

import (
	"context"
	_ "crypto/sha256" // the algorithms that digests may have
	_ "crypto/sha512"
	"errors"
	"hash"
	"io"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// Blob is an open blob. It is not collected before Close.
type Blob struct {
	s      *Store
	f      *os.File
	digest graph.Digest
	size   int64
	close  func() error
}

// ReadAt implements io.ReaderAt.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) { return b.f.ReadAt(p, off) }

// Reader returns a new reader of the whole blob.
func (b *Blob) Reader() io.Reader { return io.NewSectionReader(b.f, 0, b.size) }

// Size returns the blob's size in bytes.
func (b *Blob) Size() int64 { return b.size }

// Digest returns the blob's digest.
func (b *Blob) Digest() graph.Digest { return b.digest }

// Close lets the collector have the blob. It may be called more than once.
func (b *Blob) Close() error { return b.close() }

// blobSize returns the size of a blob that the store knows and whose file is there. The caller holds mu.
func (s *Store) blobSize(d graph.Digest) (int64, bool) {
	v, err := s.value(keyOf(kindBlob, string(d)))
	if err != nil || v == nil {
		return 0, false
	}
	size, _, err := decodeBlob(v)
	if err != nil || d.Validate() != nil {
		return 0, false
	}
	fi, err := os.Lstat(s.blobPath(d))
	return size, err == nil && fi.Mode().IsRegular() && fi.Size() == size
}

// HasBlob returns the size of a blob if the store has it. A file that no record vouches for, because the record was lost,
// is hashed first.
func (s *Store) HasBlob(d graph.Digest) (int64, bool) {
	s.mu.RLock()
	size, ok := s.blobSize(d)
	closed := s.closed
	s.mu.RUnlock()
	if ok || closed || d.Validate() != nil {
		return size, ok
	}
	// A writer of a blob whose file is there already is only about to vouch for it.
	name := s.writers.partial(d, "")
	if _, err := os.Lstat(s.blobPath(d)); err != nil || s.writers.wait(s.ctx, name) != nil {
		return 0, false
	}
	defer s.writers.done(name)
	return s.adopt(s.ctx, d)
}

// adopt makes a blob of a file that lies where the blob belongs, if its hash is right, and deletes it otherwise. The caller
// is one of the digest's writers.
func (s *Store) adopt(ctx context.Context, d graph.Digest) (int64, bool) {
	s.mu.RLock()
	size, ok := s.blobSize(d)
	s.mu.RUnlock()
	if ok {
		return size, true
	}
	path, epoch := s.blobPath(d), s.failures.epoch.Load()
	size, err := hashFile(ctx, path, d)
	var bad *diag.Error
	switch {
	case errors.As(err, &bad):
		s.mu.Lock()
		defer s.mu.Unlock()
		if size, ok := s.blobSize(d); ok { // another writer has just put a good one there
			return size, true
		}
		s.log.Warn("a blob file was dropped", "cause", err)
		s.trash.put(path)
		return 0, false
	case err != nil:
		return 0, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begunBefore(epoch) != nil {
		return 0, false
	}
	if size, ok := s.blobSize(d); ok { // with its owner
		return size, true
	}
	b := &Batch{s: s}
	b.put(kindBlob, string(d), encodeBlob(size, ""))
	return size, s.commit(b) == nil
}

// hashFile checks a file against a digest. The error is a *diag.Error if the content is wrong.
func hashFile(ctx context.Context, path string, d graph.Digest) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	h := d.Algorithm().Hash()
	n, err := hashAll(ctx, h, f)
	if err != nil {
		return n, err
	}
	if got := digest.NewDigest(d.Algorithm(), h); got != d {
		return n, diag.Errorf(diag.Invalid, "blob %s has the content of %s", d, got)
	}
	return n, nil
}

func hashAll(ctx context.Context, h hash.Hash, r io.Reader) (n int64, err error) {
	buf := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		k, err := r.Read(buf)
		h.Write(buf[:k])
		n += int64(k)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// OpenBlob opens a blob for reading. The error is of kind diag.NotFound if the store does not have it.
func (s *Store) OpenBlob(ctx context.Context, d graph.Digest) (*Blob, error) {
	if err := ctx.Err(); err != nil {
		return nil, s.fail("cannot open a blob", err)
	}
	if _, ok := s.HasBlob(d); !ok {
		return nil, miss("there is no blob %s", d)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	size, ok := s.blobSize(d)
	if !ok || s.closed {
		return nil, miss("there is no blob %s", d)
	}
	f, err := os.Open(s.blobPath(d))
	if err != nil {
		return nil, s.fail("cannot open blob "+string(d), err)
	}
	s.holds.pin(d, 1)
	s.touch(keyOf(kindBlob, string(d)))
	return &Blob{s: s, f: f, digest: d, size: size, close: sync.OnceValue(func() error {
		s.holds.pin(d, -1)
		return f.Close()
	})}, nil
}

// PutBlob stores a small blob.
func (s *Store) PutBlob(ctx context.Context, data []byte) (graph.Digest, error) {
	d := digest.FromBytes(data)
	w, err := s.NewBlob(ctx, d)
	if err != nil {
		return "", err
	}
	defer w.Abort()
	if !w.Complete() {
		// What an earlier, broken attempt left may be there; it is not worth resuming.
		if err := w.Restart(); err != nil {
			return "", err
		}
		if _, err := w.Write(data); err != nil {
			return "", err
		}
	}
	_, _, err = w.Commit(ctx)
	return d, err
}
