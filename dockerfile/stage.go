package dockerfile

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

const scratch = "scratch"

// stage is a FROM with its instructions, or an image that an instruction names (external): that has no instructions
// and nobody sees it.
type stage struct {
	p        *planner
	inst     *instructions.Stage
	name     string // for people; "" if there is only one
	ref      string // the base's name, expanded; in full once it is resolved
	blank    string // a variable of the base's name that is empty; "" = none
	base     *stage // the base, if it is a stage
	platform *graph.Platform
	named    *namedContext // what replaces the stage
	external bool
	commands []command
	noCache  bool

	resolved  bool // the base is known
	triggered bool // its ONBUILD triggers are among the commands
	done      bool

	total, index int // steps, for their names

	root   graph.Edge
	began  mark          // what the stage began with
	start  *image.Config // the configuration that it began with
	out    *output       // where the stage makes its own layers; nil = it does not
	sealed *image.Sealed // what it has made of them, or its base
	env    *env          // what a RUN sees: ENV and ARG, and those of the base
	cfg    *image.Config
	from   *image.Base
	args   []instructions.KeyValuePairOptional // ARGs in scope, for the history

	historySize int // bytes of the rows that the stage and its bases added

	workdirSet                   bool
	cmd, entrypoint, healthcheck []diag.Span // where they were set, if they were
	outline                      outlineInfo
}

// command is an instruction with the stages that it reads, one per --from or --mount, nil where it has none.
type command struct {
	instructions.Command
	sources []*stage
	onBuild bool
	rawFrom string // COPY's --from before expansion
}

func (s *stage) at() []diag.Span { return spans(s.p.req.Source, s.inst.Location) }

// located gives an error the place of the stage's FROM.
func (s *stage) located(err error) error { return located(s.p.req.Source, err, s.inst.Location) }

func (p *planner) addStage(s *stage) {
	p.stages = append(p.stages, s)
	if b, ok := p.byName[s.ref]; ok && s.named == nil {
		s.base = b
	}
	if s.inst.Name != "" {
		p.byName[strings.ToLower(s.inst.Name)] = s
	}
}

// names are the stages' names, for suggestions.
func (p *planner) names() []string {
	var out []string
	for _, s := range p.stages {
		if s.inst.Name != "" {
			out = append(out, s.inst.Name)
		}
		for _, c := range s.inst.Commands {
			if sq, ok := c.(*squashCommand); ok && sq.As != "" {
				out = append(out, sq.As)
			}
		}
	}
	return out
}

// find looks a stage up by name or, like COPY --from, by index.
func (p *planner) find(name string) (*stage, error) {
	if s, ok := p.byName[strings.ToLower(name)]; ok {
		return s, nil
	}
	if i, err := strconv.Atoi(name); err == nil {
		if i < 0 || i >= len(p.file.stages) {
			return nil, invalidf("invalid stage index: %d", i).
				WithHint("the indexes of the stages are 0 to %d", len(p.file.stages)-1)
		}
		return p.stages[i], nil
	}
	return nil, nil
}

func (p *planner) findTarget() (*stage, error) {
	if p.req.Target == "" {
		return p.stages[len(p.stages)-1], nil
	}
	s, err := p.find(p.req.Target)
	if err != nil {
		return nil, err
	}
	if s == nil {
		e := diag.Errorf(diag.NotFound, "target stage %q could not be found", p.req.Target)
		if names := p.names(); diag.Suggest(p.req.Target, names) == "" && len(names) > 0 {
			return nil, e.WithHint("the stages are: %s", strings.Join(names, ", "))
		}
		return nil, didYouMean(e, p.req.Target, p.names())
	}
	return s, nil
}

// link finds the stages that each instruction reads.
func (p *planner) link() error {
	for _, s := range slices.Clone(p.stages) {
		if s.named != nil {
			continue // replaced as a whole: its instructions do not run
		}
		vars := p.fromVars()
		for _, ic := range s.inst.Commands {
			if a, ok := ic.(*instructions.ArgCommand); ok {
				vars.declare(a)
			}
			c, err := p.linkCommand(ic, vars)
			if err != nil {
				return located(p.req.Source, err, ic.Location())
			}
			if sq, ok := ic.(*squashCommand); ok && sq.As != "" {
				p.byName[sq.As].commands = slices.Clone(s.commands)
			}
			s.commands = append(s.commands, c)
		}
	}
	if err := p.checkCycles(); err != nil {
		return err
	}
	if len(p.stages) == 1 {
		p.stages[0].name = ""
	}
	return nil
}

func (p *planner) linkCommand(ic instructions.Command, vars *fromVars) (command, error) {
	c := command{Command: ic}
	switch ic := ic.(type) {
	case *instructions.CopyCommand:
		if ic.From == "" {
			return c, nil
		}
		name, err := vars.expand(ic.From)
		if err != nil {
			return c, err
		}
		c.rawFrom, ic.From = ic.From, name
		src, err := p.source(name, ic)
		c.sources = []*stage{src}
		return c, err
	case *instructions.RunCommand:
		for _, m := range instructions.GetMounts(ic) {
			if m.From == "" {
				c.sources = append(c.sources, nil)
				continue
			}
			src, err := p.source(m.From, ic)
			if err != nil {
				return c, err
			}
			c.sources = append(c.sources, src)
		}
	}
	return c, nil
}

