package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// listing describes a tar's headers, one line each.
func listing(t *testing.T, data []byte) []string {
	t.Helper()
	var out []string
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		must(t, err)
		if h.Uname != "" || h.Gname != "" || !h.AccessTime.IsZero() || !h.ChangeTime.IsZero() || h.Format == tar.FormatGNU {
			t.Errorf("%s: %+v", h.Name, h)
		}
		body, err := io.ReadAll(tr)
		must(t, err)
		s := fmt.Sprintf("%c %o %d:%d %s", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Name)
		if h.Linkname != "" {
			s += " -> " + h.Linkname
		}
		if len(body) > 0 {
			s += fmt.Sprintf(" %q", body)
		}
		out = append(out, s)
	}
}

func pack(t *testing.T, dir string, opt TarOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	stats, err := WriteTar(context.Background(), &b, dir, opt)
	must(t, err)
	if stats.Size != int64(b.Len()) {
		t.Errorf("size %d, wrote %d", stats.Size, b.Len())
	}
	return b.Bytes()
}

// fixed makes a tree with one of everything.
func fixed(t *testing.T) string {
	t.Helper()
	needRoot(t)
	m := (&maker{}).add(dirWith("a", 0o755, 0, 1), "").file("a/file", "content").hard("a/link", "a/file").file("a.b", "sorts before a/").
		add(tar.Header{Name: "bin/su", Mode: 0o4755, Uid: 1, Gid: 2, ModTime: time.Unix(5, 999), Format: tar.FormatPAX, PAXRecords: map[string]string{xattrRecord + "security.capability": capNetRaw, xattrRecord + "user.k": "v"}}, "su").
		link("sym", "a/file").dev(tar.TypeChar, "dev/null", 1, 3).dev(tar.TypeBlock, "dev/sda", 8, 1).dev(tar.TypeFifo, "dev/fifo", 0, 0).
		file("d/.wh.gone", "").file("d/.wh..wh..opq", "").file("d/!first", "").file("d/new", "x").file(".wh.top", "").
		file(strings.Repeat("long/", 30)+"name", "ustar prefix").file(strings.Repeat("n", 200), "pax path").file("grüße", "pax").
		add(tar.Header{Name: "big-id", Uid: 1 << 22, ModTime: time.Unix(-10, 500), Format: tar.FormatPAX}, "pax")
	dir := t.TempDir()
	must(t, Finish(context.Background(), dir, apply(t, dir, m.end()), nil))
	return dir
}

func TestWriteTar(t *testing.T) {
	dir := fixed(t)
	data := pack(t, dir, TarOptions{})
	want := []string{
		"0 0 0:0 .wh.top", "5 755 0:0 a/", `0 644 0:0 a.b "sorts before a/"`, `0 644 0:0 a/file "content"`, "1 644 0:0 a/link -> a/file",
	}
	got := listing(t, data)
	// Depth first: a's children come before a.b.
	want = []string{want[0], want[1], want[3], want[4], want[2], `0 644 4194304:0 big-id "pax"`, "5 755 0:0 bin/", `0 4755 1:2 bin/su "su"`, "5 755 0:0 d/", "0 0 0:0 d/.wh..wh..opq", "0 644 0:0 d/!first", "0 0 0:0 d/.wh.gone", `0 644 0:0 d/new "x"`, "5 755 0:0 dev/", "6 600 0:0 dev/fifo", "3 600 0:0 dev/null", "4 600 0:0 dev/sda", `0 644 0:0 grüße "pax"`}
	if !slices.Equal(got[:len(want)], want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got[:len(want)], "\n"), strings.Join(want, "\n"))
	}
	if last := got[len(got)-1]; last != "2 777 0:0 sym -> a/file" {
		t.Errorf("last is %s", last)
	}
	if n := len(data); n%tarBlock != 0 || !allZero(data[n-2*tarBlock:]) || allZero(data[n-3*tarBlock:n-2*tarBlock]) {
		t.Error("does not end in exactly two zero blocks")
	}
}

// The bytes are a promise: they may only change together with the number of the profile.
func TestGolden(t *testing.T) {
	dir := fixed(t)
	id, stats, err := DiffID(context.Background(), dir, TarOptions{})
	must(t, err)
	const want = "sha256:e9c9a6cf7c16bdbf6db476d141f7361067f06a85ada3f5b41e74321efc3b92ba"
	if id.String() != want {
		t.Errorf("got %s, want %s", id, want)
	}
	if stats.Files != 12 || stats.Entries != 51 {
		t.Errorf("counted %+v", stats)
	}
	data := pack(t, dir, TarOptions{})
	if fmt.Sprintf("sha256:%x", sha256.Sum256(data)) != id.String() || stats.Size != int64(len(data)) {
		t.Error("DiffID and WriteTar differ")
	}
}

