package dockerfile

import "github.com/moby/buildkit/frontend/dockerfile/instructions"

func (st *step) volume(c *instructions.VolumeCommand) error {
	if st.cfg.Config.Volumes == nil {
		st.cfg.Config.Volumes = map[string]struct{}{}
	}
	for _, v := range c.Volumes {
		if v == "" {
			return invalidf("VOLUME specified can not be an empty string")
		}
		st.cfg.Config.Volumes[v] = struct{}{}
	}
	st.commit(false, "VOLUME %v", c.Volumes)
	return nil
}
