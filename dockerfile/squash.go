package dockerfile

import (
	"regexp"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// squashCommand is SQUASH [--all] [--since=STAGE] [AS NAME].
type squashCommand struct {
	own
	All   bool
	Since string
	As    string // name of the result, "" = none
}

// stageName is what a stage may be called: BuildKit's rule.
var stageName = regexp.MustCompile(`^[a-z][a-z0-9-_.]*$`)

func parseSquash(base own, flags map[string]string, words []string) (*squashCommand, error) {
	c := &squashCommand{own: base, All: flags["all"] == "true", Since: flags["since"]}
	if c.All && c.Since != "" {
		return nil, invalidf("--all and --since exclude each other")
	}
	switch {
	case len(words) == 0:
		return c, nil
	case len(words) != 2 || !strings.EqualFold(words[0], "AS"):
		return nil, invalidf("SQUASH takes no arguments but AS NAME, not: %s", strings.Join(words, " "))
	}
	c.As = strings.ToLower(words[1])
	if !stageName.MatchString(c.As) || c.As == scratch {
		return nil, invalidf("invalid name for build stage: %q, name can't start with a number or contain symbols", words[1])
	}
	return c, nil
}

// nameSquashes makes the results of a stage's SQUASHes known by their names. They have what the stage has at that point once
// it has run.
func (p *planner) nameSquashes(s *stage) error {
	for _, ic := range s.inst.Commands {
		c, ok := ic.(*squashCommand)
		if !ok || c.As == "" {
			continue
		}
		if _, taken := p.byName[c.As]; taken {
			return located(p.req.Source, invalidf("the name %q is taken by another stage", c.As), c.Location())
		}
		p.byName[c.As] = &stage{
			p: p, name: c.As, ref: s.title(), base: s, outline: newOutlineInfo(),
			inst: &instructions.Stage{Name: c.As, BaseName: s.title(), Location: c.Location(), Comments: c.Comments()},
		}
	}
	return nil
}

// mark is a state of a stage: the layers above it are newer.
type mark struct {
	root graph.Edge
	rows int // of the history
}

// squash is SQUASH: the layers since a point become one, and so do their rows of the history.
func (st *step) squash(c *squashCommand) error {
	if st.out != nil {
		return invalidf("SQUASH after OUTPUT: the layers of this stage are those that it writes to %s", st.out.op.Dir)
	}
	from, err := st.since(c)
	if err != nil {
		return err
	}
	if st.root != from.root {
		op := graph.New(&graph.Squash{}, []graph.Edge{st.root, from.root}, graph.Named("%s", st.title(c.String())), graph.From(st.at...))
		st.root = edge(op)
		st.squashRows(from.rows)
		st.commit(true, "%s", squashRow)
		if !stackedOn(st.root, st.began.root) {
			st.began = from
		}
	}
	if c.All {
		st.from = nil
	}
	if c.As != "" {
		return st.snapshot(c.As)
	}
	return nil
}

const squashRow = "SQUASH"

// squashRows takes the layers from the rows after the first n.
func (s *stage) squashRows(n int) {
	for i := n; i < len(s.cfg.History); i++ {
		s.cfg.History[i].EmptyLayer = true
	}
}

// since is the point from which a SQUASH merges.
func (st *step) since(c *squashCommand) (mark, error) {
	if c.All {
		return mark{}, nil
	}
	if c.Since == "" {
		return st.began, nil
	}
	s, err := st.p.find(c.Since)
	if err != nil {
		return mark{}, err
	}
	if s == nil {
		return mark{}, didYouMean(invalidf("there is no stage %q", c.Since), c.Since, st.below())
	}
	if s == st.stage || !s.done || !stackedOn(st.root, s.root) {
		e := invalidf("the layers of this stage do not lie on those of %q", c.Since)
		if names := st.below(); len(names) > 0 {
			return mark{}, e.WithHint("they lie on: %s", strings.Join(names, ", "))
		}
		return mark{}, e.WithHint("no stage is below this one: leave --since out to merge the stage's own layers")
	}
	return mark{s.root, len(s.cfg.History)}, nil
}

// below is the names of the stages that this one is built on.
func (s *stage) below() []string {
	var names []string
	for b := s.base; b != nil; b = b.base {
		if b.inst.Name != "" {
			names = append(names, b.inst.Name)
		}
	}
	return names
}

// stackedOn reports whether the layers of a tree begin with those of another.
func stackedOn(e, base graph.Edge) bool {
	for e != base {
		next := graph.Below(e)
		if len(next) == 0 {
			return base.IsScratch()
		}
		e = next[0]
	}
	return true
}

// snapshot gives the stage's present state to the name of a SQUASH.
func (st *step) snapshot(name string) error {
	s := st.p.byName[name]
	if s == nil || s.base != st.stage || st.c.onBuild {
		return invalidf("SQUASH AS %s: a trigger cannot name a stage", name)
	}
	s.root, s.platform, s.from, s.began = st.root, st.platform, st.from, st.began
	s.cfg, s.env, s.args, s.workdirSet, s.historySize = st.cfg.Clone(), st.env.clone(), st.args, st.workdirSet, st.historySize
	s.done = true
	return nil
}

// squashTarget merges all that the build made on top of the target's base image: `strata build --squash`.
func (s *stage) squashTarget() {
	bottom := s
	for bottom.base != nil {
		bottom = bottom.base
	}
	from := bottom.began
	if !stackedOn(s.root, from.root) {
		from = mark{}
	}
	if s.root == from.root {
		return
	}
	op := graph.New(&graph.Squash{}, []graph.Edge{s.root, from.root}, graph.Named("[squash] %s", s.title()), graph.From(s.at()...))
	s.root = edge(op)
	s.squashRows(from.rows)
	s.cfg.History = append(s.cfg.History, image.History{CreatedBy: squashRow, Comment: "strata build --squash", Created: s.p.epoch})
}
