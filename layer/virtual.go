package layer

import (
	"context"
	"crypto/sha256"
	"io"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// Virtual is a layer of which no tar exists: a list of entries and the digest of the tar that they make. The tar is made
// again whenever somebody reads it, and not at all if the place where it goes has that digest already.
type Virtual struct {
	Entries []*Entry // in the order of the tar
	DiffID  graph.Digest
	Stats   Stats
	Options TarOptions
}

// NewVirtual hashes the tar of the entries, with w as a second reader of it (nil: nobody). Contents must stay the same as
// long as the layer is used.
func NewVirtual(ctx context.Context, entries []*Entry, opt TarOptions, w io.Writer) (*Virtual, error) {
	h := sha256.New()
	to := io.Writer(h)
	if w != nil {
		to = io.MultiWriter(h, w)
	}
	stats, err := WriteEntries(ctx, to, all(entries), opt)
	if err != nil {
		return nil, err
	}
	return &Virtual{Entries: entries, DiffID: digest.NewDigest(digest.SHA256, h), Stats: *stats, Options: opt}, nil
}

func all(entries []*Entry) func(func(*Entry, error) bool) {
	return func(yield func(*Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Size returns the bytes of the tar.
func (v *Virtual) Size() int64 { return v.Stats.Size }

// Write makes the tar. It fails with diag.Conflict if that has no longer the digest, for a file was changed meanwhile.
func (v *Virtual) Write(ctx context.Context, w io.Writer) error {
	h := sha256.New()
	if _, err := WriteEntries(ctx, io.MultiWriter(w, h), all(v.Entries), v.Options); err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, h); got != v.DiffID {
		return diag.Errorf(diag.Conflict, "the layer %s has become %s: its files were changed meanwhile", v.DiffID, got)
	}
	return nil
}

// Open returns a reader of the tar. Close ends its making.
func (v *Virtual) Open(ctx context.Context) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	p := &virtualReader{PipeReader: r, cancel: cancel}
	p.wg.Go(func() { w.CloseWithError(v.Write(ctx, w)) })
	return p
}

type virtualReader struct {
	*io.PipeReader
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (p *virtualReader) Close() error {
	p.cancel()
	err := p.PipeReader.Close()
	p.wg.Wait()
	return err
}

// Collect reads a sequence of entries to its end.
func Collect(entries func(func(*Entry, error) bool)) ([]*Entry, error) {
	var out []*Entry
	for e, err := range entries {
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return slices.Clip(out), nil
}
