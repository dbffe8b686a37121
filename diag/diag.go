// Package diag holds Strata's errors and warnings: values that say what is wrong, where, and what to do about it.
//
// A [Source] is a text that positions refer to (a Dockerfile, a TOML file); a [Span] is a range of lines in one;
// an [Error] is a message with its kind, its spans, a hint and the tail of the failing command's log. [Render] turns
// an error into the text that a person reads: excerpt, caret, hint, last lines.
//
//	src := &diag.Source{Name: "Dockerfile", Data: text}
//	err := diag.Errorf(diag.Invalid, "unknown instruction: %s", word).WithHint("did you mean COPY?").WithSpan(src.Lines(4, 4))
package diag

import (
	"errors"
	"fmt"
)

// Kind classifies an error for callers that map it to an exit code, an HTTP status or a gRPC code.
type Kind int

const (
	Internal    Kind = iota // a bug, or a failure of the machine
	Invalid                 // the input is wrong: a Dockerfile, a flag, an archive
	NotFound                // something that was named does not exist
	Denied                  // credentials, permissions or an entitlement are missing
	Unavailable             // a registry, a daemon or a file system cannot be used now
	Failed                  // a command of the build ended with a failure
	Canceled                // the client left or asked to stop
	Conflict                // the state is in use, or of another version
	Exhausted               // a limit was hit: disk, memory, layers, entries
	Unsupported             // not possible on this machine or in this version
)

var kindNames = [...]string{"internal", "invalid", "not-found", "denied", "unavailable", "failed", "canceled", "conflict", "exhausted", "unsupported"}

func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return fmt.Sprintf("kind(%d)", int(k))
	}
	return kindNames[k]
}

// Source is a text that spans point into. Name is what the user typed or would recognise.
type Source struct {
	Name string
	Data []byte
	// Origin says where the text was read from, in the terms of who read it: this room knows no others. llb.SourceInfo lists
	// what there is; nil = not known.
	Origin any `json:"-"`
}

// Lines returns the span from line first to line last, both counted from 1.
func (s *Source) Lines(first, last int) Span { return Span{Source: s, First: first, Last: last} }

// Span is a range of lines of a source. Col and Width, both in bytes, mark a part of the first line; Col counts from 1,
// and 0 means the whole range.
type Span struct {
	Source      *Source
	First, Last int
	Col, Width  int
}

func (s Span) String() string {
	if s.Source == nil {
		return ""
	}
	if s.Col > 0 {
		return fmt.Sprintf("%s:%d:%d", s.Source.Name, s.First, s.Col)
	}
	return fmt.Sprintf("%s:%d", s.Source.Name, s.First)
}

// Error is a failure as a person should see it.
type Error struct {
	Kind Kind
	Msg  string   // one sentence without a final stop; the cause is in Err
	Hint string   // what to do now, if it is known
	At   []Span   // innermost first
	Log  []string // the last lines that the failing command printed
	Err  error
}

// Errorf makes an error of a kind. A %w verb keeps its operand as the cause. The message has no secrets of URLs (Redact).
func Errorf(k Kind, format string, args ...any) *Error {
	wrapped := fmt.Errorf(format, args...)
	return &Error{Kind: k, Msg: Redact(wrapped.Error()), Err: errors.Unwrap(wrapped)}
}

func (e *Error) Error() string { return e.Msg }

func (e *Error) Unwrap() error { return e.Err }

// WithHint returns the error with a hint.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = Redact(fmt.Sprintf(format, args...))
	return &c
}

// WithSpan returns the error with more places, after those it has.
func (e *Error) WithSpan(at ...Span) *Error {
	c := *e
	c.At = append(append([]Span(nil), e.At...), at...)
	return &c
}

// At attaches places to any error that has none yet. A nil error stays nil.
func At(err error, spans ...Span) error {
	if err == nil || len(spans) == 0 {
		return err
	}
	var d *Error
	if !errors.As(err, &d) {
		return &Error{Kind: KindOf(err), Msg: err.Error(), At: spans, Err: err}
	}
	if len(d.At) > 0 {
		return err
	}
	c := *d
	c.Msg, c.Err = err.Error(), err
	c.At = spans
	return &c
}

// Advised returns an error with a hint, if it has none.
func Advised(err error, hint string) error {
	if err == nil || hintOf(err) != "" {
		return err
	}
	c := Error{Kind: KindOf(err), Msg: err.Error(), Err: err, Hint: Redact(hint)}
	if d, ok := errors.AsType[*Error](err); ok {
		c.At, c.Log = d.At, d.Log
	}
	return &c
}

// KindOf returns the kind of the first Error in err's chain, Canceled for context errors, else Internal.
func KindOf(err error) Kind {
	var d *Error
	if errors.As(err, &d) {
		return d.Kind
	}
	return contextKind(err)
}
