package tree

import (
	"path"
	"strings"
	"sync"

	"github.com/moby/patternmatcher"

	"github.com/strata-build/strata/diag"
)

// patterns is a list of .dockerignore patterns. The library's matcher compiles a pattern when it first needs it, so one
// matcher must not be used by two goroutines: there is one for each that asks.
type patterns struct {
	list    []string
	pool    sync.Pool
	first   *patternmatcher.PatternMatcher
	negated bool
}

// Every path is compared with every pattern: their number is bounded, and their bytes.
const (
	maxPatterns     = 10_000
	maxPatternBytes = 1 << 20
)

func newPatterns(list []string) (*patterns, error) {
	if len(list) == 0 {
		return nil, nil
	}
	size := 0
	for _, p := range list {
		size += len(p)
	}
	if len(list) > maxPatterns || size > maxPatternBytes {
		return nil, diag.Errorf(diag.Exhausted, "%d patterns of %d bytes; at most %d of %d are allowed", len(list), size, maxPatterns, maxPatternBytes).
			WithHint("name directories instead of their files")
	}
	m, err := patternmatcher.New(list)
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "invalid pattern in %q: %w", list, err)
	}
	return &patterns{list: list, first: m, negated: m.Exclusions()}, nil
}

func (p *patterns) get() *patternmatcher.PatternMatcher {
	if m, ok := p.pool.Get().(*patternmatcher.PatternMatcher); ok {
		return m
	}
	m, err := patternmatcher.New(p.list)
	if err != nil {
		return p.first // cannot be: the same list was accepted before
	}
	return m
}

// shown is what include and exclude patterns said about a directory; its children's answers build on it.
type shown struct {
	inc, exc patternmatcher.MatchInfo
	out      bool // an exclude pattern matched
}

// filter keeps the paths that an include pattern matches (none = all) and no exclude pattern does.
type filter struct {
	inc, exc *patterns
}

func newFilter(include, exclude []string) (*filter, error) {
	inc, err := newPatterns(include)
	if err != nil {
		return nil, err
	}
	exc, err := newPatterns(exclude)
	if err != nil || inc == nil && exc == nil {
		return nil, err
	}
	return &filter{inc: inc, exc: exc}, nil
}

// matcher is a filter for one goroutine.
type matcher struct {
	f        *filter
	inc, exc *patternmatcher.PatternMatcher
}

func (f *filter) matcher() *matcher {
	m := &matcher{f: f}
	if f.inc != nil {
		m.inc = f.inc.get()
	}
	if f.exc != nil {
		m.exc = f.exc.get()
	}
	return m
}

func (m *matcher) done() {
	if m.inc != nil {
		m.f.inc.pool.Put(m.inc)
	}
	if m.exc != nil {
		m.f.exc.pool.Put(m.exc)
	}
}

// match says whether rel is kept. up is what its parent's match returned.
func (m *matcher) match(rel string, up shown) (keep bool, s shown, err error) {
	keep = true
	if m.inc != nil {
		if keep, s.inc, err = m.inc.MatchesUsingParentResults(rel, up.inc); err != nil {
			return false, s, err
		}
	}
	if m.exc != nil {
		if s.out, s.exc, err = m.exc.MatchesUsingParentResults(rel, up.exc); err != nil {
			return false, s, err
		}
		keep = keep && !s.out
	}
	return keep, s, nil
}

// below reports whether something below a directory that is not kept may be.
func (m *matcher) below(rel string, s shown) bool {
	if s.out {
		return m.f.exc.negated && reaches(m.exc, rel, true)
	}
	return m.inc == nil || reaches(m.inc, rel, false)
}

// reaches reports whether a pattern of the wanted sort can match a path below dir. The part of a pattern before its
// first special character decides; a pattern that starts with one can match anywhere.
func reaches(pm *patternmatcher.PatternMatcher, dir string, exclusion bool) bool {
	for _, p := range pm.Patterns() {
		if p.Exclusion() != exclusion {
			continue
		}
		s := p.String()
		i := strings.IndexAny(s, `*?[]^\`)
		if i < 0 {
			if strings.HasPrefix(s, dir+"/") {
				return true
			}
			continue
		}
		if lit := s[:i]; strings.HasPrefix(lit, dir+"/") || strings.HasPrefix(dir+"/", lit) {
			return true
		}
	}
	return false
}

// apply drops the children of a listed directory that the filter hides.
func (f *filter) apply(d *dir) error {
	m := f.matcher()
	defer m.done()
	kept := d.kids[:0]
	for _, e := range d.kids {
		rel := joinRel(d.rel, e.Name)
		keep, s, err := m.match(rel, d.shown)
		if err != nil {
			return err
		}
		if e.dir != nil {
			e.dir.shown = s
			e.maybe = !keep
			keep = keep || m.below(rel, s)
		}
		if keep {
			kept = append(kept, e)
		}
	}
	clear(d.kids[len(kept):])
	d.kids = kept
	return nil
}

// visible reports whether one path passes, by matching its parents first.
func (f *filter) visible(rel string) (bool, error) {
	rel = strings.TrimPrefix(path.Clean("/"+rel), "/")
	if f == nil || rel == "" {
		return true, nil
	}
	m := f.matcher()
	defer m.done()
	var s shown
	for i := 0; ; {
		j := strings.IndexByte(rel[i:], '/')
		end := len(rel)
		if j >= 0 {
			end = i + j
		}
		keep, next, err := m.match(rel[:end], s)
		if err != nil || j < 0 {
			return keep, err
		}
		s, i = next, end+1
	}
}
