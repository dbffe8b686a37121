package dockerfile

import (
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/strata-build/strata/dockerfile/lint"
)

func (st *step) label(c *instructions.LabelCommand) error {
	if st.cfg.Config.Labels == nil {
		st.cfg.Config.Labels = map[string]string{}
	}
	var b strings.Builder
	for _, kv := range c.Labels {
		if kv.NoDelim {
			lint.LegacyKeyValueFormat(st.lint, st.at, c.Name())
		}
		st.cfg.Config.Labels[kv.Key] = kv.Value
		b.WriteString(" " + kv.String())
	}
	st.commit(false, "LABEL%s", b.String())
	return nil
}
