package strictjson

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/strata-build/strata/diag"
)

var keys = NewKeys("digest size manifests kind", "annotations")

func TestShape(t *testing.T) {
	small := Limits{Bytes: 100, Depth: 4, Values: 6, Keys: keys}
	for _, in := range []string{
		`{}`, ` [ ] `, `1`, `"a"`, `null`, `[[[[]]]]`, `{"a":{"b":{"c":{}}}}`, `[1,2,3,4,5]`, `{"a":1,"b":2,"c":3,"d":4,"e":5}`,
		`{"annotations":{"Size":"1","size":2,"x":{"Digest":1}}}`, `["[[[[[[[[","\"[[[[[","\\"]`, `{"a":"size","b":"Size"}`, `{"x":[{"size":1}]}`,
		`[-1.5e+3,true,false]`,
	} {
		if err := small.Check([]byte(in)); err != nil {
			t.Errorf("%s: %v", in, err)
		}
	}
	for in, want := range map[string]diag.Kind{
		`[[[[[]]]]]`:                               diag.Exhausted,
		`{"a":[{"a":[{`:                            diag.Exhausted,
		`[1,2,3,4,5,6]`:                            diag.Exhausted,
		`[{},{},{},[],[],[]]`:                      diag.Exhausted,
		`["","","","","",""]`:                      diag.Exhausted,
		strings.Repeat(" ", 101):                   diag.Exhausted,
		`{"a":1,"a":2}`:                            diag.Invalid,
		`{"a":1,"\u0061":2}`:                       diag.Invalid,
		`{"Size":1}`:                               diag.Invalid,
		`{"\u0053ize":1}`:                          diag.Invalid,
		`{"x":[{"DIGEST":1}]}`:                     diag.Invalid,
		"{\"dige\u017ft\":1}":                      diag.Invalid, // the long s
		"{\"\u212aind\":1}":                        diag.Invalid, // the Kelvin sign
		`{"annotations":{},"Kind":1}`:              diag.Invalid,
		`{"annotations":{"a":1,"a":1}}`:            diag.Invalid,
		`{"annotations":{"a":1},"x":{"maNifests"`:  diag.Invalid,
		`{"annotations":"x","y":{"Manifests":[]}}`: diag.Invalid,
	} {
		err := small.Check([]byte(in))
		if err == nil || diag.KindOf(err) != want {
			t.Errorf("%s: %v, not %s", in, err, want)
		}
	}
}

// A decoder of encoding/json takes each of these for a field: the check must too.
func TestFoldsAsTheDecoderDoes(t *testing.T) {
	for r := rune(1); r < 0x3000; r++ {
		for _, known := range []string{"digest", "kind"} {
			for i := range known {
				key := known[:i] + string(r) + known[i+1:]
				var v struct{ Digest, Kind int }
				raw, err := json.Marshal(map[string]int{key: 7})
				if err != nil {
					t.Fatal(err)
				}
				if err := json.Unmarshal(raw, &v); err != nil {
					t.Fatal(err)
				}
				taken := v.Digest == 7 || v.Kind == 7
				if refused := (Limits{Keys: keys}).Check(raw) != nil; refused != (taken && key != known) {
					t.Errorf("%q: taken %v, refused %v", key, taken, refused)
				}
			}
		}
	}
}

func TestJSONOfMillionLevels(t *testing.T) {
	for _, unit := range []string{"[", `{"a":`, `[{"a":`} {
		data := []byte(strings.Repeat(unit, DefaultBytes/len(unit)))
		for _, k := range []*Keys{nil, keys} {
			if err := (Limits{Keys: k}).Check(data); diag.KindOf(err) != diag.Exhausted {
				t.Errorf("%s: %v", unit, err)
			}
		}
	}
}