// source is the stage or image that an instruction names.
func (p *planner) source(name string, c instructions.Command) (*stage, error) {
	s, err := p.find(name)
	if s != nil || err != nil {
		return s, err
	}
	s = &stage{p: p, inst: &instructions.Stage{BaseName: name, Location: c.Location(), Comments: c.Comments()}, ref: name, external: true}
	p.addStage(s)
	return s, nil
}

// checkCycles refuses stages that need each other.
func (p *planner) checkCycles() error {
	state := map[*stage]int{} // 1 = being visited, 2 = free of cycles
	var visit func(s *stage) error
	visit = func(s *stage) error {
		if state[s] == 2 {
			return nil
		}
		state[s] = 1
		for _, c := range s.commands {
			for _, d := range c.sources {
				if d == nil {
					continue
				}
				if state[d] == 1 {
					err := invalidf("circular dependency detected on stage: %s", d.title())
					return located(p.req.Source, err, c.Location())
				}
				if err := visit(d); err != nil {
					return err
				}
			}
		}
		if s.base != nil {
			if err := visit(s.base); err != nil {
				return err
			}
		}
		state[s] = 2
		return nil
	}
	for _, s := range p.stages {
		if err := visit(s); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) title() string {
	if s.name != "" {
		return s.name
	}
	return s.ref
}

// reachable is the stages that the target needs.
func (p *planner) reachable(target *stage) map[*stage]bool {
	out := map[*stage]bool{}
	var visit func(s *stage)
	visit = func(s *stage) {
		if s == nil || out[s] {
			return
		}
		out[s] = true
		visit(s.base)
		for _, c := range s.commands {
			for _, d := range c.sources {
				visit(d)
			}
		}
	}
	visit(target)
	if p.all {
		for _, s := range p.stages {
			visit(s)
		}
	}
	return out
}

// run executes a stage's instructions.
func (s *stage) run(ctx context.Context) error {
	if s.base != nil {
		if err := s.base.complete(ctx); err != nil {
			return err
		}
	}
	s.inherit()
	s.began, s.start = mark{s.root, len(s.cfg.History)}, s.cfg.Clone()
	if s.platform == nil {
		s.platform = &s.p.target
	}
	if _, ok := lookupList(s.cfg.Config.Env, "PATH"); !ok && s.platform.OS != "windows" {
		s.cfg.Config.Env = append(s.cfg.Config.Env, "PATH="+defaultPath)
	}
	for _, kv := range s.cfg.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		s.env.set(k, v)
	}
	if s.cfg.Config.WorkingDir != "" {
		if err := s.setWorkdir(s.cfg.Config.WorkingDir); err != nil {
			return s.located(err)
		}
	}
	for _, c := range s.commands {
		if err := ctx.Err(); err != nil {
			return err
		}
		st := &step{stage: s, c: c, at: spans(s.p.req.Source, c.Location()), lint: s.p.lint.With(c.Comments())}
		if err := st.run(); err != nil {
			if c.onBuild {
				return s.triggerError(fmt.Sprint(c.Command), err)
			}
			return located(s.p.req.Source, err, c.Location())
		}
	}
	if s.out != nil {
		s.seal()
	}
	s.done = true
	return nil
}

// inherit takes over what a base stage left.
func (s *stage) inherit() {
	if b := s.base; b != nil {
		s.root, s.platform, s.from = b.root, b.platform, b.from
		s.cfg = b.cfg.Clone()
		s.cfg.Config.OnBuild = nil
		s.env = b.env.clone()
		for _, kv := range s.cfg.Config.Env { // after the ARGs
			k, v, _ := strings.Cut(kv, "=")
			s.env.set(k, v)
		}
		s.workdirSet = b.workdirSet
		s.args = slices.Clone(b.args)
		s.historySize = b.historySize
		s.sealed = b.sealed
		return
	}
	s.env = newEnv()
}

// defaultPath is the PATH of an image that sets none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// empty is the configuration that scratch stands for.
func empty(pf graph.Platform) *image.Config {
	c := &image.Config{OS: pf.OS, Architecture: pf.Architecture, Variant: pf.Variant, OSVersion: pf.OSVersion, OSFeatures: slices.Clone(pf.OSFeatures)}
	c.RootFS.Type = "layers"
	c.Config.WorkingDir = "/"
	if pf.OS != "windows" {
		c.Config.Env = []string{"PATH=" + defaultPath}
	}
	return c
}

// commit adds a history row. The images that have it are published: it has no secrets of URLs.
func (s *stage) commit(layer bool, format string, args ...any) {
	row := diag.Redact(fmt.Sprintf(format, args...))
	s.historySize += len(row)
	s.cfg.History = append(s.cfg.History, image.History{
		CreatedBy: row, Comment: "buildkit.dockerfile.v0", EmptyLayer: !layer, Created: s.p.epoch,
	})
}
