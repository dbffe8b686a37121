package dockerfile

import (
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/strata-build/strata/dockerfile/lint"
)

// setEnv is ENV: for the steps that follow, and for the image.
func (st *step) setEnv(c *instructions.EnvCommand) error {
	var b strings.Builder
	for _, kv := range c.Env {
		if kv.NoDelim {
			lint.LegacyKeyValueFormat(st.lint, st.at, c.Name())
		}
		lint.SecretsUsedInArgOrEnv(st.lint, st.at, "ENV", kv.Key)
		b.WriteString(" " + kv.String())
		st.env.set(kv.Key, kv.Value)
		st.cfg.Config.Env = setList(st.cfg.Config.Env, kv.Key, kv.Value)
	}
	st.commit(false, "ENV%s", b.String())
	return nil
}
