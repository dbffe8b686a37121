package engine

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile"
)

// call answers a question about a Dockerfile instead of building it.
func (b *build) call(ctx context.Context, req *Request, d dockerfile.Request) (*Response, error) {
	var out bytes.Buffer
	resp := &Response{Metadata: map[string]any{}}
	switch {
	case req.Check || req.Call == "check":
		c, err := dockerfile.Check(ctx, d, b)
		if err != nil {
			return nil, err
		}
		if c.Err != nil {
			return nil, c.Err
		}
		resp.Metadata["warnings"] = c.Warnings
		resp.Metadata["check"] = NewLintAnswer(c, error.Error)
		printWarnings(&out, c.Warnings)
		resp.Findings = len(c.Warnings)
	case req.Call == "outline":
		o, err := dockerfile.NewOutline(ctx, d, b)
		if err != nil {
			return nil, err
		}
		resp.Metadata["outline"] = NewOutlineAnswer(o)
		printOutline(&out, o)
	case req.Call == "targets":
		ts, err := dockerfile.Targets(d.Source)
		if err != nil {
			return nil, err
		}
		resp.Metadata["targets"] = NewTargetsAnswer(ts, d.Source)
		w := tabwriter.NewWriter(&out, 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "TARGET\tDESCRIPTION")
		for _, t := range ts {
			name := t.Name
			if t.Default {
				name = strings.TrimSpace(name + " (default)")
			}
			if name == "" {
				continue
			}
			fmt.Fprintf(w, "%s\t%s\n", name, t.Description)
		}
		w.Flush()
	default:
		return nil, unknownCall(req.Call)
	}
	resp.Text = out.String()
	return resp, nil
}

func unknownCall(name string) error {
	return diag.Errorf(diag.Invalid, "unknown method %q", name).WithHint("it must be build, check, outline or targets")
}

func printWarnings(w io.Writer, warnings []diag.Warning) {
	if len(warnings) == 0 {
		fmt.Fprintln(w, "Check complete, no warnings found.")
		return
	}
	noun := "warnings"
	if len(warnings) == 1 {
		noun = "warning"
	}
	fmt.Fprintf(w, "%d %s found\n", len(warnings), noun)
	for _, x := range warnings {
		fmt.Fprintln(w)
		diag.RenderWarning(w, &x)
	}
}

func printOutline(out io.Writer, o *dockerfile.Outline) {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	if o.Name != "" {
		fmt.Fprintf(w, "TARGET:\t%s\n", o.Name)
	}
	if o.Description != "" {
		fmt.Fprintf(w, "DESCRIPTION:\t%s\n", o.Description)
	}
	if len(o.Args) > 0 {
		fmt.Fprintln(w, "\nBUILD ARG\tVALUE\tDESCRIPTION")
		for _, a := range o.Args {
			fmt.Fprintf(w, "%s\t%s\t%s\n", a.Name, a.Value, a.Description)
		}
	}
	for _, part := range []struct {
		title string
		needs []dockerfile.OutlineNeed
	}{{"SECRET", o.Secrets}, {"SSH", o.SSH}, {"CACHE", o.Cache}} {
		if len(part.needs) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n%s\tREQUIRED\n", part.title)
		for _, n := range part.needs {
			fmt.Fprintf(w, "%s\t%t\n", n.Name, n.Required)
		}
	}
	w.Flush()
}

// readable turns what clients of the wire protocol get as base64 into JSON for a file that people read.
func readable(key, value string) any {
	if key != "containerimage.descriptor" {
		return value
	}
	raw, err := base64.StdEncoding.DecodeString(value)
	if err != nil || !json.Valid(raw) {
		return value
	}
	return json.RawMessage(raw)
}

func formatUnix(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }
