package dockerfile

import (
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/strata-build/strata/diag"
)

// span is the lines of ranges, which the parser gives one by one.
func span(src *diag.Source, ranges []parser.Range) diag.Span {
	if len(ranges) == 0 {
		return diag.Span{}
	}
	first, last := ranges[0].Start.Line, ranges[0].End.Line
	for _, r := range ranges[1:] {
		first, last = min(first, r.Start.Line), max(last, r.End.Line)
	}
	return src.Lines(first, last)
}

func spans(src *diag.Source, ranges []parser.Range) []diag.Span {
	if len(ranges) == 0 || src == nil {
		return nil
	}
	return []diag.Span{span(src, ranges)}
}

var suggestionTail = regexp.MustCompile(` \(did you mean [^()]*\?\)$`)

// located turns an error of the grammar, or of an instruction, into one with a place: the word that the message is
// about if it can be found in the instruction's lines, else all of them. A suggestion within the message becomes the hint.
func located(src *diag.Source, err error, ranges []parser.Range) error {
	if err == nil {
		return nil
	}
	var le *parser.LocationError
	if errors.As(err, &le) && len(le.Locations) > 0 && len(le.Locations[0]) > 0 {
		ranges = le.Locations[0]
	}
	var d *diag.Error
	if errors.As(err, &d) {
		if len(d.At) > 0 || len(ranges) == 0 {
			return err
		}
		return diag.At(err, pointAt(span(src, ranges), d.Msg))
	}
	msg := err.Error()
	kind := diag.KindOf(err)
	if kind == diag.Internal {
		kind = diag.Invalid
	}
	// The lexer's name for the end of the text.
	msg = strings.Replace(msg, "unsupported modifier (\uFFFD) in substitution", "missing } at the end", 1)
	// The grammar's own suggestion changes from run to run where two candidates are equally near.
	msg = suggestionTail.ReplaceAllString(msg, "")
	out := &diag.Error{Kind: kind, Msg: msg, Err: err}
	if len(ranges) > 0 {
		at := span(src, ranges)
		out.Hint = hintFor(msg, text(at))
		out.At = []diag.Span{pointAt(at, msg)}
	}
	return out
}

// atDirective locates an error of the parser, whose line is one too low if a directive at the top is wrong.
func atDirective(src *diag.Source, err error) error {
	var le *parser.LocationError
	if errors.As(err, &le) && len(le.Locations) > 0 && len(le.Locations[0]) == 1 {
		n := le.Locations[0][0].Start.Line
		if p := pointAt(src.Lines(max(n, 1), n+1), err.Error()); p.Col > 0 {
			return diag.At(invalidf("%w", err), p)
		}
		le.Locations[0][0].Start.Line, le.Locations[0][0].End.Line = max(n, 1), max(n, 1)
	}
	return located(src, err, nil)
}

// text is the lines of a span.
func text(s diag.Span) string {
	if s.Source == nil || s.First < 1 {
		return ""
	}
	lines := strings.Split(string(s.Source.Data), "\n")
	if s.First > len(lines) {
		return ""
	}
	return strings.Join(lines[s.First-1:min(max(s.Last, s.First), len(lines))], "\n")
}

// quoted finds the words that a message is about: in quotes or parentheses, after "expression" or a colon, or a flag at the start.
var quoted = regexp.MustCompile("\"([^\"]+)\"|'([^']+)'|`([^`]+)`|\\((\\$[^()]+)\\)|expression (\\S+)|: ([^\\s\"'`(]\\S*)|^(--[^:]+)")

// pointAt narrows a span to the first word of the message that stands in its lines.
func pointAt(s diag.Span, msg string) diag.Span {
	if s.Source == nil || s.First < 1 {
		return s
	}
	lines := strings.Split(string(s.Source.Data), "\n")
	for _, m := range quoted.FindAllStringSubmatch(msg, -1) {
		word := strings.TrimRight(strings.Join(m[1:], ""), ",;")
		for n := s.First; n <= min(s.Last, len(lines)); n++ {
			if i := indexWord(lines[n-1], word); i >= 0 {
				s.First, s.Col, s.Width = n, i+1, len(word)
				return s
			}
		}
	}
	return s
}

// indexWord is strings.Index, but rather where no letter or digit adjoins.
func indexWord(line, word string) int {
	isWord := func(i int) bool {
		return i >= 0 && i < len(line) && (line[i] == '_' || line[i] >= '0' && line[i] <= '9' || line[i]|0x20 >= 'a' && line[i]|0x20 <= 'z')
	}
	for from := 0; ; {
		i := strings.Index(line[from:], word)
		if i < 0 {
			break
		}
		i += from
		if !isWord(i-1) && !isWord(i+len(word)) {
			return i
		}
		from = i + 1
	}
	return strings.Index(line, word)
}

// GrammarError is the error of an instruction that cannot be read at all. It reads as Err: where it is, Err says too, and Line
// is for clients that know such errors by a line in their text.
type GrammarError struct {
	Line int // where the instruction begins, from 1
	Err  error
}

func (e *GrammarError) Error() string { return e.Err.Error() }
func (e *GrammarError) Unwrap() error { return e.Err }

func invalidf(format string, args ...any) *diag.Error {
	return diag.Errorf(diag.Invalid, format, args...)
}

// nearest is didYouMean for the variables of an expression that are not set.
func nearest(err *diag.Error, unset map[string]struct{}, known []string) *diag.Error {
	for _, u := range slices.Sorted(maps.Keys(unset)) {
		err = didYouMean(err, u, known)
	}
	return err
}

// didYouMean adds a hint if a candidate is near the word.
func didYouMean(err *diag.Error, word string, candidates []string) *diag.Error {
	if m := diag.Suggest(word, candidates); m != "" && m != word {
		return err.WithHint("did you mean %s?", m)
	}
	return err
}
