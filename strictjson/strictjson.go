// Package strictjson decodes JSON that somebody else wrote: from registries, images, archives, caches, clients and steps.
//
// encoding/json follows any document: a few bytes become a large Go value, keys may come twice, and a key in other letters
// is taken for the field. This package looks at the shape of a document first. It refuses documents with too many bytes,
// values or levels, and, where asked, keys that two readers could understand in two ways. The check takes one pass over the
// bytes, does not recurse, and allocates only for the keys of the objects that are open.
package strictjson

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/strata-build/strata/diag"
)

// Limits of a document where Limits are zero. Image manifests and configurations have about eight levels.
const (
	DefaultBytes  = 16 << 20
	DefaultDepth  = 64
	DefaultValues = 200_000
)

// Limits bound a document. Zero fields are the defaults.
type Limits struct {
	Bytes  int
	Depth  int // objects and arrays around a value
	Values int // objects, arrays and scalars; keys are not counted
	// Keys refuses ambiguous keys: one that comes twice in an object, and a known one in other letters. Nil = not checked.
	Keys *Keys
}

// Keys are the keys that a decoder looks for.
type Keys struct {
	folded map[string]string // folded -> as it must be written
	free   map[string]bool
}

// NewKeys returns the keys of both lists, which are separated by spaces. Known keys must be written as they are here. Below
// a free key the keys are data: they may be written in any way, but not twice.
func NewKeys(known, free string) *Keys {
	k := &Keys{folded: map[string]string{}, free: map[string]bool{}}
	for w := range strings.FieldsSeq(known) {
		k.folded[fold(w)] = w
	}
	for w := range strings.FieldsSeq(free) {
		k.free[w] = true
	}
	return k
}

// Unmarshal decodes a document that is within the default limits into v, as json.Unmarshal does.
func Unmarshal(data []byte, v any) error { return Limits{}.Unmarshal(data, v) }

// Unmarshal decodes a document that is within limits into v, as json.Unmarshal does. Errors are diag.Exhausted for a document
// that is too large, and diag.Invalid otherwise.
func (l Limits) Unmarshal(data []byte, v any) error {
	if err := l.Check(data); err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return diag.Errorf(diag.Invalid, "invalid JSON: %w", err)
	}
	return nil
}

// Read reads and decodes one document. It reads at most one byte more than the limit.
func (l Limits) Read(r io.Reader, v any) error {
	data, err := io.ReadAll(io.LimitReader(r, int64(or(l.Bytes, DefaultBytes))+1))
	if err != nil {
		return err
	}
	return l.Unmarshal(data, v)
}

// Check reports whether a document is within limits. It accepts some text that is not JSON: a decoder finds that.
func (l Limits) Check(data []byte) error {
	if most := or(l.Bytes, DefaultBytes); len(data) > most {
		return diag.Errorf(diag.Exhausted, "the JSON document has more than %d bytes", most)
	}
	s := &scanner{data: data, keys: l.Keys, depth: or(l.Depth, DefaultDepth), values: or(l.Values, DefaultValues)}
	return s.run()
}

func or(n, standard int) int {
	if n > 0 {
		return n
	}
	return standard
}

// scanner goes over the bytes of a document once.
type scanner struct {
	data   []byte
	keys   *Keys
	depth  int // that is allowed
	values int // that are allowed
	seen   int // values
	open   []level
	plain  bool // a scalar other than a string has begun
}

// level is an object or an array that is open.
type level struct {
	object bool
	key    bool // the next string of the object is a key
	free   bool // keys are data here
	below  bool // keys are data below the last key
	few    []string
	many   map[string]struct{} // instead of few
}

func (s *scanner) run() error {
	for i := 0; i < len(s.data); i++ {
		var err error
		switch c := s.data[i]; c {
		case '{', '[':
			err = s.push(c == '{', i)
		case '}', ']':
			s.plain = false
			if n := len(s.open); n > 0 {
				s.open = s.open[:n-1]
			}
		case '"':
			s.plain = false
			end := stringEnd(s.data, i+1)
			err = s.text(s.data[i:end], i)
			i = end - 1
		case ',':
			s.plain = false
			if n := len(s.open); n > 0 {
				s.open[n-1].key = s.open[n-1].object
			}
		case ':', ' ', '\t', '\r', '\n':
			s.plain = false
		default:
			if !s.plain {
				s.plain = true
				err = s.value(i)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// stringEnd returns the index after the closing quote of a string whose content begins at i.
func stringEnd(data []byte, i int) int {
	for i < len(data) {
		n := bytes.IndexAny(data[i:min(len(data), i+64)], `"\`)
		switch {
		case n < 0:
			i = min(len(data), i+64)
		case data[i+n] == '"':
			return i + n + 1
		default:
			i += n + 2
		}
	}
	return len(data)
}

func (s *scanner) value(at int) error {
	if s.seen++; s.seen > s.values {
		return diag.Errorf(diag.Exhausted, "the JSON document has more than %d values, at byte %d", s.values, at)
	}
	return nil
}

func (s *scanner) push(object bool, at int) error {
	s.plain = false
	if len(s.open) == s.depth {
		return diag.Errorf(diag.Exhausted, "the JSON document has more than %d levels, at byte %d", s.depth, at)
	}
	free := false
	if n := len(s.open); n > 0 {
		free = s.open[n-1].free || s.open[n-1].below
	}
	s.open = append(s.open, level{object: object, key: object, free: free})
	return s.value(at)
}

// text takes a string, with its quotes: a key or a value.
func (s *scanner) text(quoted []byte, at int) error {
	n := len(s.open)
	if n == 0 || !s.open[n-1].key {
		return s.value(at)
	}
	top := &s.open[n-1]
	top.key = false
	if s.keys == nil {
		return nil
	}
	var key string
	if bytes.IndexByte(quoted, '\\') < 0 && utf8.Valid(quoted) {
		key = string(bytes.Trim(quoted, `"`))
	} else if err := json.Unmarshal(quoted, &key); err != nil {
		return diag.Errorf(diag.Invalid, "invalid JSON: a key at byte %d: %w", at, err)
	}
	if !top.add(key) {
		return diag.Errorf(diag.Invalid, "the key %q stands twice in one object, at byte %d", shorten(key), at)
	}
	if want := s.keys.folded[fold(key)]; !top.free && want != "" && want != key {
		return diag.Errorf(diag.Invalid, "the key %q is not %q, at byte %d", key, want, at)
	}
	top.below = s.keys.free[key]
	return nil
}

// add notes a key and reports whether it is new. Most objects have a few keys, for which a map costs more than it saves.
func (l *level) add(key string) bool {
	const few = 16
	if l.many == nil {
		for _, k := range l.few {
			if k == key {
				return false
			}
		}
		if l.few = append(l.few, key); len(l.few) <= few {
			return true
		}
		l.many = make(map[string]struct{}, 2*few)
		for _, k := range l.few {
			l.many[k] = struct{}{}
		}
		l.few = nil
		return true
	}
	_, known := l.many[key]
	l.many[key] = struct{}{}
	return !known
}

// fold maps strings to one that encoding/json takes for the same field name to one string. Like it, fold knows that the long s
// and the Kelvin sign are other letters for s and k, which strings.ToLower does not.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return least
	}, s)
}

func shorten(s string) string {
	const most = 100
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
