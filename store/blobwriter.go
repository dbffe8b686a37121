package store

import (
	"context"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// BlobWriter writes one blob. Nobody else writes a blob of the same digest for the same owner meanwhile.
type BlobWriter struct {
	s        *Store
	f        *os.File // nil when done, or when the blob was there already
	hash     hash.Hash
	expected graph.Digest
	offset   int64
	complete bool
	hold     *Hold // gets the blob; nil = nobody
	owner    string
	epoch    uint64 // that the writing was begun in
	finish   func() // lets the next writer of the digest in
}

// NewBlob starts a blob. If expected is set, the bytes that an earlier attempt left are kept: the caller goes on at Offset.
// If the blob exists, or another writer finishes it while NewBlob waits, Complete reports true and there is nothing to
// write. The caller defers Abort.
func (s *Store) NewBlob(ctx context.Context, expected graph.Digest) (*BlobWriter, error) {
	if expected != "" {
		if err := expected.Validate(); err != nil {
			return nil, diag.Errorf(diag.Invalid, "%q is no digest: %w", expected, err)
		}
	}
	if err := s.makeRoom(ctx); err != nil {
		return nil, err
	}
	return s.newWriter(ctx, expected)
}

func (s *Store) newWriter(ctx context.Context, expected graph.Digest) (*BlobWriter, error) {
	w := &BlobWriter{s: s, expected: expected, owner: ownerOf(ctx), epoch: s.failures.epoch.Load(), finish: func() {}}
	if expected == "" {
		f, err := os.CreateTemp(s.path("ingest"), unnamed+"*")
		if err != nil {
			return nil, s.fail("cannot start a blob", err)
		}
		w.f, w.hash = f, digest.Canonical.Hash()
		w.finish = s.writers.writes(f.Name(), w.owner)
		return w, nil
	}
	name := s.writers.partial(expected, w.owner)
	if err := s.writers.wait(ctx, name); err != nil {
		return nil, s.fail("cannot start blob "+string(expected), err)
	}
	written := s.writers.writes(s.path("ingest", name), w.owner)
	w.finish = sync.OnceFunc(func() { written(); s.writers.done(name) })
	if size, ok := s.adopt(ctx, expected); ok {
		w.offset, w.complete = size, true
		w.finish()
		return w, nil
	}
	if err := w.resume(ctx, s.path("ingest", name)); err != nil {
		w.Abort()
		return nil, s.fail("cannot start blob "+string(expected), err)
	}
	return w, nil
}

// unnamed is the start of the names of partial blobs that cannot be resumed, because their digest is not known yet.
const unnamed = "new-"

func (w *BlobWriter) resume(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	w.f, w.hash = f, w.expected.Algorithm().Hash()
	w.offset, err = hashAll(ctx, w.hash, f)
	return err
}

// Restart throws away what was resumed.
func (w *BlobWriter) Restart() error {
	if w.offset == 0 {
		return nil
	}
	w.hash.Reset()
	w.offset = 0
	if err := w.f.Truncate(0); err != nil {
		return w.s.fail("cannot write a blob", err)
	}
	if _, err := w.f.Seek(0, io.SeekStart); err != nil {
		return w.s.fail("cannot write a blob", err)
	}
	return nil
}

// Offset returns how many bytes the store has, those of an earlier attempt included.
func (w *BlobWriter) Offset() int64 { return w.offset }

// Digest returns the digest of the bytes up to Offset. It is for use between writes.
func (w *BlobWriter) Digest() graph.Digest {
	if w.complete {
		return w.expected
	}
	return digest.NewDigest(w.algorithm(), w.hash)
}

func (w *BlobWriter) algorithm() digest.Algorithm {
	if w.expected == "" {
		return digest.Canonical
	}
	return w.expected.Algorithm()
}

// Complete reports that the blob is in the store already. Commit then only returns it.
func (w *BlobWriter) Complete() bool { return w.complete }

// Write implements io.Writer.
func (w *BlobWriter) Write(p []byte) (int, error) {
	if w.f == nil {
		return 0, diag.Errorf(diag.Internal, "write to a blob that is complete")
	}
	n, err := w.f.Write(p)
	w.hash.Write(p[:n])
	w.offset += int64(n)
	if err != nil {
		return n, w.s.fail("cannot write a blob", err)
	}
	return n, nil
}

// Commit makes the blob visible, and returns its digest and its size in bytes. If the content does not have the expected
// digest, the error is of kind diag.Invalid and nothing is kept for resumption.
func (w *BlobWriter) Commit(ctx context.Context) (graph.Digest, int64, error) {
	if w.complete {
		return w.expected, w.offset, nil
	}
	defer w.finish()
	if w.f == nil {
		return "", 0, diag.Errorf(diag.Internal, "commit of a blob that is closed")
	}
	if err := ctx.Err(); err != nil {
		w.Abort()
		return "", 0, w.s.fail("cannot store a blob", err)
	}
	d := w.Digest()
	name := w.f.Name()
	err := w.f.Chmod(0o644)
	if cerr := w.f.Close(); err == nil {
		err = cerr
	}
	w.f = nil
	if err == nil && w.expected != "" && d != w.expected {
		err = diag.Errorf(diag.Invalid, "the content of blob %s is not what it should be: its digest is %s", w.expected, d)
	}
	if err == nil {
		err = w.install(name, d)
	}
	if err != nil {
		os.Remove(name)
		return "", 0, w.s.fail("cannot store blob "+string(d), err)
	}
	w.complete, w.expected = true, d
	return d, w.offset, nil
}

// install moves a finished file to its place and records it. A file of the same name has the same content.
func (w *BlobWriter) install(name string, d graph.Digest) error {
	s := w.s
	path := s.blobPath(d)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begunBefore(w.epoch); err != nil {
		return err
	}
	err := os.Rename(name, path)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			err = os.Rename(name, path)
		}
	}
	if err != nil {
		return err
	}
	if fi, err := os.Lstat(path); err == nil {
		s.verified.note(d, fi) // it was hashed as it was written
	}
	b := &Batch{s: s}
	if w.hold != nil {
		w.hold.Blobs(d) // before the collector can see that nobody names it
	}
	owner := w.owner
	if v, err := s.value(keyOf(kindBlob, string(d))); err == nil && v != nil { // another owner's writer was faster
		_, owner, _ = decodeBlob(v)
	}
	b.put(kindBlob, string(d), encodeBlob(w.offset, owner))
	return s.commit(b)
}

