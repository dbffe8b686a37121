package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
)

// results are sandbox tests by "group<tab>name".
type results map[string]result

func key(group, name string) string { return group + "\t" + name }

// readResults reads a results file; one that does not exist is empty.
func readResults(file string) (results, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return results{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := results{}
	s := bufio.NewScanner(f)
	for n := 1; s.Scan(); n++ {
		if s.Text() == "" || strings.HasPrefix(s.Text(), "#") {
			continue
		}
		fields := strings.SplitN(s.Text(), "\t", 4)
		if len(fields) < 3 {
			return nil, fmt.Errorf("%s:%d: not status, group, test", file, n)
		}
		r := result{Status: fields[0]}
		if len(fields) == 4 {
			r.Reason = fields[3]
		}
		out[key(fields[1], fields[2])] = r
	}
	return out, s.Err()
}

// write writes a results file: a summary of the groups, then one line per test.
func (r results) write(file string, reference results) error {
	var b strings.Builder
	b.WriteString("# BuildKit's integration tests (" + upstream + "): status, group, test, reason. Written by make conformance.\n")
	for _, line := range r.summary(reference) {
		b.WriteString("# " + line + "\n")
	}
	for _, k := range slices.Sorted(maps.Keys(r)) {
		fmt.Fprintf(&b, "%s\t%s", r[k].Status, k)
		if r[k].Reason != "" {
			b.WriteString("\t" + r[k].Reason)
		}
		b.WriteByte('\n')
	}
	return os.WriteFile(file, []byte(b.String()), 0o644)
}

// summary counts by group, and what the tests are that the reference passes.
func (r results) summary(reference results) []string {
	type count struct{ total, pass, fail, skip, possible, reached int }
	counts := map[string]*count{}
	for k, res := range r {
		group, _, _ := strings.Cut(k, "\t")
		for _, name := range []string{group, "total"} {
			c := counts[name]
			if c == nil {
				c = &count{}
				counts[name] = c
			}
			c.total++
			switch res.Status {
			case pass:
				c.pass++
			case fail:
				c.fail++
			default:
				c.skip++
			}
			if reference[k].Status == pass {
				c.possible++
				if res.Status == pass {
					c.reached++
				}
			}
		}
	}
	var out []string
	for _, name := range append(slices.DeleteFunc(slices.Sorted(maps.Keys(counts)), func(n string) bool { return n == "total" }), "total") {
		c := counts[name]
		if c == nil {
			continue
		}
		line := fmt.Sprintf("%s: %d tests, %d passed, %d failed, %d skipped", name, c.total, c.pass, c.fail, c.skip)
		if c.possible > 0 {
			line += fmt.Sprintf("; %d of the %d that buildkitd passes (%.1f %%)", c.reached, c.possible, 100*float64(c.reached)/float64(c.possible))
		}
		out = append(out, line)
	}
	return out
}

// regressions are the tests that passed before and do not now. Tests that were not run do not count.
func regressions(before, now results) []string {
	var out []string
	for k, r := range now {
		if before[k].Status == pass && r.Status != pass {
			out = append(out, strings.Replace(k, "\t", " ", 1)+": "+r.Status+": "+r.Reason)
		}
	}
	slices.Sort(out)
	return out
}
