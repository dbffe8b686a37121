package buildkit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile"
	"github.com/strata-build/strata/engine"
)

// Questions that a client may ask about a Dockerfile. Source: frontend/subrequests.
const (
	askDescribe = "frontend.subrequests.describe"
	askOutline  = "frontend.outline"
	askTargets  = "frontend.targets"
	askLint     = "frontend.lint"
)

// question describes one of them to clients.
type question struct {
	Name        string  `json:"name"`
	Version     string  `json:"version"`
	Type        string  `json:"type"`
	Description string  `json:"description"`
	Opts        []named `json:"opts"`
	Metadata    []named `json:"metadata"`
}

type named struct{ Name string }

func (b *bridge) subrequest(ctx context.Context, id string, req dockerfile.Request, inputs map[string]engine.Input) (*result, error) {
	switch id {
	case askDescribe:
		var all []question
		for _, q := range [][2]string{
			{askOutline, "List all parameters current build target supports"},
			{askTargets, "List all targets current build supports"},
			{askLint, "Lint source code"},
			{askDescribe, "List available subrequest types"},
		} {
			all = append(all, question{
				Name: q[0], Version: "1.0.0", Type: "rpc", Description: q[1], Metadata: []named{{"result.json"}, {"result.txt"}},
			})
		}
		return answer(all, func(w *tabwriter.Writer) {
			for _, q := range all {
				fmt.Fprintf(w, "%s\t%s\t%s\n", q.Name, q.Version, q.Description)
			}
		})
	case askOutline:
		o, err := b.job.Outline(ctx, req, inputs)
		if err != nil {
			return nil, err
		}
		return outlineAnswer(o)
	case askTargets:
		ts, src, err := b.job.Targets(ctx, req, inputs)
		if err != nil {
			return nil, err
		}
		return targetsAnswer(ts, src)
	case askLint:
		c, err := b.job.Check(ctx, req, inputs)
		if err != nil {
			return nil, err
		}
		return lintAnswer(c)
	}
	err := diag.Errorf(diag.Unsupported, "unsupported request %.80s", id)
	return nil, detailed{err, "Subrequest", &errdefs.Subrequest{Name: id}}
}

// answer is a result without a tree.
func answer(v any, print func(*tabwriter.Writer)) (*result, error) {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	w := tabwriter.NewWriter(&text, 0, 8, 2, ' ', 0)
	print(w)
	w.Flush()
	return &result{meta: map[string][]byte{"result.json": raw, "result.txt": text.Bytes(), "version": []byte("1.0.0")}}, nil
}

func location(at []diag.Span) *pb.Location {
	if len(at) == 0 {
		return nil
	}
	l := &pb.Location{}
	for _, s := range at {
		l.Ranges = append(l.Ranges, rangeOf(s))
	}
	return l
}

// need is a secret, an ssh agent or a cache mount in an outline.
type need struct {
	Name     string       `json:"name,omitempty"`
	ID       string       `json:"ID,omitempty"` // of a cache mount, instead of the name
	Required bool         `json:"required,omitempty"`
	Location *pb.Location `json:"location,omitempty"`
}

type argument struct {
	Name        string       `json:"name"`
	Description string       `json:"description,omitempty"`
	Value       string       `json:"value,omitempty"`
	Location    *pb.Location `json:"location,omitempty"`
}

