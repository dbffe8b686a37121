package dockerfile

import "github.com/moby/buildkit/frontend/dockerfile/instructions"

func (st *step) maintainer(c *instructions.MaintainerCommand) error {
	st.cfg.Author = c.Maintainer
	st.commit(false, "MAINTAINER %s", c.Maintainer)
	return nil
}
