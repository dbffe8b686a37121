package dockerfile

import (
	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/strata-build/strata/image"
)

func (st *step) setHealthcheck(c *instructions.HealthCheckCommand) error {
	st.onlyOne(&st.healthcheck, c)
	h := image.Healthcheck{
		Test: c.Health.Test, Interval: c.Health.Interval, Timeout: c.Health.Timeout,
		StartPeriod: c.Health.StartPeriod, StartInterval: c.Health.StartInterval, Retries: c.Health.Retries,
	}
	st.cfg.Config.Healthcheck = &h
	st.commit(false, "HEALTHCHECK %+v", h)
	return nil
}
