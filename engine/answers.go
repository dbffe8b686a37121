package engine

import (
	"cmp"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile"
	"github.com/strata-build/strata/llb"
)

// The answers to questions about a Dockerfile in the JSON that BuildKit's clients and `docker build --call=…,format=json` have.
// Source: frontend/subrequests of BuildKit.

// OutlineAnswer is what a target takes.
type OutlineAnswer struct {
	Name        string           `json:"name,omitempty"`
	Description string           `json:"description,omitempty"`
	Args        []AnswerArgument `json:"args,omitempty"`
	Secrets     []AnswerNeed     `json:"secrets,omitempty"`
	SSH         []AnswerNeed     `json:"ssh,omitempty"`
	Cache       []AnswerNeed     `json:"cache,omitempty"`
	Sources     [][]byte         `json:"sources,omitempty"`
}

// AnswerArgument is a build argument.
type AnswerArgument struct {
	Name        string       `json:"name"`
	Description string       `json:"description,omitempty"`
	Value       string       `json:"value,omitempty"`
	Location    *pb.Location `json:"location,omitempty"`
}

// AnswerNeed is a secret, an ssh agent or a cache mount.
type AnswerNeed struct {
	Name     string       `json:"name,omitempty"`
	ID       string       `json:"ID,omitempty"` // of a cache mount, instead of the name
	Required bool         `json:"required,omitempty"`
	Location *pb.Location `json:"location,omitempty"`
}

// NewOutlineAnswer puts an outline into BuildKit's form.
func NewOutlineAnswer(o *dockerfile.Outline) *OutlineAnswer {
	out := &OutlineAnswer{Name: o.Name, Description: o.Description}
	if o.Source != nil {
		out.Sources = [][]byte{o.Source.Data}
	}
	for _, a := range o.Args {
		out.Args = append(out.Args, AnswerArgument{a.Name, a.Description, a.Value, location(a.At)})
	}
	for _, n := range o.Secrets {
		out.Secrets = append(out.Secrets, AnswerNeed{Name: n.Name, Required: n.Required, Location: location(n.At)})
	}
	for _, n := range o.SSH {
		out.SSH = append(out.SSH, AnswerNeed{Name: n.Name, Required: n.Required, Location: location(n.At)})
	}
	for _, n := range o.Cache {
		out.Cache = append(out.Cache, AnswerNeed{ID: n.Name, Location: location(n.At)})
	}
	return out
}

// TargetsAnswer is what can be built.
type TargetsAnswer struct {
	Targets []AnswerTarget `json:"targets"`
	Sources [][]byte       `json:"sources"`
}

// AnswerTarget is a stage.
type AnswerTarget struct {
	Name        string       `json:"name,omitempty"`
	Default     bool         `json:"default,omitempty"`
	Description string       `json:"description,omitempty"`
	Base        string       `json:"base,omitempty"`
	Platform    string       `json:"platform,omitempty"`
	Location    *pb.Location `json:"location,omitempty"`
}

// NewTargetsAnswer puts the stages of a Dockerfile into BuildKit's form.
func NewTargetsAnswer(ts []dockerfile.TargetInfo, src *diag.Source) *TargetsAnswer {
	out := &TargetsAnswer{Sources: [][]byte{src.Data}}
	for _, t := range ts {
		out.Targets = append(out.Targets, AnswerTarget{t.Name, t.Default, t.Description, t.Base, t.Platform, location(t.At)})
	}
	return out
}

// LintAnswer is what the checks have found. A place is of the source with its index; -1 = of none.
type LintAnswer struct {
	Warnings []AnswerWarning  `json:"warnings"`
	Sources  []*pb.SourceInfo `json:"sources"`
	Error    *AnswerError     `json:"buildError,omitempty"`
}

// AnswerWarning is a finding.
type AnswerWarning struct {
	RuleName    string       `json:"ruleName"`
	Description string       `json:"description,omitempty"`
	URL         string       `json:"url,omitempty"`
	Detail      string       `json:"detail,omitempty"`
	Location    *pb.Location `json:"location,omitempty"`
}

// AnswerError is why a Dockerfile cannot be built.
type AnswerError struct {
	Message  string       `json:"message"`
	Location *pb.Location `json:"location"`
}

// NewLintAnswer puts findings into BuildKit's form. message words an error.
func NewLintAnswer(c *dockerfile.Checked, message func(error) string) *LintAnswer {
	out := &LintAnswer{}
	var all []*diag.Source
	at := func(spans []diag.Span) *pb.Location {
		l := location(spans)
		if l == nil || spans[0].Source == nil {
			return &pb.Location{SourceIndex: -1}
		}
		i := slices.Index(all, spans[0].Source)
		if i < 0 {
			i = len(all)
			all = append(all, spans[0].Source)
			out.Sources = append(out.Sources, llb.SourceInfo(spans[0].Source))
		}
		l.SourceIndex = int32(i)
		return l
	}
	at([]diag.Span{c.Source.Lines(1, 1)}) // the first source is the Dockerfile, whether something is found in it or not
	for _, w := range c.Warnings {
		out.Warnings = append(out.Warnings, AnswerWarning{w.Rule, strings.Join(w.Detail, "\n"), w.URL, w.Msg, at(w.At)})
	}
	if err := cmp.Or(c.Err, c.Failure); err != nil {
		out.Error = &AnswerError{message(err), at(diag.Flatten(err).At)}
		if out.Error.Location.SourceIndex < 0 {
			out.Error.Location.SourceIndex = 0
		}
	}
	return out
}

func location(at []diag.Span) *pb.Location {
	if len(at) == 0 {
		return nil
	}
	l := &pb.Location{}
	for _, s := range at {
		l.Ranges = append(l.Ranges, llb.Ranges(s)...)
	}
	return l
}