// Abort ends the writing. What was written is kept for resumption if the digest is known. It does nothing after Commit, so
// it may be deferred.
func (w *BlobWriter) Abort() {
	defer w.finish()
	if w.f == nil {
		return
	}
	name := w.f.Name()
	w.f.Close()
	w.f = nil
	if w.expected == "" || w.offset == 0 || w.epoch != w.s.failures.epoch.Load() {
		os.Remove(name)
	}
}

// writers lets one writer per digest and owner through. An owner does not wait for another one's writer, whose bytes may come from
// a place that never sends them all.
type writers struct {
	mu     sync.Mutex
	busy   map[string]chan struct{} // by the name of the file
	files  map[string]string        // the owners of the files that are written
	owners map[string]string        // by the ends of the names of their files
}

// partial returns the name of the file that holds the beginning of a blob. It ends in what stands for the owner.
func (w *writers) partial(d graph.Digest, owner string) string {
	name := d.Algorithm().String() + "-" + d.Encoded()
	if owner != "" {
		name += "-" + w.know(owner)
	}
	return name
}

// know returns what stands for an owner in the names of files.
func (w *writers) know(owner string) string {
	name := ownerName(owner)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.owners == nil {
		w.owners = map[string]string{}
	}
	w.owners[name] = owner
	return name
}

// ownerOf returns whose the beginning of a blob is. After a start of the store that is not known until the owner is named.
func (w *writers) ownerOf(partial string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.owners[partial[strings.LastIndexByte(partial, '-')+1:]]
}

// writes notes that a file is written for an owner, until the returned function is called.
func (w *writers) writes(path, owner string) (done func()) {
	if owner == "" {
		return func() {}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.files == nil {
		w.files = map[string]string{}
	}
	w.files[path] = owner
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.files, path)
	}
}

// of returns the files that are written for an owner.
func (w *writers) of(owner string) (paths []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for path, o := range w.files {
		if o == owner {
			paths = append(paths, path)
		}
	}
	return paths
}

func (w *writers) try(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy[name] != nil {
		return false
	}
	if w.busy == nil {
		w.busy = map[string]chan struct{}{}
	}
	w.busy[name] = make(chan struct{})
	return true
}

func (w *writers) wait(ctx context.Context, name string) error {
	for !w.try(name) {
		w.mu.Lock()
		c := w.busy[name]
		w.mu.Unlock()
		if c == nil {
			continue
		}
		select {
		case <-c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (w *writers) done(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.busy[name])
	delete(w.busy, name)
}

// active reports whether somebody writes the partial blob with a file name.
func (w *writers) active(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.busy[name] != nil
}
