package engine

import (
	"context"
	"slices"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile"
	"github.com/strata-build/strata/graph"
)

// changing are the instructions that change an image's configuration and nothing else, as in docker commit.
var changing = []string{"CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "ONBUILD", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"}

// change builds an image of the store again under its name, with instructions applied to it.
func (b *build) change(ctx context.Context, name string, p graph.Platform, opt ImportOptions) error {
	text := "FROM " + name + "\n"
	for _, c := range opt.Changes {
		word, _, _ := strings.Cut(strings.TrimSpace(c), " ")
		if !slices.Contains(changing, strings.ToUpper(word)) {
			err := diag.Errorf(diag.Invalid, "change %q: it must begin with one of %s", c, strings.Join(changing, ", "))
			if near := diag.Suggest(word, changing); near != "" {
				err = err.WithHint("did you mean %s?", near)
			}
			return err
		}
		text += c + "\n"
	}
	src := &diag.Source{Name: "change", Data: []byte(text)}
	plan, err := dockerfile.Plan(ctx, dockerfile.Request{Source: src, Platforms: []graph.Platform{p}}, b)
	if err != nil {
		return err
	}
	if h := plan.Targets[0].Config.History; opt.Message != "" && len(h) > 0 {
		h[0].Comment = opt.Message
	}
	outs, err := NewOutputs([]Output{{Type: "image", Attrs: map[string]string{"name": name}}}, nil)
	if err != nil {
		return err
	}
	_, err = (&Job{b}).Export(ctx, plan, outs, ExportOptions{})
	return err
}
