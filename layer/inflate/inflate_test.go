package inflate

import (
	"bytes"
	"compress/flate"
	stdgzip "compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	kflate "github.com/klauspost/compress/flate"
)

// samples are contents that lead to all kinds of blocks.
func samples() map[string][]byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 300<<10)
	for i := range random {
		random[i] = byte(rnd.Uint32())
	}
	var text strings.Builder
	words := strings.Fields("layer tar blob digest image the of a build and when from registry manifest 0123 \x00\x00 \xff\xfe sandbox")
	for text.Len() < 400<<10 {
		text.WriteString(words[rnd.IntN(len(words))])
		text.WriteByte(" \n"[rnd.IntN(2)])
	}
	skewed := make([]byte, 500<<10) // long codes: each value half as often as the one before
	for i := range skewed {
		for rnd.Uint32()&1 == 0 && skewed[i] < 255 {
			skewed[i]++
		}
	}
	periods := []byte{}
	for d := range 40 { // matches at every small distance
		for i := range 700 {
			periods = append(periods, random[i%(d+1)])
		}
	}
	far := append(append(append([]byte{}, random[:32<<10]...), random[:32<<10]...), random[100:5000]...) // distance 32768
	return map[string][]byte{
		"empty": nil, "one": {7}, "zeros": make([]byte, 300<<10), "random": random, "text": []byte(text.String()), "skewed": skewed,
		"periods": periods, "far": far, "mixed": slices.Concat(random[:70000], []byte(text.String()[:200000]), make([]byte, 5000), skewed[:90000], random[:70000]),
	}
}

// member puts a gzip header and trailer around a DEFLATE stream.
func member(deflated, plain []byte) []byte {
	out := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, deflated...)
	out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(plain))
	return binary.LittleEndian.AppendUint32(out, uint32(len(plain)))
}

// streams compresses data in many ways.
func streams(t testing.TB, data []byte) map[string][]byte {
	out := map[string][]byte{}
	for level := -2; level <= 9; level++ {
		var std, fast bytes.Buffer
		w, err := flate.NewWriter(&std, level)
		if err != nil {
			t.Fatal(err)
		}
		k, err := kflate.NewWriter(&fast, level)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(data); i += 50000 { // with flushes: empty stored blocks
			part := data[i:min(len(data), i+50000)]
			w.Write(part)
			k.Write(part)
			if level%2 == 0 {
				w.Flush()
				k.Flush()
			}
		}
		w.Close()
		k.Close()
		out[fmt.Sprint("std", level)], out[fmt.Sprint("klauspost", level)] = std.Bytes(), fast.Bytes()
	}
	return out
}

// readAll reads to the end in pieces of a size, or with Fill if size is 0.
func readAll(r io.Reader, size int) ([]byte, error) {
	z, err := NewReader(r)
	if err != nil {
		return nil, err
	}
	var out []byte
	if size == 0 {
		mem := make([]byte, Overhead+5000)
		for {
			data, err := z.Fill(mem)
			out = append(out, data...)
			clear(data) // the caller may do what it likes with it
			if err == io.EOF {
				return out, nil
			}
			if err != nil {
				return out, err
			}
		}
	}
	buf := make([]byte, size)
	for {
		n, err := z.Read(buf)
		out = append(out, buf[:n]...)
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
	}
}

func reference(in []byte) ([]byte, error) {
	z, err := stdgzip.NewReader(bytes.NewReader(in))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// same checks that both decoders say the same of a stream.
func same(t *testing.T, in []byte) {
	t.Helper()
	want, wantErr := reference(in)
	got, err := readAll(bytes.NewReader(in), 0)
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%x: %v, but compress/gzip says %v", head(in), err, wantErr)
	}
	// Of a stream that is cut off, compress/flate may leave out the last short codes.
	if !bytes.Equal(got, want) && !(wantErr == io.ErrUnexpectedEOF && bytes.HasPrefix(got, want)) {
		t.Fatalf("%x: %d bytes %x, but compress/gzip has %d bytes %x (%v)", head(in), len(got), head(got), len(want), head(want), err)
	}
	for _, pair := range [][2]error{{io.ErrUnexpectedEOF, io.ErrUnexpectedEOF}, {stdgzip.ErrHeader, ErrHeader}, {stdgzip.ErrChecksum, ErrChecksum}} {
		// What is both cut off and wrong may be called either.
		if _, wrong := errors.AsType[flate.CorruptInputError](wantErr); errors.Is(err, pair[1]) != errors.Is(wantErr, pair[0]) && !wrong && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%x: %v, but compress/gzip says %v", head(in), err, wantErr)
		}
	}
}

