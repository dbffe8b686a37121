package cache

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
)

// The media types of what a cache mount is stored as.
const (
	mountListType  = "application/vnd.strata.cachemount.v1+json"
	mountChunkType = "application/vnd.strata.cachemount.chunk.v1+zstd"
)

// Limits of the cache mounts of one cache. BuildKit reads no manifest above 1 MiB, and each chunk has about 160 bytes in it.
const (
	maxMountBytes   = 4 << 30
	maxMountEntries = 1_000_000 // of each
	maxMountChunks  = 5000
)

// mountList says what a cache mount holds: a tar of profile 1, cut into chunks, and the attributes of its root.
type mountList struct {
	Mode    uint32       `json:"mode"` // 07777
	UID     uint32       `json:"uid"`
	GID     uint32       `json:"gid"`
	Entries int64        `json:"entries"`
	Chunks  []mountChunk `json:"chunks"` // in their order
}

type mountChunk struct {
	Blob  graph.Digest `json:"blob"`  // of the chunk, compressed by zstd
	Size  int64        `json:"size"`  // of the blob
	Plain int64        `json:"plain"` // bytes of the tar
}

// plain is the size of the tar.
func (l *mountList) plain() (n int64) {
	for _, c := range l.Chunks {
		n += c.Plain
	}
	return n
}

// UsedMount is a cache mount that a build's steps use.
type UsedMount struct {
	ID      string        // its identity: see [graph.Mount.CacheIdentity]
	Sharing graph.Sharing // the strictest that is asked for
}

// usedMounts lists the cache mounts of the steps that lead to roots, by id. One that begins with content that is not known is
// left out.
func usedMounts(ctx context.Context, b Build, roots []graph.Edge) []UsedMount {
	byID := map[string]graph.Sharing{}
	graph.Walk(roots, func(v *graph.Vertex) {
		x, ok := v.Op.(*graph.Exec)
		if !ok {
			return
		}
		for _, m := range x.Mounts {
			if m.Type != graph.MountCache {
				continue
			}
			var source graph.Digest
			if m.Input != graph.None {
				if source = b.MountSource(ctx, v, m); source == "" {
					continue
				}
			}
			id := m.CacheIdentity(source)
			if have, ok := byID[id]; !ok || have != graph.SharingLocked { // the strictest wish counts
				byID[id] = m.Sharing
			}
		}
	})
	var all []UsedMount
	for id, sharing := range byID {
		all = append(all, UsedMount{id, sharing})
	}
	slices.SortFunc(all, func(a, b UsedMount) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// mountExport packs and sends the cache mounts of one cache.
type mountExport struct {
	x       *Export
	r       Results
	m       *Matcher // nil = nothing was imported
	dir     string   // for chunks until they are sent
	bytes   int64    // of all mounts so far
	sent    map[graph.Digest]bool
	configs []ConfigMount
	blobs   []Layer // distinct
}

// sendMounts writes the blobs of the cache mounts of the steps that lead to roots. A mount that this machine does not have is the one
// of a cache that was imported: the steps that use it were found there. One that is too large is left out, with a warning.
func (x *Export) sendMounts(ctx context.Context, c *collector, roots []graph.Edge) ([]ConfigMount, []Layer, error) {
	dir, cleanup, err := c.results.TempDir("cache-mounts")
	if err != nil {
		return nil, nil, err
	}
	defer cleanup()
	e := &mountExport{x: x, r: c.results, m: c.matcher, dir: dir, sent: map[graph.Digest]bool{}}
	for _, u := range usedMounts(ctx, c.keys.b, roots) {
		done := x.step("exporting cache mount " + u.ID)
		err := e.one(ctx, u)
		done()
		if err != nil && diag.KindOf(err) == diag.Exhausted {
			x.warn("the cache mount " + u.ID + " is not exported: " + err.Error())
		} else if err != nil {
			return nil, nil, err
		}
	}
	return e.configs, e.blobs, nil
}

func (e *mountExport) one(ctx context.Context, u UsedMount) error {
	var p *packedMount
	var err error
	found := false
	for n := range tries { // of a mount that is shared, files may be written while they are read
		p = &packedMount{left: maxMountBytes - e.bytes, chunksLeft: maxMountChunks - len(e.blobs)}
		found, err = e.r.ReadMount(ctx, u, func(dir string) error { return p.pack(ctx, dir, e.dir) })
		if err == nil || diag.KindOf(err) == diag.Exhausted || ctx.Err() != nil || n == tries-1 {
			break
		}
	}
	if err != nil {
		return diag.Errorf(diag.KindOf(err), "cache mount %s: %w", u.ID, err)
	}
	if !found {
		if p = e.m.mountToCarry(ctx, u.ID); p == nil {
			return nil
		}
		if e.bytes+p.list.plain() > maxMountBytes || len(e.blobs)+len(p.blobs) > maxMountChunks {
			return tooLarge()
		}
	}
	if len(p.list.Chunks) == 0 {
		return nil // it is empty
	}
	raw, err := json.Marshal(p.list)
	if err != nil {
		return err
	}
	list := blobOfBytes(mountListType, raw)
	if err := e.send(ctx, append(p.blobs, list)); err != nil {
		return err
	}
	e.bytes += p.list.plain()
	e.configs = append(e.configs, ConfigMount{u.ID, list.Desc})
	return nil
}

// send writes blobs, those that were not written before.
func (e *mountExport) send(ctx context.Context, blobs []Layer) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(sends)
	for i := range blobs {
		b := &blobs[i]
		if e.sent[b.Desc.Digest] {
			continue
		}
		e.sent[b.Desc.Digest] = true
		e.blobs = append(e.blobs, *b)
		g.Go(func() error { return e.x.to.put(gctx, b, func(event.Event) {}) })
	}
	return g.Wait()
}

func blobOfBytes(mediaType string, raw []byte) Layer {
	return Layer{
		Desc: image.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))},
		Open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(raw[offset:])), nil
		},
		Exists: func(context.Context) bool { return true },
	}
}

