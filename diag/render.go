package diag

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
)

func contextKind(err error) Kind {
	if errors.Is(err, context.Canceled) {
		return Canceled
	}
	if noFiles(err) {
		return Exhausted
	}
	return Internal
}

// noFiles recognises a failure that any part of the program may meet, and that has the same remedy everywhere.
func noFiles(err error) bool { return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) }

// Render writes err for a person: the message, the log's last lines, an excerpt of each place with a caret, the hint.
//
//	error: process "/bin/sh -c make" did not complete successfully: exit code: 2
//
//	   | make: *** No targets.  Stop.
//
//	Dockerfile:3
//	   2 | COPY . /src
//	   3 | RUN make
//	     | ^^^^^^^^
//
//	hint: …
func Render(w io.Writer, err error) {
	if err == nil {
		return
	}
	fmt.Fprintf(w, "error: %s\n", Redact(err.Error()))
	d := &Error{}
	_ = errors.As(err, &d)
	if log := logOf(err); len(log) > 0 {
		fmt.Fprintln(w)
		for _, l := range log {
			fmt.Fprintf(w, "   | %s\n", Redact(l))
		}
	}
	for _, at := range d.At {
		excerpt(w, at)
	}
	if h := hintOf(err); h != "" {
		fmt.Fprintf(w, "\nhint: %s\n", Redact(h))
	}
}

// RenderWarning writes a warning as Render writes an error.
func RenderWarning(w io.Writer, x *Warning) {
	x = x.Redacted()
	if x.Rule != "" {
		fmt.Fprintf(w, "warning: %s: %s\n", x.Rule, x.Msg)
	} else {
		fmt.Fprintf(w, "warning: %s\n", x.Msg)
	}
	for _, d := range x.Detail {
		fmt.Fprintf(w, "  %s\n", d)
	}
	if x.URL != "" {
		fmt.Fprintf(w, "  %s\n", x.URL)
	}
	for _, at := range x.At {
		excerpt(w, at)
	}
}

// Flatten returns an error with everything that Render would show of err and no cause, for sending it elsewhere.
func Flatten(err error) *Error {
	if err == nil {
		return nil
	}
	f := &Error{Kind: KindOf(err), Msg: Redact(err.Error()), Hint: Redact(hintOf(err)), Log: redactAll(logOf(err))}
	var d *Error
	if errors.As(err, &d) {
		f.At = redactSpans(d.At)
	}
	return f
}

// An outer error may have been given places while the log and the hint stay with the inner one.
func logOf(err error) []string {
	for d := (*Error)(nil); errors.As(err, &d); err = d.Err {
		if len(d.Log) > 0 {
			return d.Log
		}
		if d.Err == nil {
			break
		}
	}
	return nil
}

func hintOf(err error) string {
	if noFiles(err) {
		return "raise the limit on open files (ulimit -n)"
	}
	for d := (*Error)(nil); errors.As(err, &d); err = d.Err {
		if d.Hint != "" {
			return d.Hint
		}
		if d.Err == nil {
			break
		}
	}
	return ""
}

// excerptLines is how many lines of a long instruction are shown.
const excerptLines = 8

func excerpt(w io.Writer, at Span) {
	if at.Source == nil || at.First < 1 {
		return
	}
	lines := bytes.Split(at.Source.Redacted().Data, []byte("\n"))
	if at.First > len(lines) {
		fmt.Fprintf(w, "\n%s\n", at)
		return
	}
	last := min(max(at.Last, at.First), len(lines), at.First+excerptLines-1)
	fmt.Fprintf(w, "\n%s\n", at)
	for n := max(at.First-1, 1); n <= last; n++ {
		text := strings.ReplaceAll(strings.TrimRight(string(lines[n-1]), "\r"), "\t", "    ")
		fmt.Fprintf(w, "%4d | %s\n", n, text)
		if n == at.First {
			fmt.Fprintf(w, "     | %s\n", caret(string(lines[n-1]), at))
		}
	}
}

func caret(line string, at Span) string {
	line = strings.TrimRight(line, "\r")
	expand := func(s string) int { return len([]rune(strings.ReplaceAll(s, "\t", "    "))) }
	if at.Col > 0 && at.Col <= len(line) {
		end := min(at.Col-1+max(at.Width, 1), len(line))
		return strings.Repeat(" ", expand(line[:at.Col-1])) + strings.Repeat("^", max(expand(line[at.Col-1:end]), 1))
	}
	trimmed := strings.TrimLeft(line, " \t")
	return strings.Repeat(" ", expand(line[:len(line)-len(trimmed)])) + strings.Repeat("^", max(expand(strings.TrimRight(trimmed, " \t")), 1))
}

// Suggest returns the candidate nearest to word, or "" if none is near enough to be a likely misspelling: at most two
// edits, and fewer than half of the word's letters unless the word is the beginning of the candidate.
func Suggest(word string, candidates []string) string {
	best, bestDist := "", 3
	for _, c := range candidates {
		d := distance(strings.ToLower(word), strings.ToLower(c))
		begins := len(word) > 2 && strings.HasPrefix(strings.ToLower(c), strings.ToLower(word))
		if d < bestDist && (begins || d*2 < max(len(word), 3)) {
			best, bestDist = c, d
		}
	}
	return best
}

// distance is the optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	rows := make([][]int, len(x)+1)
	for i := range rows {
		rows[i] = make([]int, len(y)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(x); i++ {
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(x)][len(y)]
}
