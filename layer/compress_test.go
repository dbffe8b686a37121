package layer

import (
	"bytes"
	stdgzip "compress/gzip"
	"encoding/base64"
	"errors"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/ulikunitz/xz"

	"github.com/strata-build/strata/diag"
)

// sample is text that compresses, with some noise in it.
func sample(n int) []byte {
	r := rand.New(rand.NewPCG(3, 4))
	words := strings.Fields("the layer of an image is a tar archive whose digest is its name 0x1f8b")
	var b bytes.Buffer
	for b.Len() < n {
		b.WriteString(words[r.IntN(len(words))])
		b.WriteByte(byte(r.Uint32()))
	}
	return b.Bytes()[:n]
}

func compress(t *testing.T, c Compression, data []byte, step int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewCompressor(&b, c)
	must(t, err)
	for rest := data; len(rest) > 0; rest = rest[min(step, len(rest)):] {
		_, err := w.Write(rest[:min(step, len(rest))])
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func TestCompressors(t *testing.T) {
	data := sample(2<<20 + 1000)
	for _, c := range []Compression{{Type: Gzip}, {Type: Gzip, Level: Stored}, {Type: Zstd, Level: Stored}, {Type: Gzip, Level: 1}, {Type: Gzip, Level: 9}, {Type: Zstd}, {Type: Zstd, Level: 1}, {Type: Zstd, Level: 12}, {Type: Uncompressed}} {
		t.Run(c.Type.String(), func(t *testing.T) {
			a := compress(t, c, data, 1<<20)
			old := runtime.GOMAXPROCS(1)
			b := compress(t, c, data, 777)
			runtime.GOMAXPROCS(old)
			if !bytes.Equal(a, b) {
				t.Error("the bytes depend on the number of processors or on the size of the writes")
			}
			r, typ, err := Decompress(bytes.NewReader(a))
			must(t, err)
			got, err := io.ReadAll(r)
			must(t, err)
			must(t, r.Close())
			if typ != c.Type || !bytes.Equal(got, data) {
				t.Errorf("%s: got %d bytes of %s", c.Type, len(got), typ)
			}
			for _, empty := range [][]byte{compress(t, c, nil, 1)} {
				r, typ, err := Decompress(bytes.NewReader(empty))
				must(t, err)
				if got, err := io.ReadAll(r); len(got) != 0 || err != nil || typ != c.Type {
					t.Errorf("empty stream: %d bytes of %s, %v", len(got), typ, err)
				}
			}
		})
	}
}

func TestGzipHeader(t *testing.T) {
	b := compress(t, Compression{Type: Gzip}, []byte("x"), 1)
	if want := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}; !bytes.Equal(b[:10], want) {
		t.Errorf("header %x, want %x", b[:10], want)
	}
	z, err := stdgzip.NewReader(bytes.NewReader(compress(t, Compression{Type: Gzip}, sample(3<<20), 1<<16)))
	must(t, err)
	if n, err := io.Copy(io.Discard, z); n != 3<<20 || err != nil {
		t.Errorf("the standard library reads %d bytes: %v", n, err)
	}
}

// Small streams are those of the standard library, at any level, so that small layers have the digests of other builders.
func TestSmallGzip(t *testing.T) {
	for ours, theirs := range map[int]int{0: stdgzip.DefaultCompression, Stored: stdgzip.NoCompression, 1: 1, 6: 6, 9: 9} {
		for _, n := range []int{0, 1, 2048, gzipSmall} {
			data := sample(n)
			var want bytes.Buffer
			w, err := stdgzip.NewWriterLevel(&want, theirs)
			must(t, err)
			_, err = w.Write(data)
			must(t, err)
			must(t, w.Close())
			if got := compress(t, Compression{Gzip, ours}, data, 1000); !bytes.Equal(got, want.Bytes()) {
				t.Errorf("level %d, %d bytes: not as the standard library has it", ours, n)
			}
		}
	}
}

// TestGzipLevels: without a level, blocks in which the higher one finds little are compressed with the lower one; blocks
// refer back to the end of the one before.
func TestGzipLevels(t *testing.T) {
	size := func(level int, data []byte) int { return len(compress(t, Compression{Gzip, level}, data, 1<<20)) }
	random := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{1}).Read(random)
	words := sample(4 << 20)
	if a, low, high := size(0, words), size(gzipLow, words), size(gzipHigh, words); a != high || low <= high {
		t.Errorf("text: %d bytes, but %d with level %d and %d with level %d", a, high, gzipHigh, low, gzipLow)
	}
	if a, low := size(0, random), size(gzipLow, random); a != low {
		t.Errorf("random bytes: %d bytes, but %d with level %d", a, low, gzipLow)
	}
	twice := slices.Concat(random[:gzipBlock], random[gzipBlock-20000:gzipBlock])
	for _, level := range []int{1, 4, 6, 9} {
		if n := size(level, twice); n > gzipBlock+5000 {
			t.Errorf("level %d does not see what the block before ended with: %d bytes", level, n)
		}
	}
	for _, n := range []int{0, 1, gzipBlock - 1, gzipBlock, gzipBlock + 1, 2 * gzipBlock} {
		z, err := stdgzip.NewReader(bytes.NewReader(compress(t, Compression{Type: Gzip}, words[:n], 1<<20)))
		must(t, err)
		if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, words[:n]) {
			t.Errorf("%d bytes became %d: %v", n, len(got), err)
		}
	}
}

