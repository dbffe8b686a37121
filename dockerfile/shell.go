package dockerfile

import (
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

func (st *step) shell(c *instructions.ShellCommand) error {
	st.cfg.Config.Shell = c.Shell
	st.commit(false, "SHELL %v", c.Shell)
	return nil
}

// withShell is the command line of a shell form.
func (s *stage) withShell(args []string) []string {
	sh := s.cfg.Config.Shell
	if len(sh) == 0 {
		sh = []string{"/bin/sh", "-c"}
		if s.cfg.OS == "windows" {
			sh = []string{"cmd", "/S", "/C"}
		}
	}
	return append(slices.Clone(sh), strings.Join(args, " "))
}