func outlineAnswer(o *dockerfile.Outline) (*result, error) {
	out := struct {
		Name        string     `json:"name,omitempty"`
		Description string     `json:"description,omitempty"`
		Args        []argument `json:"args,omitempty"`
		Secrets     []need     `json:"secrets,omitempty"`
		SSH         []need     `json:"ssh,omitempty"`
		Cache       []need     `json:"cache,omitempty"`
		Sources     [][]byte   `json:"sources,omitempty"`
	}{Name: o.Name, Description: o.Description}
	for _, a := range o.Args {
		out.Args = append(out.Args, argument{a.Name, a.Description, a.Value, location(a.At)})
		if len(a.At) > 0 && out.Sources == nil && a.At[0].Source != nil {
			out.Sources = [][]byte{a.At[0].Source.Data}
		}
	}
	for _, n := range o.Secrets {
		out.Secrets = append(out.Secrets, need{Name: n.Name, Required: n.Required, Location: location(n.At)})
	}
	for _, n := range o.SSH {
		out.SSH = append(out.SSH, need{Name: n.Name, Required: n.Required, Location: location(n.At)})
	}
	for _, n := range o.Cache {
		out.Cache = append(out.Cache, need{ID: n.Name, Location: location(n.At)})
	}
	return answer(out, func(w *tabwriter.Writer) {
		if o.Name != "" {
			fmt.Fprintf(w, "TARGET:\t%s\n", o.Name)
		}
		if o.Description != "" {
			fmt.Fprintf(w, "DESCRIPTION:\t%s\n", o.Description)
		}
		if len(o.Args) > 0 {
			fmt.Fprintf(w, "\nBUILD ARG\tVALUE\tDESCRIPTION\n")
		}
		for _, a := range o.Args {
			fmt.Fprintf(w, "%s\t%s\t%s\n", a.Name, a.Value, a.Description)
		}
		for title, needs := range map[string][]dockerfile.OutlineNeed{"SECRET": o.Secrets, "SSH": o.SSH} {
			if len(needs) > 0 {
				fmt.Fprintf(w, "\n%s\tREQUIRED\n", title)
			}
			for _, n := range needs {
				fmt.Fprintf(w, "%s\t%t\n", n.Name, n.Required)
			}
		}
	})
}

func targetsAnswer(ts []dockerfile.TargetInfo, src *diag.Source) (*result, error) {
	type target struct {
		Name        string       `json:"name,omitempty"`
		Default     bool         `json:"default,omitempty"`
		Description string       `json:"description,omitempty"`
		Base        string       `json:"base,omitempty"`
		Platform    string       `json:"platform,omitempty"`
		Location    *pb.Location `json:"location,omitempty"`
	}
	out := struct {
		Targets []target `json:"targets"`
		Sources [][]byte `json:"sources"`
	}{Sources: [][]byte{src.Data}}
	for _, t := range ts {
		out.Targets = append(out.Targets, target{t.Name, t.Default, t.Description, t.Base, t.Platform, location(t.At)})
	}
	return answer(out, func(w *tabwriter.Writer) {
		fmt.Fprintf(w, "TARGET\tDESCRIPTION\n")
		for _, t := range ts {
			name := t.Name
			if t.Default {
				name = strings.TrimSpace(name + " (default)")
			}
			if name != "" {
				fmt.Fprintf(w, "%s\t%s\n", name, t.Description)
			}
		}
	})
}

func lintAnswer(c *dockerfile.Checked) (*result, error) {
	type warning struct {
		RuleName    string       `json:"ruleName"`
		Description string       `json:"description,omitempty"`
		URL         string       `json:"url,omitempty"`
		Detail      string       `json:"detail,omitempty"`
		Location    *pb.Location `json:"location,omitempty"`
	}
	type failure struct {
		Message  string       `json:"message"`
		Location *pb.Location `json:"location,omitempty"`
	}
	out := struct {
		Warnings []warning        `json:"warnings"`
		Sources  []*pb.SourceInfo `json:"sources"`
		Error    *failure         `json:"buildError,omitempty"`
	}{}
	index := map[*diag.Source]int32{}
	at := func(spans []diag.Span) *pb.Location {
		l := location(spans)
		if l == nil {
			return nil
		}
		src := spans[0].Source
		if _, ok := index[src]; !ok && src != nil {
			index[src] = int32(len(out.Sources))
			out.Sources = append(out.Sources, sourceInfo(src))
		}
		l.SourceIndex = index[src]
		return l
	}
	for _, w := range c.Warnings {
		out.Warnings = append(out.Warnings, warning{w.Rule, strings.Join(w.Detail, "\n"), w.URL, w.Msg, at(w.At)})
	}
	if c.Err != nil {
		f := &failure{Message: c.Err.Error()}
		if d := diag.Flatten(c.Err); d != nil {
			f.Location = at(d.At)
		}
		out.Error = f
	}
	return answer(out, func(w *tabwriter.Writer) {
		for _, x := range c.Warnings {
			fmt.Fprintf(w, "\nWARNING: %s - %s\n%s\n", x.Rule, x.URL, x.Msg)
		}
	})
}
