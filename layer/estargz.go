package layer

import (
	"io"
	"strconv"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// EStargzWriter compresses a layer tar so that its files can be read one by one: each file, or part of a large one, is a gzip
// member of its own, and a table of contents stands at the end. The table is part of the tar that comes out when the blob is
// decompressed: a blob of this kind has a diff_id of its own. Source: stargz-snapshotter, docs/estargz.md.
type EStargzWriter struct {
	in     *io.PipeWriter
	made   chan error // the blob is complete
	opened chan error // it was decompressed again
	z      *estargz.Writer
	check  *io.PipeWriter
	toc    graph.Digest
	plain  *DigestReader
}

// NewEStargz returns a writer that compresses the tar that is written to it into w. Level 0 is the default; Stored and
// 1 to 9 are gzip's. What is asked of the blob is known after Close, which leaves w open.
func NewEStargz(w io.Writer, level int) (*EStargzWriter, error) {
	switch level {
	case 0:
		level = estargzLevel
	case Stored:
		level = 0
	}
	if level < 0 || level > 9 {
		return nil, diag.Errorf(diag.Invalid, "gzip has no level %d", level).WithHint("use 1 to 9")
	}
	tar, in := io.Pipe()
	blob, check := io.Pipe()
	e := &EStargzWriter{in: in, check: check, made: make(chan error, 1), opened: make(chan error, 1)}
	e.z = estargz.NewWriterLevel(io.MultiWriter(w, check), level)
	go func() {
		err := e.z.AppendTarLossLess(tar)
		_ = tar.CloseWithError(err) // with nil too nobody waits to write any more
		e.made <- err
	}()
	go func() { // the size and the digest of the tar are those of the blob when it is read, table included
		err := e.open(blob)
		_ = blob.CloseWithError(err)
		e.opened <- err
	}()
	return e, nil
}

func (e *EStargzWriter) open(blob io.Reader) error {
	tar, _, err := Decompress(blob)
	if err != nil {
		return err
	}
	defer tar.Close()
	e.plain = NewDigestReader(tar)
	defer e.plain.Close()
	_, err = io.Copy(io.Discard, e.plain)
	return err
}

func (e *EStargzWriter) Write(b []byte) (int, error) { return e.in.Write(b) }

// Close ends the blob.
func (e *EStargzWriter) Close() error {
	_ = e.in.Close() // never fails
	err := <-e.made
	if err == nil {
		e.toc, err = e.z.Close()
	}
	_ = e.check.CloseWithError(err) // nil is the end
	if oerr := <-e.opened; err == nil {
		err = oerr
	}
	if err != nil {
		return diag.Errorf(diag.KindOf(err), "making an eStargz layer: %w", err)
	}
	return nil
}

// DiffID is the digest of what the blob decompresses to.
func (e *EStargzWriter) DiffID() graph.Digest { return e.plain.Digest() }

// Annotations are those that the blob's descriptor needs for its table to be found.
func (e *EStargzWriter) Annotations() map[string]string {
	return map[string]string{estargz.TOCJSONDigestAnnotation: string(e.toc), estargz.StoreUncompressedSizeAnnotation: strconv.FormatInt(e.plain.Size(), 10)}
}
