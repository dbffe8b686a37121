package history

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// Blob names a file.
type Blob struct {
	MediaType string       `json:"mediaType"`
	Digest    graph.Digest `json:"digest"`
	Size      int64        `json:"size"`
}

// Record is what is known of a build.
type Record struct {
	Name  string          `json:"name"`
	Value json.RawMessage `json:"value"`
	Blobs []Blob          `json:"blobs"`
}

// Store is a directory of records. Its methods may be called at the same time.
type Store struct {
	dir string

	mu     sync.Mutex
	named  map[string][]Blob    // by record
	blobs  map[graph.Digest]int // how many records name it
	placed map[graph.Digest]int // by Put, and not named yet
	sizes  map[graph.Digest]Blob
}

// Open reads the records of a directory, which need not exist, and removes what none of them names. Damaged ones are told to
// the log and removed.
func Open(dir string, log *slog.Logger) (*Store, []Record, error) {
	s := &Store{dir: dir, named: map[string][]Blob{}, blobs: map[graph.Digest]int{}, placed: map[graph.Digest]int{}, sizes: map[graph.Digest]Blob{}}
	if err := os.MkdirAll(s.blobDir(), 0o700); err != nil {
		return nil, nil, diag.Errorf(diag.Unavailable, "the history of builds: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, diag.Errorf(diag.Unavailable, "the history of builds: %w", err)
	}
	var out []Record
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		r, err := s.read(path)
		if err != nil {
			log.Warn("a record of a build is damaged, and is removed", "path", path, "err", err)
			err = os.Remove(path)
		} else {
			s.name(*r)
			out = append(out, *r)
		}
		if err != nil {
			return nil, nil, diag.Errorf(diag.Unavailable, "the history of builds: %w", err)
		}
	}
	return s, out, s.sweep()
}

func (s *Store) blobDir() string { return filepath.Join(s.dir, "blobs") }

// Scratch is a directory for files that are nobody's record. What is left there is removed by the next Open.
func (s *Store) Scratch() string { return s.blobDir() }

func (s *Store) blobPath(d graph.Digest) string { return filepath.Join(s.blobDir(), d.Encoded()) }

func (s *Store) path(name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(s.dir, hex.EncodeToString(sum[:16])+".json")
}

func (s *Store) read(path string) (*Record, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &Record{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, err
	}
	if s.path(r.Name) != path {
		return nil, fmt.Errorf("it is of %q", r.Name)
	}
	for _, b := range r.Blobs {
		if err := b.Digest.Validate(); err != nil {
			return nil, err
		}
		if fi, err := os.Stat(s.blobPath(b.Digest)); err != nil || fi.Size() != b.Size {
			return nil, fmt.Errorf("blob %s is missing or has another size", b.Digest)
		}
	}
	return r, nil
}

// name takes note of a record; the caller holds the lock, or is alone.
func (s *Store) name(r Record) {
	s.named[r.Name] = r.Blobs
	for _, b := range r.Blobs {
		s.blobs[b.Digest]++
		s.sizes[b.Digest] = b
		if s.placed[b.Digest]--; s.placed[b.Digest] <= 0 {
			delete(s.placed, b.Digest)
		}
	}
}

// sweep removes files that no record names.
func (s *Store) sweep() error {
	entries, err := os.ReadDir(s.blobDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if s.blobs[graph.Digest("sha256:"+e.Name())] == 0 {
			if err := os.Remove(filepath.Join(s.blobDir(), e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// Put writes a blob. It stays until the next Open, or until the last record that names it goes.
func (s *Store) Put(mediaType string, content io.Reader) (Blob, error) {
	f, err := os.CreateTemp(s.blobDir(), "tmp-")
	if err != nil {
		return Blob{}, diag.Errorf(diag.Unavailable, "the history of builds: %w", err)
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), content)
	err = errors.Join(err, f.Close())
	b := Blob{MediaType: mediaType, Digest: graph.Digest("sha256:" + hex.EncodeToString(h.Sum(nil))), Size: n}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		err = os.Rename(f.Name(), s.blobPath(b.Digest))
	}
	if err != nil {
		return Blob{}, errors.Join(diag.Errorf(diag.Unavailable, "the history of builds: %w", err), os.Remove(f.Name()))
	}
	s.placed[b.Digest]++
	return b, nil
}

// Save writes a record, in place of the one of that name.
func (s *Store) Save(name string, value json.RawMessage, blobs []Blob) error {
	r := Record{Name: name, Value: value, Blobs: blobs}
	data, err := json.Marshal(r)
	if err != nil {
		return diag.Errorf(diag.Internal, "the record of build %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.named[name]
	tmp := filepath.Join(s.blobDir(), "tmp-"+filepath.Base(s.path(name)))
	if err = os.WriteFile(tmp, data, 0o600); err == nil {
		err = os.Rename(tmp, s.path(name))
	}
	if err != nil {
		return errors.Join(diag.Errorf(diag.Unavailable, "the record of build %s: %w", name, err), os.Remove(tmp))
	}
	s.name(r)
	return s.forget(old)
}

// Delete removes a record, if there is one, and the blobs that no other names.
func (s *Store) Delete(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.named[name]
	if !ok {
		return nil
	}
	if err := os.Remove(s.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return diag.Errorf(diag.Unavailable, "the record of build %s: %w", name, err)
	}
	delete(s.named, name)
	return s.forget(old)
}

// forget counts blobs of a record that is gone.
func (s *Store) forget(blobs []Blob) error {
	var errs []error
	for _, b := range blobs {
		if s.blobs[b.Digest]--; s.blobs[b.Digest] > 0 {
			continue
		}
		delete(s.blobs, b.Digest)
		delete(s.sizes, b.Digest)
		if s.placed[b.Digest] > 0 {
			continue // a record that will name it is on its way
		}
		if err := os.Remove(s.blobPath(b.Digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Open opens a blob that a record names. One that none names is a diag.NotFound error.
func (s *Store) Open(d graph.Digest) (*os.File, Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.sizes[d]
	if !ok {
		return nil, b, diag.Errorf(diag.NotFound, "content %s: not found", d)
	}
	f, err := os.Open(s.blobPath(d))
	return f, b, err
}

// Blobs lists what records name, by digest.
func (s *Store) Blobs() []Blob {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Blob, 0, len(s.sizes))
	for _, b := range s.sizes {
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b Blob) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return out
}

// PutBytes is Put of what is in memory.
func (s *Store) PutBytes(mediaType string, data []byte) (Blob, error) {
	return s.Put(mediaType, bytes.NewReader(data))
}
