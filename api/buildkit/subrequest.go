package buildkit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/moby/buildkit/solver/errdefs"

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

type named struct {
	Name        string `json:"name"`
	Description string `json:"description"`
}

func questions() []question {
	asked := func(name, text string, more ...named) question {
		return question{Name: name, Version: "1.0.0", Type: "rpc", Description: text, Metadata: append([]named{{Name: "result.json"}, {Name: "result.txt"}}, more...)}
	}
	outline := asked(askOutline, "List all parameters current build target supports")
	outline.Opts = []named{{"target", "Target build stage"}}
	return []question{
		outline,
		asked(askTargets, "List all targets current build supports"),
		asked(askLint, "Lint a Dockerfile", named{Name: "result.statuscode"}),
		asked(askDescribe, "List available subrequest types"),
	}
}

func (b *bridge) subrequest(ctx context.Context, id string, req dockerfile.Request, inputs map[string]engine.Input) (*result, error) {
	switch id {
	case askDescribe:
		all := questions()
		return answer(all, func(w *texts) {
			w.table(1, "NAME\tVERSION\tDESCRIPTION")
			for _, q := range all {
				w.row("%s\t%s\t%s", strings.TrimPrefix(q.Name, "frontend."), q.Version, q.Description)
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

// texts writes the tables of an answer for people.
type texts struct {
	bytes.Buffer
	tab *tabwriter.Writer
}

// table begins a table; pad is the space between columns.
func (w *texts) table(pad int, head string) {
	w.end()
	w.tab = tabwriter.NewWriter(&w.Buffer, 0, 0, pad, ' ', 0)
	if head != "" {
		w.row("%s", head)
	}
}

func (w *texts) row(format string, args ...any) { fmt.Fprintf(w.tab, format+"\n", args...) }

func (w *texts) end() {
	if w.tab != nil {
		w.tab.Flush()
	}
}

// answer is a result without a tree.
func answer(v any, print func(*texts)) (*result, error) {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	var w texts
	print(&w)
	w.end()
	return &result{meta: map[string][]byte{"result.json": raw, "result.txt": w.Bytes(), "version": []byte("1.0.0")}}, nil
}

func outlineAnswer(o *dockerfile.Outline) (*result, error) {
	return answer(engine.NewOutlineAnswer(o), func(w *texts) { outlineText(w, o) })
}

func outlineText(w *texts, o *dockerfile.Outline) {
	end := func() {
		w.end()
		w.tab = nil
		w.WriteByte('\n')
	}
	if o.Name != "" || o.Description != "" {
		w.table(1, "")
		w.row("TARGET:\t%s", first(o.Name, "(default)"))
		if o.Description != "" {
			w.row("DESCRIPTION:\t%s", o.Description)
		}
		end()
	}
	if len(o.Args) > 0 {
		w.table(3, "BUILD ARG\tVALUE\tDESCRIPTION")
		for _, a := range o.Args {
			w.row("%s\t%s\t%s", a.Name, a.Value, a.Description)
		}
		end()
	}
	for _, part := range []struct {
		title string
		needs []dockerfile.OutlineNeed
	}{{"SECRET", o.Secrets}, {"SSH", o.SSH}} {
		if len(part.needs) == 0 {
			continue
		}
		w.table(3, part.title+"\tREQUIRED")
		for _, n := range part.needs {
			w.row("%s\t%s", n.Name, map[bool]string{true: "true"}[n.Required])
		}
		end()
	}
}

func targetsAnswer(ts []dockerfile.TargetInfo, src *diag.Source) (*result, error) {
	return answer(engine.NewTargetsAnswer(ts, src), func(w *texts) {
		w.table(1, "TARGET\tDESCRIPTION")
		for _, t := range ts {
			name := t.Name
			if t.Default {
				name = strings.TrimSpace(name + " (default)")
			}
			w.row("%s\t%s", name, t.Description)
		}
	})
}

// lintAnswer is the answer to askLint.
func lintAnswer(c *dockerfile.Checked) (*result, error) {
	out := engine.NewLintAnswer(c, message)
	status := "0"
	if len(c.Warnings) > 0 || out.Error != nil {
		status = "1"
	}
	res, err := answer(out, func(w *texts) {
		for i, x := range c.Warnings {
			fmt.Fprintf(w, "\nWARNING: %s", x.Rule)
			if x.URL != "" {
				fmt.Fprintf(w, " - %s", x.URL)
			}
			fmt.Fprintf(w, "\n%s\n", x.Msg)
			if l := out.Warnings[i].Location; l.SourceIndex >= 0 {
				_ = (&errdefs.Source{Info: out.Sources[l.SourceIndex], Ranges: l.Ranges}).Print(w) // a buffer takes all
			}
		}
	})
	if err == nil {
		res.meta["result.statuscode"] = []byte(status)
	}
	return res, err
}
