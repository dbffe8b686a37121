// Package lint holds the checks of a Dockerfile's style and pitfalls: one file per rule, with BuildKit's rule names,
// messages and documentation addresses, so that what is written about them elsewhere holds here.
//
// A rule is a function that looks at one thing and reports to a [Linter], which drops what the user does not want to
// hear: `# check=skip=…` at the top of a Dockerfile or above an instruction, or BUILDKIT_DOCKERFILE_CHECK.
//
//	cfg, err := lint.ParseConfig("skip=JSONArgsRecommended;error=true")
//	l := lint.New(cfg)
//	lint.StageNameCasing(l, at, "Build")
//	l.Warnings() // [{Rule: StageNameCasing, Msg: "Stage name 'Build' should be lowercase", …}]
package lint

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/strata-build/strata/diag"
)

// Rule describes a check.
type Rule struct {
	Name         string
	Description  string
	Slug         string // the last part of the address of its documentation; "" = none
	Experimental bool   // off unless asked for
}

// URL is the address of the rule's documentation, or "".
func (r *Rule) URL() string {
	if r.Slug == "" {
		return ""
	}
	return "https://docs.docker.com/go/dockerfile/rule/" + r.Slug + "/"
}

// Linter collects findings, from any number of goroutines. A nil Linter drops them.
type Linter struct {
	cfg   Config
	found *findings
}

type findings struct {
	mu   sync.Mutex
	list []diag.Warning
}

// New makes a linter.
func New(cfg Config) *Linter { return &Linter{cfg: cfg, found: &findings{}} }

// With returns a linter that collects into the same list under a narrower configuration: that of the `# check=` line
// among an instruction's comments, if there is one.
func (l *Linter) With(comments []string) *Linter {
	if l == nil {
		return nil
	}
	for _, c := range comments {
		key, v, ok := strings.Cut(c, "=")
		if !ok || !strings.EqualFold(strings.TrimSpace(key), "check") {
			continue
		}
		v, _, _ = strings.Cut(strings.TrimSpace(v), " ")
		cfg, err := ParseConfig(v)
		if err != nil {
			return l
		}
		return &Linter{cfg: l.cfg.merge(cfg), found: l.found}
	}
	return l
}

// Warnings returns the findings by line.
func (l *Linter) Warnings() []diag.Warning {
	if l == nil {
		return nil
	}
	l.found.mu.Lock()
	ws := slices.Clone(l.found.list)
	l.found.mu.Unlock()
	slices.SortStableFunc(ws, func(a, b diag.Warning) int { return cmp.Compare(firstLine(a), firstLine(b)) })
	return ws
}

// Err is the failure that `error=true` makes of findings, or nil.
func (l *Linter) Err() error {
	if l == nil || !l.cfg.Error {
		return nil
	}
	var names []string
	var at []diag.Span
	for _, w := range l.Warnings() {
		names = append(names, w.Rule)
		at = append(at, w.At...)
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return diag.Errorf(diag.Invalid, "lint violation found for rules: %s", strings.Join(slices.Compact(names), ", ")).
		WithSpan(at...).WithHint("the Dockerfile or BUILDKIT_DOCKERFILE_CHECK asks for check=error=true, which turns these warnings into an error")
}

func (l *Linter) report(r *Rule, at []diag.Span, format string, args ...any) {
	if l == nil || !l.cfg.wants(r) {
		return
	}
	l.found.mu.Lock()
	defer l.found.mu.Unlock()
	l.found.list = append(l.found.list, diag.Warning{
		Rule: r.Name, Msg: fmt.Sprintf(format, args...), Detail: []string{r.Description}, URL: r.URL(), At: at, Level: 1,
	})
}

func firstLine(w diag.Warning) int {
	if len(w.At) == 0 {
		return 0
	}
	return w.At[0].First
}

// suggestion is " (did you mean X?)" with the given form of the candidate nearest to word, or "".
func suggestion(word, form string, candidates []string) string {
	slices.Sort(candidates)
	if m := diag.Suggest(word, candidates); m != "" && m != word {
		return fmt.Sprintf(" (did you mean "+form+"?)", m)
	}
	return ""
}
