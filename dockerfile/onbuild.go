package dockerfile

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/strata-build/strata/diag"
)

func (st *step) onbuild(c *instructions.OnbuildCommand) error {
	st.cfg.Config.OnBuild = append(st.cfg.Config.OnBuild, c.Expression)
	return nil
}

// addTriggers puts the ONBUILD instructions of the base before those of the stage. Images that an instruction only
// reads keep theirs to themselves.
func (s *stage) addTriggers() error {
	if s.triggered || s.external || s.named != nil {
		return nil
	}
	s.triggered = true
	var triggers []string
	if s.base == nil {
		triggers = s.cfg.Config.OnBuild
		s.cfg.Config.OnBuild = nil
	} else {
		for _, c := range s.base.commands {
			if ob, ok := c.Command.(*instructions.OnbuildCommand); ok {
				triggers = append(triggers, ob.Expression)
			}
		}
	}
	if n := len(triggers); n > maxInstructions {
		return s.triggerError(triggers[0], tooMany(n))
	}
	vars := s.p.fromVars()
	var cmds []command
	for _, t := range triggers {
		c, err := s.trigger(t, vars)
		if err != nil {
			return err
		}
		cmds = append(cmds, c)
	}
	s.commands = slices.Concat(cmds, s.commands)
	s.total += len(cmds)
	return nil
}

func (s *stage) trigger(text string, vars *fromVars) (command, error) {
	bad := func(err error) (command, error) { return command{}, s.triggerError(text, err) }
	res, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return bad(err)
	}
	if len(res.AST.Children) != 1 {
		return bad(invalidf("it should be a single instruction"))
	}
	n := res.AST.Children[0]
	at := span(s.p.req.Source, s.inst.Location)
	n.StartLine, n.EndLine = at.First, at.Last
	parsed, err := parseInstruction(n)
	if err != nil {
		return bad(err)
	}
	ic, ok := parsed.(instructions.Command)
	if !ok {
		return bad(invalidf("%s is not allowed", strings.ToUpper(n.Value)))
	}
	if a, ok := ic.(*instructions.ArgCommand); ok {
		vars.declare(a)
	}
	c, err := s.p.linkCommand(ic, vars)
	if err != nil {
		return bad(err)
	}
	c.onBuild = true
	return c, nil
}

// triggerError places an error of a trigger. A trigger is not in the file: it cannot be pointed at, only the FROM that
// brought it in.
func (s *stage) triggerError(text string, err error) error {
	kind := diag.KindOf(err)
	if kind == diag.Internal {
		kind = diag.Invalid
	}
	msg := suggestionTail.ReplaceAllString(err.Error(), "")
	e := &diag.Error{Kind: kind, Msg: fmt.Sprintf("ONBUILD trigger %q of the base: %s", text, msg), Err: err, At: s.at()}
	e.Hint = hintFor(msg, text)
	return e
}
