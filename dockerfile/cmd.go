package dockerfile

import (
	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile/lint"
)

func (st *step) setCmd(c *instructions.CmdCommand) error {
	st.onlyOne(&st.cmd, c)
	st.cfg.Config.Cmd = st.commandLine(c, c.ShellDependantCmdLine)
	st.cfg.Config.ArgsEscaped = true
	st.commit(false, "CMD %q", st.cfg.Config.Cmd)
	return nil
}

// setEntrypoint is ENTRYPOINT: it drops a CMD that the base set, but not one of this stage.
func (st *step) setEntrypoint(c *instructions.EntrypointCommand) error {
	st.onlyOne(&st.entrypoint, c)
	st.cfg.Config.Entrypoint = st.commandLine(c, c.ShellDependantCmdLine)
	if st.cmd == nil {
		st.cfg.Config.Cmd = nil
	}
	st.commit(false, "ENTRYPOINT %q", st.cfg.Config.Entrypoint)
	return nil
}

func (st *step) commandLine(c instructions.Command, l instructions.ShellDependantCmdLine) []string {
	if !l.PrependShell {
		return l.CmdLine
	}
	lint.JSONArgsRecommended(st.lint, st.at, c.Name(), len(st.cfg.Config.Shell) > 0)
	return st.withShell(l.CmdLine)
}

// onlyOne lints an instruction of which the last one counts, and keeps its place.
func (st *step) onlyOne(earlier *[]diag.Span, c instructions.Command) {
	if *earlier != nil {
		lint.MultipleInstructionsDisallowed(st.lint, *earlier, c.Name())
	}
	*earlier = append([]diag.Span{}, st.at...)
}