func head(b []byte) []byte { return b[:min(len(b), 200)] }

func TestRoundTrips(t *testing.T) {
	for what, data := range samples() {
		for how, deflated := range streams(t, data) {
			in := member(deflated, data)
			for _, size := range []int{0, 1000, 1 << 20} {
				got, err := readAll(bytes.NewReader(in), size)
				if err != nil || !bytes.Equal(got, data) {
					t.Fatalf("%s, %s, pieces of %d: %d bytes, %v", what, how, size, len(got), err)
				}
			}
		}
	}
}

// TestReaders reads from sources of all manners, and writes to one that fails.
func TestReaders(t *testing.T) {
	data := samples()["mixed"]
	in := member(streams(t, data)["std6"], data)
	for what, r := range map[string]io.Reader{
		"one byte": iotest.OneByteReader(bytes.NewReader(in)), "half": iotest.HalfReader(bytes.NewReader(in)), "data with the error": iotest.DataErrReader(bytes.NewReader(in)),
	} {
		if got, err := readAll(r, 4096); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v", what, len(got), err)
		}
	}
	broken := errors.New("broken")
	for _, n := range []int{0, 5, 12, 1000, len(in) - 9, len(in) - 3} {
		r := io.MultiReader(bytes.NewReader(in[:n]), iotest.ErrReader(broken))
		if got, err := readAll(r, 4096); err != broken || !bytes.HasPrefix(data, got) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
	z, err := NewReader(bytes.NewReader(in))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if n, err := io.CopyN(&out, z, 1000); n != 1000 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := z.WriteTo(&out); n != int64(len(data)-1000) || err != nil || !bytes.Equal(out.Bytes(), data) {
		t.Fatal(n, err)
	}
	if n, err := z.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatal(n, err)
	}
}

// TestCut cuts a stream at every byte.
func TestCut(t *testing.T) {
	data := samples()["mixed"][69000:76000]
	for _, how := range []string{"std-2", "std0", "std6", "klauspost1"} {
		in := member(streams(t, data)[how], data)
		for n := range in {
			same(t, in[:n])
		}
	}
}

