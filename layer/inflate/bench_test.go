package inflate

import (
	"bytes"
	stdgzip "compress/gzip"
	"io"
	"os"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// BenchmarkGunzip reads the gzip file that STRATA_BENCH_GZIP names, such as a layer; without it, it is skipped.
func BenchmarkGunzip(b *testing.B) {
	path := os.Getenv("STRATA_BENCH_GZIP")
	if path == "" {
		b.Skip("STRATA_BENCH_GZIP is not set")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	for _, x := range []struct {
		name string
		open func(io.Reader) (io.Reader, error)
	}{
		{"strata", func(r io.Reader) (io.Reader, error) { return NewReader(r) }},
		{"klauspost", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
		{"stdlib", func(r io.Reader) (io.Reader, error) { return stdgzip.NewReader(r) }},
	} {
		b.Run(x.name, func(b *testing.B) {
			for b.Loop() {
				z, err := x.open(bytes.NewReader(data))
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.Copy(io.Discard, z)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(n)
			}
		})
	}
}
