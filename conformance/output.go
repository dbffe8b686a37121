package main

import (
	"bufio"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Statuses of a sandbox test.
const (
	pass = "pass"
	fail = "fail"
	skip = "skip"
)

// result is how a sandbox test ended.
type result struct {
	Status string
	Reason string // why it did not pass, on one line
}

// output is what a test binary said.
type output struct {
	started map[string]bool // sandbox tests
	results map[string]result
	logs    map[string][]string // the last log lines per test, tests below sandbox tests too
}

var (
	eventLine  = regexp.MustCompile(`^=== (RUN|PAUSE|CONT|NAME)\s+(\S+)$`)
	resultLine = regexp.MustCompile(`^ *--- (PASS|FAIL|SKIP): (\S+) \(`)
	// The keys are those of upstream's matrices: a test below a sandbox test may have a name of the same form.
	sandboxed = regexp.MustCompile(`^[^/]+/[^/]+/worker=oci(/(env|frontend|history|netmode|network\.host|secmode|security\.insecure)=[^/]*)*$`)
	stackLine = regexp.MustCompile(`^(github\.com/|golang\.org/|google\.golang\.org/|runtime\.|main\.|net/|testing\.|/|\d+ v?\d|\d+ \S+ /)`)
)

// logLimit bounds the lines kept per test: the daemon's log comes after the reason.
const logLimit = 200

// parseOutput reads the output of a test binary with -test.v=test2json, which marks the lines of the testing package with
// \x16 and prints results as they come. done is called at each end of a sandbox test; tests below it belong to it.
func parseOutput(r io.Reader, done func(name string, res result)) *output {
	o := &output{started: map[string]bool{}, results: map[string]result{}, logs: map[string][]string{}}
	current := ""
	lines := bufio.NewReaderSize(r, 1<<16)
	for {
		line, err := readLine(lines)
		if i := strings.LastIndexByte(line, '\x16'); i >= 0 {
			line = line[i+1:]
		}
		if m := eventLine.FindStringSubmatch(line); m != nil {
			current = m[2]
			if m[1] == "RUN" && sandboxed.MatchString(current) {
				o.started[current] = true
			}
		} else if m := resultLine.FindStringSubmatch(line); m != nil {
			if name := m[2]; o.started[name] {
				res := result{Status: strings.ToLower(m[1])}
				if res.Status != pass {
					res.Reason = o.reason(name)
				}
				o.results[name] = res
				done(name, res)
			}
		} else if logs := o.logs[current]; len(logs) < logLimit {
			o.logs[current] = append(logs, line)
		}
		if err != nil {
			return o
		}
	}
}

const hungReason = "it hung: upstream cancelled its sandbox, and it went on waiting"

// failHung gives a result to the tests that hang: those whose sandbox timed out, or all without a result if there are none.
func (o *output) failHung() {
	var late, rest []string
	for name := range o.started {
		if _, ok := o.results[name]; ok {
			continue
		}
		if slices.ContainsFunc(o.logs[name], func(line string) bool { return strings.Contains(line, "sandbox timeout reached") }) {
			late = append(late, name)
		} else {
			rest = append(rest, name)
		}
	}
	if len(late) == 0 {
		late = rest
	}
	for _, name := range late {
		o.results[name] = result{Status: fail, Reason: hungReason}
	}
}

// readLine reads a line and cuts off what is beyond the buffer.
func readLine(r *bufio.Reader) (string, error) {
	line, more, err := r.ReadLine()
	text := string(line)
	for more && err == nil {
		_, more, err = r.ReadLine()
	}
	return text, err
}

// reason finds why a test failed or was skipped in what it and the tests below it logged.
func (o *output) reason(name string) string {
	var asserted, logged string
	for _, test := range slices.Sorted(maps.Keys(o.logs)) {
		if test != name && !strings.HasPrefix(test, name+"/") {
			continue
		}
		if text := assertion(o.logs[test]); asserted == "" {
			asserted = text
		}
		if text := lastLog(o.logs[test]); text != "" {
			logged = text
		}
	}
	switch {
	case asserted != "":
		return asserted
	case logged != "":
		return logged
	}
	return "it gave no reason"
}

// assertion gives the place and the error of the first failed assertion: from "Error:" to the stack or the next field.
func assertion(lines []string) string {
	var out []string
	place, in := "", false
	for _, line := range lines {
		text := strings.TrimSpace(line)
		switch {
		case !in && strings.HasPrefix(text, "Error:"):
			in = true
			out = append(out, strings.TrimSpace(strings.TrimPrefix(text, "Error:")))
		case !in && bareLog.MatchString(text):
			place = text
		case in && fieldLine.MatchString(text):
			return oneLine(place, out)
		case in && text != "" && !stackLine.MatchString(text):
			out = append(out, text)
		}
	}
	return oneLine(place, out)
}

var (
	bareLog   = regexp.MustCompile(`^\S+\.go:\d+:$`)
	logPrefix = regexp.MustCompile(`^\S+\.go:\d+: `)
	fieldLine = regexp.MustCompile(`^(Test|Messages|Error Trace|Diff):`)
)

// lastLog gives the last line that a test logged itself: after it come the daemon's logs, from sandbox.go.
func lastLog(lines []string) string {
	last := ""
	for _, line := range lines {
		if text := strings.TrimSpace(line); logPrefix.MatchString(text) && !strings.HasPrefix(text, "sandbox.go:20") {
			last = text
		}
	}
	if last == "" {
		return ""
	}
	return oneLine("", []string{last})
}

// unstable are parts of messages that differ from run to run.
var unstable = []struct {
	pattern *regexp.Regexp
	by      string
}{
	{regexp.MustCompile(`sha256:[0-9a-f]{64}`), "sha256:…"},
	{regexp.MustCompile(`(localhost|127\.0\.0\.1):\d+`), "$1:PORT"},
	{regexp.MustCompile(`/tmp/[A-Za-z0-9_/.-]*\d{5,}`), "/tmp/…"},
	{regexp.MustCompile(`\b[a-z0-9]{25}\b`), "…"},
}

// oneLine joins lines after the place where they were logged, without what differs from run to run.
func oneLine(place string, lines []string) string {
	text := strings.Join(strings.Fields(strings.Join(lines, " ")), " ")
	text = strings.TrimPrefix(text, "Received unexpected error: ")
	if text != "" && place != "" {
		text = place + " " + text
	}
	for _, u := range unstable {
		text = u.pattern.ReplaceAllString(text, u.by)
	}
	if r := []rune(text); len(r) > 240 {
		text = string(r[:240]) + "…"
	}
	return text
}