// TestDamaged flips every bit of short streams, and some of long ones.
func TestDamaged(t *testing.T) {
	data := samples()["text"]
	for _, how := range []string{"std-2", "std0", "std6", "klauspost1"} {
		in := member(streams(t, data[:700])[how], data[:700])
		for i := range len(in) * 8 {
			in[i/8] ^= 1 << (i % 8)
			same(t, in)
			in[i/8] ^= 1 << (i % 8)
		}
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	in := member(streams(t, data[:100000])["std6"], data[:100000])
	for range 300 {
		i, bit := rnd.IntN(len(in)), byte(1)<<rnd.IntN(8)
		in[i] ^= bit
		same(t, in)
		in[i] ^= bit
	}
}

// bitWriter writes DEFLATE by hand.
type bitWriter struct {
	out []byte
	n   int
}

func (w *bitWriter) bits(v uint64, n int) *bitWriter {
	for i := range n {
		if w.n%8 == 0 {
			w.out = append(w.out, 0)
		}
		w.out[w.n/8] |= byte(v>>i&1) << (w.n % 8)
		w.n++
	}
	return w
}

// code writes a Huffman code, most significant bit first.
func (w *bitWriter) code(v uint64, n int) *bitWriter {
	for i := n - 1; i >= 0; i-- {
		w.bits(v>>i, 1)
	}
	return w
}

// dynamic begins a last block whose codes have these lengths. Each length has a code of four bits, its value.
func dynamic(lit, dist []int) *bitWriter {
	w := &bitWriter{}
	w.bits(1, 1).bits(2, 2).bits(uint64(len(lit)-257), 5).bits(uint64(len(dist)-1), 5).bits(numPre-4, 4)
	for _, s := range preOrder {
		if s < 16 {
			w.bits(4, 3)
		} else {
			w.bits(0, 3)
		}
	}
	for _, l := range append(append([]int{}, lit...), dist...) {
		w.code(uint64(l), 4)
	}
	return w
}

func lengths(n int, of map[int]int) []int {
	out := make([]int, n)
	for s, l := range of {
		out[s] = l
	}
	return out
}

// TestRules has what the rules say of codes and distances, each compared with compress/gzip.
func TestRules(t *testing.T) {
	twoLits := lengths(258, map[int]int{'a': 2, 'b': 2, 256: 2, 257: 2}) // codes 00, 01, 10, 11
	long := map[int]int{256: 15, 257: 15}                                // 1, 01, 001, …: subtables
	for i := 1; i <= 14; i++ {
		long['a'+i] = i
	}
	for what, x := range map[string]struct {
		w  *bitWriter
		ok bool
	}{
		"a match of the one distance":   {dynamic(twoLits, []int{1}).code(0, 2).code(3, 2).bits(0, 1).code(2, 2), true},
		"the other bit of a lone code":  {dynamic(twoLits, []int{1}).code(0, 2).code(3, 2).bits(1, 1).code(2, 2), false},
		"a lone code of two bits":       {dynamic(twoLits, []int{2}).code(0, 2).code(2, 2), false},
		"no distances, unused":          {dynamic(twoLits, []int{0}).code(0, 2).code(1, 2).code(2, 2), true},
		"no distances, used":            {dynamic(twoLits, []int{0}).code(0, 2).code(3, 2).code(2, 2), false},
		"distance beyond the start":     {dynamic(twoLits, []int{0, 1}).code(0, 2).code(3, 2).bits(0, 1).code(2, 2), false},
		"distance to the start":         {dynamic(twoLits, []int{0, 1}).code(0, 2).code(1, 2).code(3, 2).bits(0, 1).code(2, 2), true},
		"a match first":                 {dynamic(twoLits, []int{1}).code(3, 2).bits(0, 1).code(2, 2), false},
		"incomplete literals":           {dynamic(lengths(257, map[int]int{'a': 2, 256: 2}), []int{0}).code(0, 2).code(1, 2), false},
		"incomplete distances":          {dynamic(twoLits, []int{2, 2}).code(0, 2).code(2, 2), false},
		"too many literals":             {dynamic(lengths(257, map[int]int{'a': 1, 'b': 1, 256: 1}), []int{0}).code(0, 1), false},
		"too many distances":            {dynamic(twoLits, []int{1, 1, 1}).code(0, 2).code(2, 2), false},
		"only the end":                  {dynamic(lengths(257, map[int]int{256: 1}), []int{0}).code(0, 1), true},
		"only the end, and another bit": {dynamic(lengths(257, map[int]int{256: 1}), []int{0}).code(1, 1), false},
		"no end":                        {dynamic(lengths(257, map[int]int{'a': 1, 'b': 1}), []int{0}).code(0, 1).code(1, 1).bits(0, 64), false},
		"no literals at all":            {dynamic(lengths(257, nil), []int{0}).bits(0, 64), false},
		"codes of 15 bits":              {dynamic(lengths(258, long), []int{1}).code(0, 1).code(1<<15-1, 15).bits(0, 1).code(1<<14-2, 14).code(1<<15-2, 15), true},
		"286 literals":                  {dynamic(lengths(286, map[int]int{'a': 1, 285: 2, 256: 2}), []int{1}).code(0, 1).code(3, 2).bits(0, 1).code(2, 2), true},
		"287 literals":                  {dynamic(lengths(287, map[int]int{'a': 1, 256: 1}), []int{1}).code(1, 1), false},
		"30 distances":                  {dynamic(twoLits, lengths(30, map[int]int{0: 1, 29: 1})).code(0, 2).code(3, 2).bits(0, 1).code(2, 2), true},
		"31 distances":                  {dynamic(twoLits, lengths(31, map[int]int{0: 1, 29: 1})).code(0, 2).code(2, 2), false},
		"block type 3":                  {(&bitWriter{}).bits(7, 3).bits(0, 64), false},
		"stored, empty":                 {(&bitWriter{}).bits(1, 3).bits(0, 5).bits(0, 16).bits(0xffff, 16), true},
		"stored, bits in the gap":       {(&bitWriter{}).bits(1, 3).bits(31, 5).bits(1, 16).bits(0xfffe, 16).bits('x', 8), true},
		"stored, wrong complement":      {(&bitWriter{}).bits(1, 3).bits(0, 5).bits(1, 16).bits(0xffff, 16).bits('x', 8), false},
		"stored, cut":                   {(&bitWriter{}).bits(1, 3).bits(0, 5).bits(1, 16).bits(0xfffe, 16), false},
		"fixed":                         {(&bitWriter{}).bits(3, 3).code(0x30+'a', 8).code(2, 7).code(0, 5).code(0, 7), true},
		"fixed, 258 twice":              {(&bitWriter{}).bits(3, 3).code(0x30+'a', 8).code(0xc5, 8).code(0, 5).code(0xc4, 8).bits(31, 5).code(0, 5).code(0, 7), true},
		"fixed, length symbol 286":      {(&bitWriter{}).bits(3, 3).code(0x30+'a', 8).code(0xc6, 8).code(0, 5).code(0, 7), false},
		"fixed, length symbol 287":      {(&bitWriter{}).bits(3, 3).code(0x30+'a', 8).code(0xc7, 8).code(0, 5).code(0, 7), false},
		"fixed, distance symbol 30":     {(&bitWriter{}).bits(3, 3).code(0x30+'a', 8).code(2, 7).code(30, 5).code(0, 7), false},
		"fixed, distance symbol 31":     {(&bitWriter{}).bits(3, 3).code(0x30+'a', 8).code(2, 7).code(31, 5).code(0, 7), false},
		"fixed, empty":                  {(&bitWriter{}).bits(3, 3).code(0, 7), true},
		"empty blocks, then fixed":      {(&bitWriter{}).bits(2, 3).code(0, 7).bits(2, 3).code(0, 7).bits(3, 3).code(0x30+'a', 8).code(0, 7), true},
	} {
		plain, err := io.ReadAll(flate.NewReader(bytes.NewReader(x.w.out)))
		if (err == nil) != x.ok {
			t.Errorf("%s: the test is wrong: compress/flate says %v", what, err)
		}
		in := member(x.w.out, plain)
		same(t, in)
		// Once more, with so many bytes behind that the fast loop sees it: a wrong trailer is refused by both.
		same(t, append(append([]byte{}, in...), bytes.Repeat(in, 20)...))
		if _, err := readAll(bytes.NewReader(in), 100); (err == nil) != x.ok {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestRepeatRules(t *testing.T) {
	begin := func() *bitWriter { // codes of two bits: 1 is 00, 16 is 01, 17 is 10, 18 is 11
		w := (&bitWriter{}).bits(5, 3).bits(0, 5).bits(0, 5).bits(numPre-4, 4)
		for _, s := range preOrder {
			w.bits(map[bool]uint64{true: 2}[s == 1 || s >= 16], 3)
		}
		return w
	}
	for what, w := range map[string]*bitWriter{
		"repeat without a first": begin().code(1, 2).bits(0, 2).bits(0, 800),
		"zeros beyond the end":   begin().code(3, 2).bits(127, 7).code(3, 2).bits(127, 7).bits(0, 800),
		"one and the end":        begin().code(0, 2).code(3, 2).bits(127, 7).code(3, 2).bits(106, 7).code(0, 2).code(0, 2).bits(0, 1).bits(1, 1),
		"across into distances":  begin().code(3, 2).bits(127, 7).code(3, 2).bits(106, 7).code(0, 2).code(2, 2).bits(0, 3),
	} {
		plain, err := io.ReadAll(flate.NewReader(bytes.NewReader(w.out)))
		t.Log(what, plain, err)
		same(t, member(w.out, plain))
	}
}

func TestHeaders(t *testing.T) {
	body := (&bitWriter{}).bits(3, 3).code(0x30+'a', 8).code(0, 7).out
	trailer := member(nil, []byte("a"))[10:]
	build := func(flags byte, rest ...byte) []byte {
		return slices.Concat([]byte{0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 5, 6}, rest, body, trailer)
	}
	sum := func(b []byte, n int) []byte { // adds the header's checksum after n bytes
		return slices.Concat(b[:n], binary.LittleEndian.AppendUint16(nil, uint16(crc32.ChecksumIEEE(b[:n]))), b[n:])
	}
	one := member(body, []byte("a"))
	long := bytes.Repeat([]byte{'n'}, 511)
	for what, in := range map[string][]byte{
		"nothing": {}, "plain": build(0), "text": build(1), "reserved": build(0xe0), "other magic": append([]byte{0x1f, 0x8c}, build(0)[2:]...), "other method": append([]byte{0x1f, 0x8b, 7}, build(0)[3:]...),
		"name": build(8, 'n', 0), "name of 511": build(8, append(bytes.Clone(long), 0)...), "name of 512": build(8, append(bytes.Clone(long), 'n', 0)...), "endless name": build(8, bytes.Repeat(long, 10)...),
		"comment": build(16, 0xff, 0), "both": build(24, 'n', 0, 'c', 0), "extra": build(4, 2, 0, 'x', 'y'), "large extra": build(4, append([]byte{0xff, 0xff}, make([]byte, 0xffff)...)...), "cut extra": build(4, 255, 255, 'x', 'y'),
		"header sum": sum(build(2), 10), "wrong header sum": build(2, 1, 2), "all": sum(build(30, 1, 0, 'x', 'n', 0, 'c', 0), 17),
		"two members": append(bytes.Clone(one), one...), "zeros behind": append(bytes.Clone(one), make([]byte, 512)...), "few zeros behind": append(bytes.Clone(one), 0, 0, 0),
		"a letter behind": append(bytes.Clone(one), 'x'), "a header behind": append(bytes.Clone(one), one[:10]...), "wrong sum": append(bytes.Clone(one[:len(one)-8]), 0, 0, 0, 0, 1, 0, 0, 0),
		"wrong size": append(bytes.Clone(one[:len(one)-4]), 2, 0, 0, 0), "no trailer": one[:len(one)-8], "half a trailer": one[:len(one)-3],
		"a distance into the member before": append(bytes.Clone(one), member((&bitWriter{}).bits(3, 3).code(2, 7).code(0, 5).code(0, 7).out, []byte("aaaa"))...),
	} {
		t.Run(what, func(t *testing.T) {
			for n := range min(len(in), 60) {
				same(t, in[:n])
			}
			same(t, in)
		})
	}
}

func FuzzReader(f *testing.F) {
	data := samples()["mixed"][69000:72000]
	for _, deflated := range streams(f, data) {
		f.Add(member(deflated, data))
	}
	f.Add(member((&bitWriter{}).bits(3, 3).code(0x30+'a', 8).code(2, 7).code(0, 5).code(0, 7).out, []byte("aaaaa")))
	f.Fuzz(func(t *testing.T, in []byte) {
		same(t, in)
		// Without the frame, whose checksum hides most of what is behind it.
		plain, err := io.ReadAll(flate.NewReader(bytes.NewReader(in)))
		got, gotErr := readAll(bytes.NewReader(member(in, plain)), 0)
		if !bytes.Equal(plain, got) && !bytes.HasPrefix(got, plain) {
			t.Fatalf("%d bytes %x, but compress/flate has %d bytes %x", len(got), head(got), len(plain), head(plain))
		}
		if err != nil && gotErr == nil {
			t.Fatalf("accepted, but compress/flate says %v", err)
		}
	})
}