type brokenWriter struct{ left int }

func (w *brokenWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

func TestGzipBrokenWriter(t *testing.T) {
	for _, left := range []int{0, 20, 700 << 10} {
		z, err := NewCompressor(&brokenWriter{left}, Compression{Type: Gzip})
		must(t, err)
		var last error
		for range 200 {
			if _, err := z.Write(sample(100 << 10)); err != nil {
				last = err
				break
			}
		}
		if err := z.Close(); err != io.ErrClosedPipe || last != nil && last != err {
			t.Errorf("after %d bytes: %v, %v", left, last, err)
		}
		if _, err := z.Write([]byte("x")); err == nil {
			t.Error("written after the end")
		}
	}
}

// The digests of compressed blobs may only change with a reason: caches and registries know them.
func TestCompressedGolden(t *testing.T) {
	data := sample(3 << 20)
	for c, want := range map[Compression]digest.Digest{
		{Type: Gzip}: "sha256:14def7604ce7dbc67ebd2b395d81bd873d63d23f85ee8bd9a02a294f65bdbfc7",
		{Type: Zstd}: "sha256:848716dcd92e0fb6245ac91ec54b37fbf0ad8645b7753c48673441e0e2f3a279",
	} {
		if got := digest.FromBytes(compress(t, c, data, 1<<16)); got != want {
			t.Errorf("%s: got %s, want %s", c.Type, got, want)
		}
	}
}

func TestBadCompression(t *testing.T) {
	for _, c := range []struct {
		c    Compression
		kind diag.Kind
	}{{Compression{Type: EStargz, Level: 10}, diag.Invalid}, {Compression{Type: Bzip2}, diag.Unsupported}, {Compression{Type: Xz}, diag.Unsupported}, {Compression{Type: Type(99)}, diag.Unsupported}, {Compression{Gzip, 10}, diag.Invalid}, {Compression{Gzip, -2}, diag.Invalid}, {Compression{Zstd, 23}, diag.Invalid}} {
		_, err := NewCompressor(io.Discard, c.c)
		wantKind(t, err, c.kind, "")
	}
	_, err := ParseType("gzp")
	wantKind(t, err, diag.Invalid, "gzp")
	for _, typ := range []Type{Uncompressed, Gzip, Zstd, EStargz} {
		if got, err := ParseType(typ.String()); got != typ || err != nil {
			t.Errorf("%s: %v %v", typ, got, err)
		}
	}
}

func TestMediaTypes(t *testing.T) {
	for _, typ := range []Type{Uncompressed, Gzip, Zstd} {
		for _, docker := range []bool{false, true} {
			m, err := MediaType(typ, docker)
			must(t, err)
			if got, ok := TypeOf(m); got != typ || !ok || strings.Contains(m, "docker") != docker {
				t.Errorf("%s: %s", typ, m)
			}
		}
	}
	if _, ok := TypeOf("application/vnd.oci.image.config.v1+json"); ok {
		t.Error("a configuration is no layer")
	}
	if _, err := MediaType(Xz, false); diag.KindOf(err) != diag.Unsupported {
		t.Errorf("xz: %v", err)
	}
}

// bzip2 of "hello, layer\n".
const bz = "QlpoOTFBWSZTWYbdrAoAAANRgAAQQAQiRJAgIAAxADAgA9IUAt5Y0LxdyRThQkIbdrAo"

func streams(t *testing.T) map[Type][]byte {
	t.Helper()
	data := sample(300_000)
	out := map[Type][]byte{Gzip: compress(t, Compression{Type: Gzip}, data, 1<<16), Zstd: compress(t, Compression{Type: Zstd}, data, 1<<16)}
	var b bytes.Buffer
	w, err := xz.NewWriter(&b)
	must(t, err)
	_, err = w.Write(data)
	must(t, err)
	must(t, w.Close())
	out[Xz] = b.Bytes()
	return out
}

func TestTruncatedAndDamagedStreams(t *testing.T) {
	for typ, data := range streams(t) {
		for _, cut := range []int{1, 4, 8, 100, len(data) / 2} {
			r, got, err := Decompress(bytes.NewReader(data[:len(data)-cut]))
			if err == nil {
				_, err = io.Copy(io.Discard, r)
			}
			if got != typ || diag.KindOf(err) != diag.Invalid {
				t.Errorf("%s without its last %d bytes: %s: %v", typ, cut, diag.KindOf(err), err)
			}
		}
		if typ == Zstd {
			continue // its checksum is checked by the same decoder; a flipped bit may also be found as a bad block
		}
		bad := bytes.Clone(data)
		bad[len(bad)/2] ^= 0x10
		r, _, err := Decompress(bytes.NewReader(bad))
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if diag.KindOf(err) != diag.Invalid {
			t.Errorf("%s with a flipped bit: %v", typ, err)
		}
	}
}

func TestDecompressOddities(t *testing.T) {
	gz := compress(t, Compression{Type: Gzip}, []byte("one,"), 1)
	zs := compress(t, Compression{Type: Zstd}, []byte("one,"), 1)
	bzip, err := base64.StdEncoding.DecodeString(bz)
	must(t, err)
	for name, c := range map[string]struct {
		in   []byte
		typ  Type
		want string
	}{
		"two gzip members":      {append(bytes.Clone(gz), gz...), Gzip, "one,one,"},
		"two zstd frames":       {append(bytes.Clone(zs), zs...), Zstd, "one,one,"},
		"skippable frame first": {append([]byte{0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3}, zs...), Zstd, "one,"},
		"bzip2":                 {bzip, Bzip2, "hello, layer\n"},
		"nothing":               {nil, Uncompressed, ""},
		"one byte":              {[]byte{0x1f}, Uncompressed, "\x1f"},
		"text":                  {[]byte("BZh is not bzip2"), Uncompressed, "BZh is not bzip2"},
	} {
		t.Run(name, func(t *testing.T) {
			r, typ, err := Decompress(iotest.OneByteReader(bytes.NewReader(c.in)))
			must(t, err)
			got, err := io.ReadAll(r)
			must(t, err)
			if typ != c.typ || string(got) != c.want {
				t.Errorf("got %q of %s", got, typ)
			}
		})
	}
}

func TestSourceErrorsComeBack(t *testing.T) {
	broken := errors.New("connection reset")
	for typ, data := range streams(t) {
		r, _, err := Decompress(io.MultiReader(bytes.NewReader(data[:len(data)/2]), iotest.ErrReader(broken)))
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if !errors.Is(err, broken) {
			t.Errorf("%s: got %v", typ, err)
		}
	}
	if _, _, err := Decompress(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("at once: %v", err)
	}
}

func TestBombs(t *testing.T) {
	zeros := make([]byte, 8<<20)
	for _, typ := range []Type{Gzip, Zstd} {
		bomb := compress(t, Compression{Type: typ}, zeros, 1<<20)
		for name, c := range map[string]struct {
			lim  Limits
			word string
		}{
			"ratio": {Limits{RatioAbove: 1 << 20}, "grows more than 200-fold"},
			"bytes": {Limits{MaxBytes: 1 << 20}, "holds more than 1048576 bytes"},
		} {
			r, _, err := DecompressLimited(bytes.NewReader(bomb), c.lim)
			must(t, err)
			n, err := io.Copy(io.Discard, r)
			wantKind(t, err, diag.Exhausted, c.word)
			if n > 4<<20 {
				t.Errorf("%s %s: %d bytes came out", typ, name, n)
			}
		}
		r, _, err := Decompress(bytes.NewReader(bomb))
		must(t, err)
		if n, err := io.Copy(io.Discard, r); n != 8<<20 || err != nil {
			t.Errorf("%s: small streams may have any ratio: %d %v", typ, n, err)
		}
	}
}

func TestLargeWindows(t *testing.T) {
	// A frame header with a window of 2 GiB, and an empty last block.
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 1, 0, 0}
	r, _, err := Decompress(bytes.NewReader(frame))
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	wantKind(t, err, diag.Exhausted, "window")
	block := streams(t)[Xz]
	i := bytes.Index(block[12:], []byte{0x21, 1}) + 12 + 2
	block[i] = 36 // 1 GiB
	_, _, err = Decompress(bytes.NewReader(block))
	wantKind(t, err, diag.Exhausted, "dictionary of 1024 MiB")
	var z bytes.Buffer
	zw, err := zstd.NewWriter(&z, zstd.WithWindowSize(64<<20))
	must(t, err)
	_, err = zw.Write(sample(1 << 20))
	must(t, err)
	must(t, zw.Close())
	r, _, err = Decompress(&z)
	must(t, err)
	if n, err := io.Copy(io.Discard, r); n != 1<<20 || err != nil {
		t.Errorf("window of 64 MiB: %d %v", n, err)
	}
}

