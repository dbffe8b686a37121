package dockerfile

import (
	"errors"
	"regexp"
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

var suggestionTail = regexp.MustCompile(` \((did you mean [^()]*\?)\)$`)

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
	out := &diag.Error{Kind: kind, Msg: msg, Err: err}
	if m := suggestionTail.FindStringSubmatchIndex(msg); m != nil {
		out.Msg, out.Hint = msg[:m[0]], msg[m[2]:m[3]]
	}
	if len(ranges) > 0 {
		out.At = []diag.Span{pointAt(span(src, ranges), out.Msg)}
	}
	return out
}

var quoted = regexp.MustCompile("\"([^\"]+)\"|'([^']+)'|`([^`]+)`|: (\\S+)")

// pointAt narrows a span to the first word of the message that stands in its lines.
func pointAt(s diag.Span, msg string) diag.Span {
	if s.Source == nil || s.First < 1 {
		return s
	}
	lines := strings.Split(string(s.Source.Data), "\n")
	for _, m := range quoted.FindAllStringSubmatch(msg, -1) {
		word := m[1] + m[2] + m[3] + m[4]
		for n := s.First; n <= min(s.Last, len(lines)); n++ {
			if i := strings.Index(lines[n-1], word); i >= 0 {
				s.First, s.Col, s.Width = n, i+1, len(word)
				return s
			}
		}
	}
	return s
}

func invalidf(format string, args ...any) *diag.Error {
	return diag.Errorf(diag.Invalid, format, args...)
}

// didYouMean adds a hint if a candidate is near the word.
func didYouMean(err *diag.Error, word string, candidates []string) *diag.Error {
	if m := diag.Suggest(word, candidates); m != "" && m != word {
		return err.WithHint("did you mean %s?", m)
	}
	return err
}
