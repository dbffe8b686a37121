package local

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/strata-build/strata/diag"
)

// maxLog is how large the log of a root's engines may grow, in bytes, before the next one begins it anew.
const maxLog = 1 << 20

func logName(root string) string { return filepath.Join(root, "daemon.log") }

// openLog opens the file to which an engine's process in the background writes what goes wrong. Several may write to it.
// Where it cannot be made there is none: what is wrong there, the engine says better.
func openLog(root string) (*os.File, error) {
	name := logName(root)
	if st, err := os.Stat(name); err == nil && st.Size() > maxLog {
		_ = os.Truncate(name, 0)
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		_ = os.MkdirAll(root, 0o700)
		f, err = os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	}
	if err != nil {
		f, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	if err != nil {
		return nil, diag.Errorf(diag.Exhausted, "the engine's log: %w", err)
	}
	return f, nil
}

// logSize is where the log ends now.
func (c *Client) logSize() int64 {
	st, err := os.Stat(logName(c.root))
	if err != nil {
		return 0
	}
	return st.Size()
}

// crash matches the first line of what the language's runtime says of the end of a program.
var crash = regexp.MustCompile(`(?m)^(panic: |fatal error: |SIG[A-Z]+: |runtime: )`)

// tailLines is how much of the log is shown.
const tailLines = 20

// logTail returns what an engine wrote since the log had a size: the beginning of a crash's report, or the last lines.
func (c *Client) logTail(from int64) []string {
	f, err := os.Open(logName(c.root))
	if err != nil {
		return nil
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() < from {
		from = 0
	}
	data, err := io.ReadAll(io.NewSectionReader(f, from, maxLog))
	text := strings.TrimSpace(string(data))
	if err != nil || text == "" {
		return nil
	}
	if at := crash.FindStringIndex(text); at != nil {
		lines := strings.Split(text[at[0]:], "\n")
		return lines[:min(len(lines), tailLines)]
	}
	lines := strings.Split(text, "\n")
	return lines[max(0, len(lines)-tailLines):]
}