// The headers are those of the standard library.
func TestHeadersEqualStandardLibrary(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	name := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = "abcdefgh/"[r.IntN(9)]
		}
		return "n" + strings.ReplaceAll(string(b), "//", "xx")
	}
	fits := 0
	for i := range 5000 {
		e := &Entry{Path: strings.TrimSuffix(name(r.IntN(300)), "/"), Type: []EntryType{File, Dir, Symlink, HardLink, Char, Block, Fifo}[r.IntN(7)], Mode: r.Uint32N(1 << 12), UID: r.Uint32() >> r.IntN(32), GID: r.Uint32() >> r.IntN(32), ModTime: time.Unix(r.Int64N(1<<34)-1000, 5), Major: r.Uint32N(4096), Minor: r.Uint32N(1 << 20), Size: r.Int64N(1 << 34), Link: name(r.IntN(110))}
		if i%50 == 0 {
			e.Path += "é"
		}
		h, err := header(e, TarOptions{})
		must(t, err)
		var std bytes.Buffer
		must(t, tar.NewWriter(&std).WriteHeader(h))
		var own [tarBlock]byte
		if !ustar(&own, h) {
			if std.Len() == tarBlock {
				t.Errorf("%+v fits into USTAR", h)
			}
			continue
		}
		fits++
		if !bytes.Equal(own[:], std.Bytes()) {
			t.Fatalf("%+v:\n%q\n%q", h, own, std.Bytes())
		}
	}
	if fits < 500 {
		t.Errorf("only %d headers were compared", fits)
	}
}

func TestRoundTripFixed(t *testing.T) { roundTrip(t, fixed(t)) }

// Random trees: pack, unpack, pack gives the same bytes, with any number of processors.
func TestRoundTripRandom(t *testing.T) {
	needRoot(t)
	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 1))
		dir := t.TempDir()
		files, dirs := []string{}, []string{dir}
		for i := range 300 {
			p := filepath.Join(dirs[r.IntN(len(dirs))], fmt.Sprintf("%c%d%s", 'A'+r.IntN(60), i, strings.Repeat("x", r.IntN(60))))
			switch r.IntN(8) {
			case 0, 1:
				must(t, os.Mkdir(p, 0o700|os.FileMode(r.IntN(64))))
				if dirs = append(dirs, p); r.IntN(4) == 0 {
					must(t, unix.Setxattr(p, xattrOpaque, []byte("y"), 0))
				}
			case 2:
				must(t, os.Symlink("to/"+p, p))
			case 3:
				must(t, unix.Mknod(p, unix.S_IFCHR, 0))
			case 4:
				if len(files) > 0 {
					must(t, os.Link(files[r.IntN(len(files))], p))
					break
				}
				fallthrough
			default:
				b := make([]byte, r.IntN(3000))
				if r.IntN(20) == 0 {
					b = make([]byte, r.IntN(3<<20))
				}
				for i := range b {
					b[i] = byte(r.Uint32())
				}
				must(t, os.WriteFile(p, b, 0o600|os.FileMode(r.IntN(128))))
				must(t, os.Chtimes(p, time.Time{}, time.Unix(r.Int64N(1<<31), r.Int64N(1e9))))
				files = append(files, p)
			}
		}
		roundTrip(t, dir)
		all := pack(t, dir, TarOptions{})
		old := runtime.GOMAXPROCS(1)
		one := pack(t, dir, TarOptions{})
		runtime.GOMAXPROCS(old)
		if !bytes.Equal(all, one) {
			t.Error("the tar depends on the number of processors")
		}
	}
}

func TestEpoch(t *testing.T) {
	dir := t.TempDir()
	apply(t, dir, (&maker{}).add(dirWith("old", 0o755, os.Geteuid(), 50), "").add(dirWith("new", 0o755, os.Geteuid(), 1000), "").end())
	epoch := time.Unix(100, 7)
	tr := tar.NewReader(bytes.NewReader(pack(t, dir, TarOptions{Epoch: &epoch})))
	for _, want := range []int64{100, 50} {
		h, err := tr.Next()
		must(t, err)
		if !h.ModTime.Equal(time.Unix(want, 0)) {
			t.Errorf("%s: %v", h.Name, h.ModTime)
		}
	}
}

