package cache

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/store"
)

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

func chunksOf(t *testing.T, data []byte, step int) (out []graph.Digest, sizes []int) {
	t.Helper()
	var all []byte
	c := newChunker(func(b []byte) error {
		out, sizes = append(out, digest.FromBytes(b)), append(sizes, len(b))
		all = append(all, b...)
		return nil
	})
	for rest := data; len(rest) > 0; {
		n := min(step, len(rest))
		if _, err := c.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(all, data) {
		t.Fatal("the chunks are not what was written")
	}
	return out, sizes
}

func TestChunksDependOnContent(t *testing.T) {
	data := noise(1, 24<<20)
	a, sizes := chunksOf(t, data, 1<<20)
	b, _ := chunksOf(t, data, 77_777)
	if fmt.Sprint(a) != fmt.Sprint(b) {
		t.Error("the chunks depend on how they are written")
	}
	for i, n := range sizes {
		if n > chunkMost || n < chunkLeast && i < len(sizes)-1 {
			t.Errorf("chunk %d has %d bytes", i, n)
		}
	}
	if n := len(data) / len(sizes); n < chunkWanted/2 || n > 2*chunkWanted {
		t.Errorf("chunks have %d bytes on average", n)
	}
	moved := append(append(bytes.Clone(data[:5<<20]), "some more bytes"...), data[5<<20:]...)
	c, _ := chunksOf(t, moved, 1<<20)
	known := map[graph.Digest]bool{}
	for _, d := range a {
		known[d] = true
	}
	fresh := 0
	for _, d := range c {
		if !known[d] {
			fresh++
		}
	}
	if fresh == 0 || fresh > 3 {
		t.Errorf("%d of %d chunks are new after bytes were inserted", fresh, len(c))
	}
	if zeros, sizes := chunksOf(t, make([]byte, 9<<20), 1<<20); len(zeros) != 3 {
		t.Errorf("zeros: %v", sizes)
	}
}

// mountResults is a machine that has cache mounts and nothing else.
type mountResults struct {
	dir    string
	mounts map[string]string
	asked  []UsedMount
	broken int // readings that fail before one succeeds
}

func (r *mountResults) ReadMount(_ context.Context, m UsedMount, read func(string) error) (bool, error) {
	r.asked = append(r.asked, m)
	dir, ok := r.mounts[m.ID]
	if !ok {
		return false, nil
	}
	if r.broken > 0 {
		r.broken--
		return true, os.ErrNotExist
	}
	return true, read(dir)
}

func (r *mountResults) TempDir(prefix string) (string, func(), error) {
	dir, err := os.MkdirTemp(r.dir, prefix)
	return dir, func() { _ = os.RemoveAll(dir) }, err
}

func (*mountResults) DiffID(store.LayerID) graph.Digest { return "" }

// countedPlace is a directory that counts what is written.
type countedPlace struct {
	layout
	written atomic.Int64
}

func (p *countedPlace) name() string { return "exporting" }

func (p *countedPlace) put(ctx context.Context, l *Layer, _ func(event.Event)) error {
	if _, err := p.stat(ctx, l.Desc.Digest); err == nil {
		return nil
	}
	p.written.Add(l.Desc.Size)
	r, err := l.Open(ctx, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	return p.write(ctx, l.Desc, r)
}

func (p *countedPlace) finish(context.Context, *Config, []Layer, *Export) (map[string]string, error) {
	return nil, nil
}

func (r *mountResults) Kept(context.Context, graph.Edge) ([]store.LayerID, time.Time, bool) {
	return nil, time.Time{}, false
}

func (r *mountResults) Pack(context.Context, store.LayerID, Packing) (Layer, error) {
	return Layer{}, os.ErrNotExist
}

func uses(mounts ...graph.Mount) []graph.Edge {
	return []graph.Edge{{V: &graph.Vertex{Op: &graph.Exec{Mounts: mounts}}}}
}

func matcherOf(confs []ConfigMount, from blobs, sink event.Sink) *Matcher {
	ix := &index{mounts: map[string]image.Descriptor{}, from: from}
	for _, c := range confs {
		ix.mounts[c.ID] = c.List
	}
	s := &source{id: "test"}
	s.once.Do(func() { s.ix = ix })
	return &Matcher{all: []*source{s}, env: Env{Events: sink}}
}

func TestMountsGoAndComeBack(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("sets owners")
	}
	ctx, tmp, from := t.Context(), t.TempDir(), t.TempDir()
	for i := range 64 {
		name := filepath.Join(from, fmt.Sprintf("%02x", i), "data")
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, noise(uint64(i), 256<<10), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Chown(filepath.Join(from, "00/data"), 12, 34), os.Symlink("../../etc", filepath.Join(from, "link")),
		os.Link(filepath.Join(from, "01/data"), filepath.Join(from, "hard")), os.WriteFile(filepath.Join(from, ".wh.name"), []byte("x"), 0o644),
		unix.Mknod(filepath.Join(from, "device"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), os.Chown(from, 7, 8), os.Chmod(from, 0o2750),
		unix.Chmod(from, 0o2750),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	place := &countedPlace{layout: layout{t.TempDir()}}
	x := &Export{to: place, env: Env{}}
	r := &mountResults{dir: tmp, mounts: map[string]string{"/go": from}, broken: 1}
	roots := uses(graph.Mount{Type: graph.MountCache, Input: graph.None, CacheID: "/go", Sharing: graph.SharingLocked},
		graph.Mount{Type: graph.MountCache, Input: graph.None, CacheID: "/go"}, graph.Mount{Type: graph.MountCache, Input: graph.None, CacheID: "/none"})
	confs, blobs, err := x.sendMounts(ctx, newCollector(ctx, NewKeys(nil), nil, r), roots)
	if err != nil || len(confs) != 1 || confs[0].ID != "/go" {
		t.Fatalf("%v, %v", confs, err)
	}
	if r.asked[0] != (UsedMount{"/go", graph.SharingLocked}) {
		t.Errorf("the mount was read as %v", r.asked[0])
	}
	first := place.written.Load()
	if first < 16<<20 || first > 18<<20 || len(blobs) < 8 {
		t.Errorf("%d bytes in %d blobs were written of 16 MiB", first, len(blobs))
	}
	if left, _ := os.ReadDir(tmp); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}

	// Unchanged: nothing is written. A changed file: what holds it.
	if _, _, err := x.sendMounts(ctx, newCollector(ctx, NewKeys(nil), nil, r), roots); err != nil || place.written.Load() != first {
		t.Errorf("%d bytes of an unchanged mount were written (%v)", place.written.Load()-first, err)
	}
	if err := os.WriteFile(filepath.Join(from, "20/data"), noise(1000, 300<<10), 0o640); err != nil {
		t.Fatal(err)
	}
	confs, _, err = x.sendMounts(ctx, newCollector(ctx, NewKeys(nil), nil, r), roots)
	if err != nil || place.written.Load() == first || place.written.Load()-first > 4<<20 {
		t.Errorf("%d bytes of a mount with one changed file were written (%v)", place.written.Load()-first, err)
	}

	to := t.TempDir()
	m := matcherOf(confs, place.layout, nil)
	if ok, err := m.RestoreMount(ctx, "/none", to); ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, err := m.RestoreMount(ctx, "/go", to); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if got, want := listing(t, to), listing(t, from); got != want {
		t.Errorf("restored:\n%s\nwant:\n%s", got, want)
	}

	// A machine that has not used the mount exports what it has imported.
	again := &countedPlace{layout: layout{t.TempDir()}}
	x.to = again
	carried, _, err := x.sendMounts(ctx, newCollector(ctx, NewKeys(nil), m, &mountResults{dir: tmp}), roots)
	if err != nil || len(carried) != 1 || carried[0].List.Digest != confs[0].List.Digest || again.written.Load() < 16<<20 {
		t.Errorf("%v, %d bytes, %v", carried, again.written.Load(), err)
	}

	// A cache that has lost a chunk restores nothing, and leaves nothing.
	list, err := readMountList(ctx, place.layout, confs[0].List)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(place.dir, blobsDir, list.Chunks[5].Blob.Encoded()), []byte("other"), 0o644); err != nil {
		t.Fatal(err)
	}
	to = t.TempDir()
	var told strings.Builder
	m = matcherOf(confs, place.layout, func(e event.Event) { told.WriteString(e.Text) })
	if ok, err := m.RestoreMount(ctx, "/go", to); ok || err != nil || !strings.Contains(told.String(), "is not restored") {
		t.Error(ok, err, told.String())
	}
	if left, _ := os.ReadDir(to); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// listing describes a tree, devices not included.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err != nil || fi.Mode()&os.ModeDevice != 0 {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		st := fi.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&out, "%s %v %d:%d", rel, fi.Mode(), st.Uid, st.Gid)
		if fi.Mode().IsRegular() {
			raw, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " %s links=%d time=%d", digest.FromBytes(raw), st.Nlink, fi.ModTime().Unix())
		}
		out.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestHostileMounts refuses what no export writes.
func TestHostileMounts(t *testing.T) {
	ctx := t.Context()
	l := layout{t.TempDir()}
	add := func(mediaType string, raw []byte) image.Descriptor {
		b := blobOfBytes(mediaType, raw)
		if err := l.write(ctx, b.Desc, bytes.NewReader(raw)); err != nil {
			t.Fatal(err)
		}
		return b.Desc
	}
	list := func(change func(*mountList), headers ...tar.Header) image.Descriptor {
		var plain, blob bytes.Buffer
		w := tar.NewWriter(&plain)
		for _, h := range headers {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		_ = w.Close()
		z, _ := layer.NewCompressor(&blob, layer.Compression{Type: layer.Zstd})
		_, _ = z.Write(plain.Bytes())
		_ = z.Close()
		c := add(mountChunkType, blob.Bytes())
		m := mountList{Mode: 0o755, Chunks: []mountChunk{{c.Digest, c.Size, int64(plain.Len())}}}
		if change != nil {
			change(&m)
		}
		raw, _ := json.Marshal(m)
		return add(mountListType, raw)
	}
	file := tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644}
	for name, at := range map[string]image.Descriptor{
		"up":       list(nil, tar.Header{Name: "../f", Typeflag: tar.TypeReg}),
		"device":   list(nil, tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}),
		"link":     list(nil, tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}),
		"below":    list(nil, tar.Header{Name: "s", Typeflag: tar.TypeSymlink, Linkname: "/tmp"}, tar.Header{Name: "s/f", Typeflag: tar.TypeReg}),
		"shorter":  list(func(m *mountList) { m.Chunks[0].Plain++ }, file),
		"longer":   list(func(m *mountList) { m.Chunks[0].Plain-- }, file),
		"large":    list(func(m *mountList) { m.Chunks[0].Plain = chunkMost + 1 }, file),
		"negative": list(func(m *mountList) { m.Chunks[0].Size = -1 }, file),
		"mode":     list(func(m *mountList) { m.Mode = 1 << 20 }, file),
		"digest":   list(func(m *mountList) { m.Chunks[0].Blob = "sha256:../../x" }, file),
		"many":     list(func(m *mountList) { m.Chunks = make([]mountChunk, 10) }, file),
		"text":     add(mountListType, []byte("text")),
		"none":     {Digest: digest.FromString("none"), Size: 4},
		"no name":  {Digest: "x", Size: 4},
	} {
		dir := t.TempDir()
		err := restore(ctx, l, at, dir)
		if err == nil {
			t.Errorf("%s: it was restored", name)
		}
		if k := diag.KindOf(err); k == diag.Internal {
			t.Errorf("%s: %v", name, err)
		}
		if err := empty(dir); err != nil {
			t.Error(err)
		}
	}
	dir := t.TempDir()
	if err := restore(ctx, l, list(nil, file), dir); err != nil {
		t.Fatal(err)
	}
}

func TestMountsThatAreTooLarge(t *testing.T) {
	p := &packedMount{left: 1 << 20, chunksLeft: 10}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), noise(1, 3<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := p.pack(t.Context(), dir, t.TempDir()); diag.KindOf(err) != diag.Exhausted {
		t.Errorf("%v", err)
	}
}

func TestMountsOfInline(t *testing.T) {
	if _, err := NewExport(Spec{Type: "inline", Attrs: map[string]string{"cache-mounts": "true"}}, Env{}); err == nil || !strings.Contains(err.Error(), "cannot carry cache mounts") {
		t.Errorf("%v", err)
	}
}