func TestReadByOtherTools(t *testing.T) {
	data := sample(3 << 20)
	for typ, tool := range map[Type]string{Gzip: "gzip", Zstd: "zstd"} {
		if _, err := exec.LookPath(tool); err != nil {
			continue
		}
		cmd := exec.Command(tool, "-dc")
		cmd.Stdin = bytes.NewReader(compress(t, Compression{Type: typ}, data, 1<<16))
		if out, err := cmd.Output(); err != nil || !bytes.Equal(out, data) {
			t.Errorf("%s gives %d bytes: %v", tool, len(out), err)
		}
	}
}

func TestDigestReader(t *testing.T) {
	data := sample(3<<20 + 17)
	want := digest.FromBytes(data)
	t.Run("read", func(t *testing.T) {
		d := NewDigestReader(iotest.HalfReader(bytes.NewReader(data)))
		got, err := io.ReadAll(iotest.OneByteReader(struct{ io.Reader }{d}))
		must(t, err)
		if !bytes.Equal(got, data) || d.Digest() != want || d.Size() != int64(len(data)) {
			t.Errorf("got %d bytes, %s", len(got), d.Digest())
		}
	})
	t.Run("the rest is read", func(t *testing.T) {
		d := NewDigestReader(bytes.NewReader(data))
		_, err := io.ReadFull(d, make([]byte, 1000))
		must(t, err)
		if d.Digest() != want {
			t.Error("wrong digest")
		}
	})
	t.Run("error", func(t *testing.T) {
		broken := errors.New("broken")
		d := NewDigestReader(io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken)))
		n, err := io.Copy(io.Discard, d)
		if n != int64(len(data)) || err != broken {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
	t.Run("closed early", func(t *testing.T) {
		pr, pw := io.Pipe()
		d := NewDigestReader(pr)
		go pw.Write(data)
		_, err := io.ReadFull(d, make([]byte, 10))
		must(t, err)
		must(t, d.Close())
		must(t, pr.Close())
		must(t, NewDigestReader(pr).Close())
	})
}
