package dockerfile

import (
	"maps"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile/lint"
)

// step is an instruction being executed in its stage.
type step struct {
	*stage
	c    command
	at   []diag.Span
	lint *lint.Linter
}

// run expands the variables of an instruction and executes it.
func (st *step) run() error {
	if err := st.expandWords(); err != nil {
		return err
	}
	if err := st.dispatch(); err != nil {
		return err
	}
	return st.checkSize()
}

func (st *step) dispatch() error {
	switch c := st.c.Command.(type) {
	case *instructions.AddCommand:
		return st.add(c)
	case *instructions.ArgCommand:
		return st.arg(c)
	case *instructions.CmdCommand:
		return st.setCmd(c)
	case *instructions.CopyCommand:
		return st.copy(c)
	case *instructions.EntrypointCommand:
		return st.setEntrypoint(c)
	case *instructions.EnvCommand:
		return st.setEnv(c)
	case *instructions.ExposeCommand:
		return st.expose(c)
	case *instructions.HealthCheckCommand:
		return st.setHealthcheck(c)
	case *instructions.LabelCommand:
		return st.label(c)
	case *instructions.MaintainerCommand:
		return st.maintainer(c)
	case *instructions.OnbuildCommand:
		return st.onbuild(c)
	case *outputCommand:
		return st.output(c)
	case *instructions.RunCommand:
		return st.exec(c)
	case *instructions.ShellCommand:
		return st.shell(c)
	case *squashCommand:
		return st.squash(c)
	case *instructions.StopSignalCommand:
		return st.stopSignal(c)
	case *instructions.UserCommand:
		return st.user(c)
	case *instructions.VolumeCommand:
		return st.volume(c)
	case *instructions.WorkdirCommand:
		return st.workdir(c)
	}
	return diag.Errorf(diag.Internal, "no implementation of instruction %s", st.c.Name())
}

// expandWords replaces variables. ARG does it itself, since a default that is not used need not be valid; heredocs keep
// their quotes.
func (st *step) expandWords() error {
	if _, isArg := st.c.Command.(*instructions.ArgCommand); isArg {
		return nil
	}
	with := func(lex *shell.Lex) instructions.SingleWordExpander {
		return func(word string) (string, error) {
			v, _, err := expandWord(lex, word, st.env)
			st.reportUnset(v.Unmatched)
			return v.Text, err
		}
	}
	if c, ok := st.c.Command.(instructions.SupportsSingleWordExpansion); ok {
		if err := c.Expand(with(st.p.lex)); err != nil {
			return err
		}
	}
	if c, ok := st.c.Command.(instructions.SupportsSingleWordExpansionRaw); ok {
		lex := shell.NewLex('\\')
		lex.SkipProcessQuotes = true
		return c.ExpandRaw(with(lex))
	}
	return nil
}

// reportUnset lints variables without a value, but not those that an ARG without a value declares.
func (st *step) reportUnset(unset map[string]struct{}) {
	if len(unset) == 0 || st.lint == nil {
		return
	}
	unset = maps.Clone(unset)
	for _, a := range st.args {
		delete(unset, a.Key)
	}
	maps.DeleteFunc(unset, func(k string, _ struct{}) bool { return sbomArg(k) })
	lint.UndefinedVar(st.lint, st.at, unset, st.env.Keys())
}
