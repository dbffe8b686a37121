package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/strictjson"
)

// holding goes through the caches that have a cache mount, reading each when it comes to it.
func (m *Matcher) holding(id string) iter.Seq2[*source, *index] {
	return func(yield func(*source, *index) bool) {
		for _, s := range m.sources() {
			ix := s.index(m)
			if ix == nil {
				continue
			}
			if _, ok := ix.mounts[id]; ok && !yield(s, ix) {
				return
			}
		}
	}
}

// RestoreMount fills dir, which is empty, with what the first cache that has a cache mount holds of it, owner and mode of dir itself
// included. If there is none, or it is damaged, which is told, dir is empty afterwards. An error is that of a build that ends.
func (m *Matcher) RestoreMount(ctx context.Context, id, dir string) (bool, error) {
	for s, ix := range m.holding(id) {
		at := ix.mounts[id]
		v := digest.FromString("restoring cache mount " + id + " from " + s.id + time.Now().String())
		sink := m.env.Events
		sink.Emit(event.Event{Kind: event.Planned, Vertex: v, Name: "restoring cache mount " + id + " from " + s.id})
		sink.Emit(event.Event{Kind: event.Started, Vertex: v, Time: time.Now()})
		err := restore(ctx, ix.from, at, dir)
		done := event.Event{Kind: event.Done, Vertex: v}
		if err != nil {
			done.Error = err.Error()
		}
		sink.Emit(done)
		if err == nil {
			return true, nil
		}
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		sink.Emit(event.Event{Kind: event.Message, Time: time.Now(), Text: "the cache mount " + id + " is not restored: " + err.Error()})
		if err := empty(dir); err != nil {
			return false, err
		}
	}
	return false, nil
}

// mountToCarry returns a cache mount of a cache that was imported, nil if none has it.
func (m *Matcher) mountToCarry(ctx context.Context, id string) *packedMount {
	if m == nil {
		return nil
	}
	for _, ix := range m.holding(id) {
		at := ix.mounts[id]
		list, err := readMountList(ctx, ix.from, at)
		if err != nil {
			m.env.Events.Emit(event.Event{Kind: event.Message, Time: time.Now(), Text: "the cache mount " + id + " is not exported again: " + err.Error()})
			continue
		}
		p := &packedMount{list: *list}
		for _, c := range list.Chunks {
			l := Layer{Desc: c.descriptor()}
			l.at(ix.from)
			p.blobs = append(p.blobs, l)
		}
		return p
	}
	return nil
}

func (c mountChunk) descriptor() image.Descriptor {
	return image.Descriptor{MediaType: mountChunkType, Digest: c.Blob, Size: c.Size}
}

// readMountList reads a list and refuses one that no honest export writes.
func readMountList(ctx context.Context, b blobs, at image.Descriptor) (*mountList, error) {
	if err := at.Digest.Validate(); err != nil {
		return nil, diag.Errorf(diag.Invalid, "the list of the cache mount: %w", err)
	}
	raw, err := readAll(ctx, b, at)
	if err != nil {
		return nil, err
	}
	var l mountList
	if err := strictjson.Unmarshal(raw, &l); err != nil {
		return nil, diag.Errorf(diag.Invalid, "the list of the cache mount cannot be read: %w", err)
	}
	total := int64(0)
	for _, c := range l.Chunks {
		// zstd adds a little to what it cannot make smaller.
		if c.Blob.Validate() != nil || c.Plain <= 0 || c.Plain > chunkMost || c.Size <= 0 || c.Size > chunkMost+chunkMost/8 {
			return nil, diag.Errorf(diag.Invalid, "the list of the cache mount has a chunk that cannot be: %s, %d bytes", c.Blob, c.Size)
		}
		total += c.Plain
	}
	if total > maxMountBytes || len(l.Chunks) > maxMountChunks || l.Mode&^0o7777 != 0 {
		return nil, diag.Errorf(diag.Exhausted, "the cache mount has %d bytes in %d chunks, more than the %d in %d that are allowed",
			total, len(l.Chunks), int64(maxMountBytes), maxMountChunks)
	}
	return &l, nil
}

// restore unpacks a cache mount with the strictness of layers that others made.
func restore(ctx context.Context, b blobs, at image.Descriptor, dir string) error {
	list, err := readMountList(ctx, b, at)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(list.fetch(ctx, b, w))
	}()
	_, err = layer.Apply(ctx, r, dir, layer.ApplyOptions{
		Form: layer.Literal, Strict: true, NoDevices: true, Confined: true, MaxEntries: maxMountEntries, MaxBytes: maxMountBytes + 1<<20,
	})
	cancel()
	r.CloseWithError(context.Canceled)
	<-done
	if err != nil {
		return err
	}
	if err := os.Chown(dir, int(list.UID), int(list.GID)); err != nil {
		return err
	}
	return unix.Chmod(dir, list.Mode)
}

// fetch writes the tar, and downloads some chunks ahead.
func (l *mountList) fetch(ctx context.Context, b blobs, w io.Writer) error {
	type got struct {
		plain []byte
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ahead := make(chan chan got, sends)
	go func() {
		defer close(ahead)
		for _, c := range l.Chunks {
			one := make(chan got, 1)
			select {
			case ahead <- one:
			case <-ctx.Done():
				return
			}
			go func() {
				plain, err := c.read(ctx, b)
				one <- got{plain, err}
			}()
		}
	}()
	for one := range ahead {
		g := <-one
		if g.err == nil {
			_, g.err = w.Write(g.plain)
		}
		if g.err != nil {
			return g.err
		}
	}
	return context.Cause(ctx)
}

// read downloads a chunk and verifies it.
func (c mountChunk) read(ctx context.Context, b blobs) ([]byte, error) {
	blob, err := readAll(ctx, b, c.descriptor())
	if err != nil {
		return nil, err
	}
	z, _, err := layer.DecompressLimited(bytes.NewReader(blob), layer.Limits{MaxBytes: chunkMost})
	if err != nil {
		return nil, err
	}
	defer z.Close()
	plain := make([]byte, c.Plain)
	if _, err := io.ReadFull(z, plain); err != nil {
		return nil, diag.Errorf(diag.Invalid, "the chunk %s of the cache mount is too short: %w", c.Blob, err)
	}
	if n, err := z.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		return nil, diag.Errorf(diag.Invalid, "the chunk %s of the cache mount is longer than its list says", c.Blob)
	}
	return plain, nil
}

// empty removes what a directory holds.
func empty(dir string) error {
	all, err := os.ReadDir(dir)
	for _, e := range all {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}