// The cost of a document is a matter of its bytes, not of the shape: no shape allocates more than a few bytes for each.
func TestCostIsLinear(t *testing.T) {
	const size = 4 << 20
	wide := &bytes.Buffer{}
	wide.WriteByte('{')
	for i := 0; wide.Len() < size; i++ {
		fmt.Fprintf(wide, `"%d":0,`, i)
	}
	wide.WriteString(`"":0}`)
	for name, data := range map[string][]byte{
		"empty objects": []byte("[" + strings.Repeat("{},", size/3) + "0]"),
		"small objects": []byte("[" + strings.Repeat(`{"a":0},`, size/8) + "0]"),
		"one object":    wide.Bytes(),
		"escaped keys":  []byte(`[` + strings.Repeat(`{"\u0061":0},`, size/13) + "0]"),
		"one string":    []byte(`"` + strings.Repeat(`\"`, size/2) + `"`),
	} {
		r := testing.Benchmark(func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				if err := (Limits{Values: size, Keys: keys}).Check(data); err != nil {
					b.Fatal(err)
				}
				if b.N > 2 {
					break // once is enough to count
				}
			}
		})
		if per := r.AllocedBytesPerOp() / int64(len(data)); per > 32 {
			t.Errorf("%s: %d bytes are allocated for each of the document", name, per)
		}
	}
}

func TestUnmarshal(t *testing.T) {
	var v struct{ Size int }
	if err := (Limits{Keys: keys}).Unmarshal([]byte(`{"size":3}`), &v); err != nil || v.Size != 3 {
		t.Errorf("%+v, %v", v, err)
	}
	for _, in := range []string{``, `{`, `{} {}`, `{"size":"x"}`, `{"a" 1}`, `}`, `{,}`, `"`, "{\"\xff\":1"} {
		if err := Unmarshal([]byte(in), &v); diag.KindOf(err) != diag.Invalid {
			t.Errorf("%s: %v", in, err)
		}
	}
	endless := &counter{}
	if err := (Limits{Bytes: 1000}).Read(endless, &v); diag.KindOf(err) != diag.Exhausted || endless.n > 4096 {
		t.Errorf("%v after %d bytes", err, endless.n)
	}
	if err := (Limits{}).Read(io.MultiReader(strings.NewReader(`{"si`), strings.NewReader(`ze":4}`)), &v); err != nil || v.Size != 4 {
		t.Errorf("%+v, %v", v, err)
	}
}

type counter struct{ n int }

func (c *counter) Read(p []byte) (int, error) {
	c.n += len(p)
	return copy(p, bytes.Repeat([]byte(" "), len(p))), nil
}

func FuzzCheck(f *testing.F) {
	for _, s := range []string{`{"a":[1,"x",null,{"b":{}}]}`, `{"digest":1,"Digest":2}`, `[[[[`, `"\"`, `{"annotations":{"Size":1}}`, "{\"dige\u017ft\":1}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		l := Limits{Depth: 8, Values: 50, Keys: keys}
		err := l.Check(data)
		if !json.Valid(data) {
			return
		}
		depth, values, double := shape(t, data)
		if want := depth > l.Depth || values > l.Values; want && diag.KindOf(err) != diag.Exhausted && !double || !want && diag.KindOf(err) == diag.Exhausted {
			t.Fatalf("depth %d, values %d: %v", depth, values, err)
		}
		if double && err == nil {
			t.Fatal("a key stands twice")
		}
	})
}

// shape counts with the tokens of encoding/json.
func shape(t *testing.T, data []byte) (depth, values int, double bool) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	type open struct {
		object, key bool
		seen        map[string]bool
	}
	var stack []open
	for {
		tok, err := d.Token()
		if err == io.EOF {
			return depth, values, double
		}
		if err != nil {
			t.Fatal(err)
		}
		n := len(stack)
		if s, ok := tok.(string); ok && n > 0 && stack[n-1].key {
			double = double || stack[n-1].seen[s]
			stack[n-1].seen[s], stack[n-1].key = true, false
			continue
		}
		switch tok {
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:n-1]
			continue
		}
		values++
		if n > 0 {
			stack[n-1].key = stack[n-1].object
		}
		if del, ok := tok.(json.Delim); ok {
			stack = append(stack, open{object: del == '{', key: del == '{', seen: map[string]bool{}})
			depth = max(depth, len(stack))
		}
	}
}
