package layer

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"

	"github.com/strata-build/strata/diag"
)

// FuzzApply unpacks any bytes: nothing outside may change, every refusal has a kind that blames the input, and what was
// unpacked can be packed, or is refused for a name that no layer can hold.
func FuzzApply(f *testing.F) {
	for _, at := range attacks()[:40] {
		f.Add(at.make(&maker{}).end(), uint8(0))
	}
	for i, o := range oddities()[:40] {
		f.Add(o.make(&maker{}).end(), uint8(i%3))
	}
	f.Fuzz(func(t *testing.T, data []byte, form uint8) {
		if len(data) > 64<<10 {
			return
		}
		c := newCage(t)
		opt := ApplyOptions{Form: Form(form % 3), MaxEntries: 1000, MaxBytes: 1 << 20, Unprivileged: os.Geteuid() != 0}
		a, err := Apply(context.Background(), bytes.NewReader(data), c.dir, opt)
		c.check(t)
		if err != nil {
			if k := diag.KindOf(err); k == diag.Internal {
				t.Fatalf("%s: %v", k, err)
			}
			return
		}
		if opt.Form == Overlay {
			if err := Finish(context.Background(), c.dir, a, nil); err != nil && diag.KindOf(err) != diag.Invalid {
				t.Fatal(err)
			}
			c.check(t)
		}
		if _, err := WriteTar(context.Background(), io.Discard, c.dir, TarOptions{}); err != nil && diag.KindOf(err) != diag.Invalid {
			t.Fatal(err)
		}
	})
}

// FuzzDecompress reads any bytes under tight limits.
func FuzzDecompress(f *testing.F) {
	for _, typ := range []Type{Uncompressed, Gzip, Zstd} {
		var b bytes.Buffer
		w, err := NewCompressor(&b, Compression{Type: typ})
		if err != nil {
			f.Fatal(err)
		}
		w.Write(sample(2000))
		w.Close()
		f.Add(b.Bytes())
	}
	f.Add([]byte("BZh91AY&SY\x86\xdd\xac\n"))
	f.Add([]byte("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4F\x02\x00!\x01\x16\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, _, err := DecompressLimited(bytes.NewReader(data), Limits{MaxBytes: 4 << 20})
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.Close()
		}
		if k := diag.KindOf(err); err != nil && k != diag.Invalid && k != diag.Exhausted {
			t.Fatalf("%s: %v", k, err)
		}
	})
}

// FuzzIndex lists any bytes as a tar and stacks them twice; what it accepts can be written and listed again.
func FuzzIndex(f *testing.F) {
	f.Add((&maker{}).dir("d").file("d/f", "x").hard("h", "d/f").link("l", "d").file("l/.wh.x", "").file("d/.wh..wh..opq", "").end())
	f.Add((&maker{}).link("a", "b").link("b", "../a").file(".wh.a", "").xattr("x", "user.k", "v").end())
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := Index(t.Context(), bytes.NewReader(data), bytes.NewReader(data))
		if err != nil {
			return
		}
		for _, e := range entries {
			if e.Size > 1<<20 {
				return
			}
		}
		for _, fs := range []*FS{NewFS(), NewUpper(nil)} {
			if fs.Add(entries) != nil {
				continue
			}
			if fs.Add(entries) != nil { // a layer may be there twice, but some are impossible the second time
				continue
			}
			var b bytes.Buffer
			if _, err := WriteEntries(t.Context(), &b, fs.Entries(), TarOptions{AllXattrs: true}); err != nil {
				continue // names that a tar cannot hold, content that is cut off
			}
			if _, err := Index(t.Context(), bytes.NewReader(b.Bytes()), bytes.NewReader(b.Bytes())); err != nil {
				t.Fatal(err)
			}
		}
	})
}
