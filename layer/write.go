package layer

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"io"
	"iter"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/graph"
)

// TarOptions say how a directory becomes a tar.
type TarOptions struct {
	Epoch *time.Time // SOURCE_DATE_EPOCH: later times become this one
	// UserXattrs keeps user.* attributes. security.capability is always kept, all others never.
	UserXattrs bool
	// AllXattrs keeps what entries have: for entries of Index, which has left out those that no layer should have.
	AllXattrs bool
}

// Stats counts what a tar holds.
type Stats struct {
	Entries int64 // headers, whiteouts and opaque markers included
	Files   int64 // regular files and markers, hard links not counted
	Bytes   int64 // content of those files
	Size    int64 // bytes of the tar
	Skipped int64 // sockets, which a tar cannot hold
	// State stands for the files as WriteTar found them, by name, inode, size and ctime: equal states have equal contents, as far
	// as the file system is honest. It is 0 for entries that are not of a directory.
	State uint64
}

// EntryType is what an entry is, as in a tar header.
type EntryType byte

const (
	File     EntryType = tar.TypeReg
	HardLink EntryType = tar.TypeLink
	Symlink  EntryType = tar.TypeSymlink
	Char     EntryType = tar.TypeChar
	Block    EntryType = tar.TypeBlock
	Dir      EntryType = tar.TypeDir
	Fifo     EntryType = tar.TypeFifo
)

// Entry is one entry of a layer tar, whiteouts in their tar form ("a/.wh.b", an empty file).
type Entry struct {
	Path         string // relative, clean, without a slash at the end
	Type         EntryType
	Mode         uint32 // permission bits with setuid, setgid and sticky: 07777; of symlinks it is not used
	UID, GID     uint32
	Size         int64 // of a File
	ModTime      time.Time
	Link         string // target of a Symlink, or path of the file that a HardLink repeats
	Major, Minor uint32 // of devices
	Xattrs       map[string]string
	// Open gives the content of a File of Size bytes. It is called from another goroutine, after the sequence has gone on.
	// It may be nil if Size is 0.
	Open func() (io.ReadCloser, error)
}

// WriteTar writes the layer directory dir to w as tar profile 1. Whiteouts and opaque directories become their markers.
// The bytes depend on the tree and the options only.
func WriteTar(ctx context.Context, w io.Writer, dir string, opt TarOptions) (*Stats, error) {
	walker, err := NewWalker(dir, opt.UserXattrs)
	if err != nil {
		return nil, err
	}
	defer walker.Close()
	stats, err := WriteEntries(ctx, w, walker.Entries(), opt)
	if err != nil {
		return nil, err
	}
	stats.Skipped, stats.State = walker.Skipped, walker.state.Sum64()
	return stats, nil
}

// DiffID returns the sha256 and the size of what WriteTar would write.
func DiffID(ctx context.Context, dir string, opt TarOptions) (graph.Digest, *Stats, error) {
	h := sha256.New()
	stats, err := WriteTar(ctx, h, dir, opt)
	if err != nil {
		return "", nil, err
	}
	return digest.NewDigest(digest.SHA256, h), stats, nil
}

const (
	tarBlock  = 512
	pieceSize = 256 << 10 // bytes of tar that are handed on at once
	pieces    = 24        // for each reader: 6 MiB
	readers   = 2
	// batchFiles and batchBytes end a batch: enough to make the hand-over cheap, little enough to share the work.
	batchFiles = 64
	batchBytes = 1 << 20
)

// WriteEntries writes a sequence of entries, in its order, as a tar of profile 1. Readers open and render batches of
// entries ahead of the one goroutine that writes, within about 12 MiB of memory. The first error ends it.
func WriteEntries(ctx context.Context, w io.Writer, entries iter.Seq2[*Entry, error], opt TarOptions) (*Stats, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	p := &packer{ctx: ctx, cancel: cancel, opt: opt, batches: make(chan *batch, readers), order: make(chan *batch, 4*readers)}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() { p.list(entries) })
	for range readers {
		wg.Go(p.read)
	}
	if err := p.write(w); err != nil {
		cancel(err)
		return nil, context.Cause(ctx)
	}
	return &p.stats, nil
}

// packer is one run of WriteEntries: list -> read (several) -> write.
type packer struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	opt     TarOptions
	batches chan *batch // for the readers, each takes the next one
	order   chan *batch // the same batches, for the writer
	stats   Stats
}

// batch is a run of entries that one reader renders.
type batch struct {
	entries []*Entry
	out     chan []byte // pieces of tar, in order; closed at the end
	free    chan []byte // where pieces go back to: the reader's own store
}

func (p *packer) list(entries iter.Seq2[*Entry, error]) {
	defer close(p.order)
	defer close(p.batches)
	cur, size := &batch{}, int64(0)
	send := func() bool {
		cur.out = make(chan []byte, pieces)
		for _, c := range []chan *batch{p.order, p.batches} {
			select {
			case c <- cur:
			case <-p.ctx.Done():
				return false
			}
		}
		cur, size = &batch{entries: make([]*Entry, 0, batchFiles)}, 0
		return true
	}
	for e, err := range entries {
		if err != nil {
			p.cancel(err)
			return
		}
		if p.ctx.Err() != nil {
			return
		}
		p.stats.Entries++
		if e.Type == File {
			p.stats.Files++
			p.stats.Bytes += e.Size
			size += e.Size
		}
		if cur.entries = append(cur.entries, e); len(cur.entries) >= batchFiles || size >= batchBytes {
			if !send() {
				return
			}
		}
	}
	if len(cur.entries) > 0 {
		send()
	}
}

// read renders batches. A reader's pieces all belong to batches that are not later than the one it works on; so the
// reader of the batch that the writer waits for always gets its pieces back.
func (p *packer) read() {
	free := make(chan []byte, pieces)
	for range pieces {
		free <- nil // made when first used
	}
	for b := range p.batches {
		r := &renderer{p: p, b: b, free: free}
		if err := r.all(); err != nil {
			p.cancel(err)
			return // out stays open: the writer stops with the context
		}
	}
}

func (p *packer) write(w io.Writer) error {
	for b := range p.order {
		if err := p.writeBatch(w, b); err != nil {
			return err
		}
	}
	if err := p.ctx.Err(); err != nil { // list stopped early
		return err
	}
	n, err := w.Write(make([]byte, 2*tarBlock))
	p.stats.Size += int64(n)
	return err
}

func (p *packer) writeBatch(w io.Writer, b *batch) error {
	for {
		select {
		case piece, ok := <-b.out:
			if !ok {
				return nil
			}
			n, err := w.Write(piece)
			p.stats.Size += int64(n)
			if err != nil {
				return err
			}
			b.free <- piece[:0]
		case <-p.ctx.Done():
			return p.ctx.Err()
		}
	}
}