func TestSocketsAreSkipped(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	must(t, err)
	defer l.Close()
	stats, err := WriteTar(context.Background(), io.Discard, dir, TarOptions{})
	must(t, err)
	if stats.Skipped != 1 || stats.Entries != 0 || stats.Size != 1024 {
		t.Errorf("%+v", stats)
	}
}

func TestWhatALayerCannotHold(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "d/.wh.x"), 0o755))
	_, err := WriteTar(context.Background(), io.Discard, dir, TarOptions{})
	wantKind(t, err, diag.Invalid, "names that start with .wh. delete files")
	needRoot(t)
	for _, name := range []string{"trusted.overlay.redirect", "trusted.overlay.metacopy"} {
		dir := t.TempDir()
		must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o644))
		must(t, unix.Setxattr(filepath.Join(dir, "d"), name, []byte("x"), 0))
		must(t, unix.Setxattr(filepath.Join(dir, "f"), name, []byte("x"), 0))
		_, err := WriteTar(context.Background(), io.Discard, dir, TarOptions{})
		wantKind(t, err, diag.Unsupported, "overlayfs")
	}
}

func TestHardLinksFromElsewhere(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(other, "f"), []byte("x"), 0o644))
	for _, p := range []string{"b", "a"} {
		must(t, os.Link(filepath.Join(other, "f"), filepath.Join(dir, p)))
	}
	must(t, os.WriteFile(filepath.Join(other, "g"), []byte("y"), 0o644))
	must(t, os.Link(filepath.Join(other, "g"), filepath.Join(dir, "g")))
	var types []byte
	tr := tar.NewReader(bytes.NewReader(pack(t, dir, TarOptions{})))
	for h, err := tr.Next(); err == nil; h, err = tr.Next() {
		types = append(types, h.Typeflag)
	}
	if string(types) != "010" {
		t.Errorf("types %q", types)
	}
}

func seqOf(list ...*Entry) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		for _, e := range list {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func stringEntry(name, body string) *Entry {
	return &Entry{Path: name, Type: File, Mode: 0o644, ModTime: stamp, Size: int64(len(body)), Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }}
}

func TestWriteEntries(t *testing.T) {
	var b bytes.Buffer
	big := strings.Repeat("0123456789", 1<<20)
	stats, err := WriteEntries(context.Background(), &b, seqOf(stringEntry("a", "1"), stringEntry("big", big), stringEntry("c", "")), TarOptions{})
	must(t, err)
	if stats.Files != 3 || stats.Bytes != int64(len(big))+1 {
		t.Errorf("%+v", stats)
	}
	tr := tar.NewReader(&b)
	for _, want := range []string{"1", big, ""} {
		_, err := tr.Next()
		must(t, err)
		got, err := io.ReadAll(tr)
		must(t, err)
		if string(got) != want {
			t.Errorf("content of %d bytes, want %d", len(got), len(want))
		}
	}
}

type failingWriter struct{ left int }

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errors.New("the disk is full")
	}
	return len(p), nil
}

func TestWriteEntriesErrors(t *testing.T) {
	many := func(yield func(*Entry, error) bool) {
		for i := range 100_000 {
			if !yield(stringEntry(fmt.Sprint(i), "body"), nil) {
				return
			}
		}
	}
	short := stringEntry("short", "123")
	short.Size = 4
	broken := stringEntry("broken", "123")
	broken.Open = func() (io.ReadCloser, error) { return nil, diag.Errorf(diag.Unavailable, "no such blob") }
	closed, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("the client left"))
	for name, c := range map[string]struct {
		ctx  context.Context
		w    io.Writer
		seq  iter.Seq2[*Entry, error]
		word string
	}{
		"writer":   {context.Background(), &failingWriter{1 << 20}, many, "the disk is full"},
		"short":    {context.Background(), io.Discard, seqOf(short), "became shorter"},
		"open":     {context.Background(), io.Discard, seqOf(broken), "no such blob"},
		"sequence": {context.Background(), io.Discard, func(yield func(*Entry, error) bool) { yield(nil, errors.New("bad list")) }, "bad list"},
		"canceled": {closed, io.Discard, many, "the client left"},
		"type":     {context.Background(), io.Discard, seqOf(&Entry{Path: "x", Type: 'Q'}), "unknown type"},
		"nul":      {context.Background(), io.Discard, seqOf(&Entry{Path: "x\x00y", Type: Fifo}), "cannot be stored"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := WriteEntries(c.ctx, c.w, c.seq, TarOptions{})
			if err == nil || !strings.Contains(err.Error(), c.word) {
				t.Errorf("got %v, want %q", err, c.word)
			}
		})
	}
}
