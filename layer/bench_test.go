package layer

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"
)

// The benchmarks read the tree that STRATA_BENCH_TREE names, such as a root file system; without it they are skipped.
func benchTar(b *testing.B) []byte {
	b.Helper()
	dir := os.Getenv("STRATA_BENCH_TREE")
	if dir == "" {
		b.Skip("STRATA_BENCH_TREE is not set")
	}
	var buf bytes.Buffer
	if _, err := WriteTar(context.Background(), &buf, dir, TarOptions{}); err != nil {
		b.Fatal(err)
	}
	return buf.Bytes()
}

func BenchmarkDiffID(b *testing.B) {
	b.SetBytes(int64(len(benchTar(b))))
	for b.Loop() {
		if _, _, err := DiffID(context.Background(), os.Getenv("STRATA_BENCH_TREE"), TarOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	data := benchTar(b)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		dir := b.TempDir()
		if _, err := Apply(context.Background(), bytes.NewReader(data), dir, ApplyOptions{Unprivileged: os.Geteuid() != 0}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		os.RemoveAll(dir)
		b.StartTimer()
	}
}

func BenchmarkCompress(b *testing.B) {
	data := benchTar(b)
	for _, c := range []Compression{{Gzip, 1}, {Gzip, 3}, {Gzip, 5}, {Gzip, 6}, {Zstd, 1}, {Zstd, 3}} {
		b.Run(c.Type.String()+"-"+string(rune('0'+c.Level)), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			var out bytes.Buffer
			for b.Loop() {
				out.Reset()
				w, err := NewCompressor(&out, c)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := w.Write(data); err != nil {
					b.Fatal(err)
				}
				if err := w.Close(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(data))/float64(out.Len()), "ratio")
		})
	}
}

func BenchmarkDecompress(b *testing.B) {
	data := benchTar(b)
	for _, typ := range []Type{Gzip, Zstd} {
		var in bytes.Buffer
		w, err := NewCompressor(&in, Compression{Type: typ})
		if err != nil {
			b.Fatal(err)
		}
		w.Write(data)
		w.Close()
		for _, hash := range []bool{false, true} {
			b.Run(typ.String()+map[bool]string{true: "+digest"}[hash], func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				for b.Loop() {
					r, _, err := Decompress(bytes.NewReader(in.Bytes()))
					if err != nil {
						b.Fatal(err)
					}
					var src io.Reader = r
					if hash {
						src = NewDigestReader(r)
					}
					if n, err := io.Copy(io.Discard, src); n != int64(len(data)) || err != nil {
						b.Fatal(n, err)
					}
				}
			})
		}
	}
}
