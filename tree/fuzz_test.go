package tree

import (
	"strings"
	"testing"

	"github.com/strata-build/strata/diag"
)

// FuzzPatterns compares names with the patterns of an ignore file.
func FuzzPatterns(f *testing.F) {
	f.Add("*.go\n!a/b.go\n**/x", "a/b.go")
	f.Add("[a-\n\\\n**/**/**/**/*a*a*a*a*b", strings.Repeat("a/", 30)+"aaaaaaaaaaaaaaa")
	f.Add("!", "")
	f.Fuzz(func(t *testing.T, list, name string) {
		if len(list)+len(name) > 4096 {
			return
		}
		flt, err := newFilter(nil, strings.Split(list, "\n"))
		if err != nil {
			if k := diag.KindOf(err); k != diag.Invalid && k != diag.Exhausted {
				t.Fatalf("%s: %v", k, err)
			}
			return
		}
		if flt != nil {
			_, _ = flt.visible(name)
		}
	})
}

// FuzzIndexFile reads an index that was damaged on the disk.
func FuzzIndexFile(f *testing.F) {
	f.Add("")
	f.Add("\x01\x01\x01a\x00\x01\x01b")
	f.Add("\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x01")
	f.Fuzz(func(_ *testing.T, data string) { _, _ = decodeIndex(data) })
}

// An ignore file of megabytes: each of the context's names would be compared with each of its patterns.
func TestIgnoreFileOfManyPatterns(t *testing.T) {
	for name, list := range map[string][]string{
		"many": strings.Split(strings.Repeat("a\n", 1_000_000), "\n"),
		"long": {strings.Repeat("*a", 1_000_000)},
	} {
		if _, err := newPatterns(list); diag.KindOf(err) != diag.Exhausted {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := newPatterns(strings.Split(strings.Repeat("dir/*.o\n", 1000), "\n")); err != nil {
		t.Error(err)
	}
}
