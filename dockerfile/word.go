package dockerfile

import (
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile/lint"
)

// Limits that keep a hostile Dockerfile from filling the memory: variables that hold each other double with every line.
const (
	maxWord    = 1 << 20  // bytes of variables in one word
	maxReplace = 16 << 10 // the same for a word with ${x//a/b}, which can multiply two of them
	maxEnv     = 2 << 20  // bytes of all variables: the kernel starts no process with more
	maxHistory = 4 << 20  // bytes of all history rows: about what registries take as a configuration
	maxPorts   = 1 << 17  // of one EXPOSE: every port of two protocols
)

// metered gives out a word's variables until the limit.
type metered struct {
	shell.EnvGetter
	left int
}

func (m *metered) Get(k string) (string, bool) {
	v, ok := m.EnvGetter.Get(k)
	if m.left -= len(v); m.left < 0 {
		return "", ok
	}
	return v, ok
}

// expandWord replaces the variables of a word. The second result is the word split at its spaces, as by a shell.
func expandWord(lex *shell.Lex, word string, e shell.EnvGetter) (lint.Expanded, []string, error) {
	if !strings.ContainsAny(word, "$'\"`\\ \t\n") {
		return lint.Expanded{Text: word}, []string{word}, nil
	}
	m := &metered{EnvGetter: e, left: maxWord}
	if strings.Contains(word, "//") {
		m.left = maxReplace
	}
	limit := m.left
	r, err := lex.ProcessWordWithMatches(word, m)
	if m.left < 0 {
		return lint.Expanded{}, nil, diag.Errorf(diag.Exhausted, "the variables in one word are longer than %d KiB", limit>>10)
	}
	return lint.Expanded{Text: r.Result, Matched: r.Matched, Unmatched: r.Unmatched}, r.Words, err
}

// expand replaces the variables of a word by the Dockerfile's own rules of quoting.
func (p *planner) expand(word string, e *env) (lint.Expanded, error) {
	v, _, err := expandWord(p.lex, word, e)
	return v, err
}

// checkSize holds the stage to the limits after an instruction.
func (s *stage) checkSize() error {
	if s.env.size > maxEnv {
		return diag.Errorf(diag.Exhausted, "the variables are longer than %d MiB together: no process could be started with them", maxEnv>>20)
	}
	if s.historySize > maxHistory {
		return diag.Errorf(diag.Exhausted, "the image's history is longer than %d MiB", maxHistory>>20)
	}
	return nil
}
