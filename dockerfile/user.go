package dockerfile

import "github.com/moby/buildkit/frontend/dockerfile/instructions"

func (st *step) user(c *instructions.UserCommand) error {
	st.cfg.Config.User = c.User
	st.commit(false, "USER %s", c.User)
	return nil
}
