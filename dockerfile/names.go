package dockerfile

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/strata-build/strata/graph"
)

// stepName puts "[stage 2/5] " before what a step does, and counts it.
func (s *stage) stepName(what string) string {
	if s.total == 0 {
		return what
	}
	s.index++
	var b strings.Builder
	b.WriteByte('[')
	if s.p.multi {
		pf := s.p.target
		if s.platform != nil {
			pf = *s.platform
		}
		b.WriteString(graph.FormatPlatform(pf) + s.crossSuffix(pf) + " ")
	}
	if s.name != "" {
		b.WriteString(s.name + " ")
	}
	fmt.Fprintf(&b, "%*d/%d] ", len(strconv.Itoa(s.total)), s.index, s.total)
	return b.String() + what
}

// crossSuffix is "->arm64" for a stage that runs on one platform and knows by its TARGET arguments that it builds for another.
func (s *stage) crossSuffix(pf graph.Platform) string {
	if s.env == nil {
		return ""
	}
	var t graph.Platform
	if v, ok := s.env.Get("TARGETPLATFORM"); ok {
		var err error
		if t, err = graph.ParsePlatform(v); err != nil {
			return ""
		}
	} else {
		t.OS = s.env.vals["TARGETOS"]
		t.Architecture = s.env.vals["TARGETARCH"]
		t.Variant = s.env.vals["TARGETVARIANT"]
		if t.OS == "" && t.Architecture == "" && t.Variant == "" {
			return ""
		}
		if t.OS == "" {
			t.OS = pf.OS
		}
		if t.Architecture == "" {
			t.Architecture = pf.Architecture
		}
		t = graph.NormalizePlatform(t)
	}
	switch {
	case t.OS != pf.OS:
		return "->" + graph.FormatPlatform(t)
	case t.Architecture != pf.Architecture:
		return "->" + strings.TrimPrefix(shortPlatform(t), t.OS+"/")
	}
	return ""
}

// describe is an instruction as people see it: its text with the variables expanded.
func (st *step) describe(lex *shell.Lex, text string, e shell.EnvGetter) string {
	if v, _, err := expandWord(lex, text, e); err == nil {
		text = v.Text
	}
	word, rest, ok := strings.Cut(text, " ")
	text = strings.ToUpper(word)
	if ok {
		text += " " + rest
	}
	return text
}

// title names the step of an instruction.
func (st *step) title(what string) string {
	if st.c.onBuild {
		what = "ONBUILD " + what
	}
	return st.stepName(what)
}