// packedMount is a cache mount in chunks.
type packedMount struct {
	list       mountList
	blobs      []Layer // in the order of the list
	left       int64   // bytes that it may have
	chunksLeft int
}

// pack reads a directory. The chunks are kept in a file of spool, so that nobody waits for the network to use the mount.
func (p *packedMount) pack(ctx context.Context, dir, spool string) error {
	root, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if st, ok := root.Sys().(*syscall.Stat_t); ok {
		p.list.Mode, p.list.UID, p.list.GID = st.Mode&0o7777, st.Uid, st.Gid
	}
	w, err := layer.NewWalker(dir, true)
	if err != nil {
		return err
	}
	defer w.Close()
	w.Plain = true
	f, err := os.CreateTemp(spool, "chunks-")
	if err != nil {
		return err
	}
	path, at := f.Name(), int64(0)
	cut := newChunker(func(chunk []byte) error {
		l, err := p.chunk(f, path, at, chunk)
		if err == nil {
			at += l.Desc.Size
			p.blobs = append(p.blobs, l)
		}
		return err
	})
	_, err = layer.WriteEntries(ctx, cut, p.entries(w), layer.TarOptions{UserXattrs: true})
	if err == nil {
		err = cut.flush()
	}
	if p.list.Entries == 0 {
		p.list.Chunks, p.blobs = nil, nil
	}
	return errors.Join(err, f.Close())
}

// entries are what a cache mount is stored with: no devices, and no more than the limits allow.
func (p *packedMount) entries(w *layer.Walker) iter.Seq2[*layer.Entry, error] {
	return func(yield func(*layer.Entry, error) bool) {
		for e, err := range w.Entries() {
			if err == nil && (e.Type == layer.Char || e.Type == layer.Block) {
				continue
			}
			if p.list.Entries++; err == nil && p.list.Entries > maxMountEntries {
				err = diag.Errorf(diag.Exhausted, "it has more than %d files", maxMountEntries)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func tooLarge() error {
	return diag.Errorf(diag.Exhausted, "the cache mounts of one cache may have %d GiB in %d chunks", maxMountBytes>>30, maxMountChunks)
}

// chunk compresses a chunk into f.
func (p *packedMount) chunk(f *os.File, path string, at int64, chunk []byte) (Layer, error) {
	p.left -= int64(len(chunk))
	p.chunksLeft--
	if p.left < 0 || p.chunksLeft < 0 {
		return Layer{}, tooLarge()
	}
	var blob bytes.Buffer
	z, err := layer.NewCompressor(&blob, layer.Compression{Type: layer.Zstd})
	if err != nil {
		return Layer{}, err
	}
	_, err = z.Write(chunk)
	if err = errors.Join(err, z.Close()); err != nil {
		return Layer{}, err
	}
	if _, err := f.Write(blob.Bytes()); err != nil {
		return Layer{}, err
	}
	l := Layer{
		Desc:   image.Descriptor{MediaType: mountChunkType, Digest: digest.FromBytes(blob.Bytes()), Size: int64(blob.Len())},
		Exists: func(context.Context) bool { return true },
	}
	size := l.Desc.Size
	l.Open = func(_ context.Context, offset int64) (io.ReadCloser, error) {
		in, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		return sectionOf{io.NewSectionReader(in, at+offset, size-offset), in}, nil
	}
	p.list.Chunks = append(p.list.Chunks, mountChunk{l.Desc.Digest, size, int64(len(chunk))})
	return l, nil
}

// sectionOf is a part of a file.
type sectionOf struct {
	*io.SectionReader
	io.Closer
}
