package dockerfile

import (
	"context"
	"encoding/json"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/strictjson"
)

// outputCommand is OUTPUT [--mode=] [--previous=] [--generator=] [--max-layers=] DIR.
type outputCommand struct {
	own
	Mode      string
	Previous  string
	Generator string // NAME[,k=v]
	Max       string
	Dir       string
}

// DefaultMaxLayers is how many layers an image can have that every runtime can mount.
const DefaultMaxLayers = image.MaxLayers

func parseOutput(base own, flags map[string]string, words []string) (*outputCommand, error) {
	c := &outputCommand{own: base, Mode: flags["mode"], Previous: flags["previous"], Generator: flags["generator"], Max: flags["max-layers"]}
	if len(words) != 1 {
		return nil, invalidf("OUTPUT requires exactly one argument, the directory").WithHint("write it as OUTPUT /layers")
	}
	c.Dir = words[0]
	return c, nil
}

// Expand implements instructions.SupportsSingleWordExpansion.
func (c *outputCommand) Expand(expand instructions.SingleWordExpander) error {
	for _, w := range []*string{&c.Mode, &c.Previous, &c.Generator, &c.Max, &c.Dir} {
		v, err := expand(*w)
		if err != nil {
			return err
		}
		*w = v
	}
	return nil
}

// addOutputs puts what the request says of the layers of stages ("STAGE:/dir[,mode=append,…]") before their instructions.
func (p *planner) addOutputs() error {
	for _, text := range p.req.OutputLayers {
		parts := strings.Split(text, ",")
		name, dir, ok := strings.Cut(parts[0], ":")
		if !ok || name == "" || dir == "" {
			return invalidf("layers of a stage: %q: it must be STAGE:/dir", text)
		}
		s, err := p.find(name)
		if err != nil {
			return err
		}
		if s == nil || !slices.Contains(p.stages, s) {
			return didYouMean(diag.Errorf(diag.NotFound, "layers of a stage: stage %q could not be found", name), name, p.names())
		}
		flags := map[string]string{}
		for _, kv := range parts[1:] {
			k, v, _ := strings.Cut(kv, "=")
			if !contains(flagsOf("OUTPUT"), k) || v == "" {
				return didYouMean(invalidf("layers of a stage: %q: unknown option %q", text, k), k, flagsOf("OUTPUT"))
			}
			flags[k] = v
		}
		code := "OUTPUT " + dir
		c, err := parseOutput(own{code: code, name: "OUTPUT", location: s.inst.Location, comments: s.inst.Comments}, flags, []string{dir})
		if err != nil {
			return err
		}
		s.inst.Commands = append([]instructions.Command{c}, s.inst.Commands...)
		s.total++
	}
	return p.addRelayer()
}

// relayerDir is the directory of the OUTPUT that divides a target. No instruction follows it, so nothing sees the directory.
const relayerDir = "/.strata-layers"

// addRelayer ends the target with an OUTPUT that divides its root file system: `strata build --relayer`.
func (p *planner) addRelayer() error {
	if p.req.Relayer == "" {
		return nil
	}
	s, err := p.findTarget()
	if err != nil {
		return err
	}
	for _, c := range s.inst.Commands {
		if c, ok := c.(*outputCommand); ok {
			return invalidf("the stage makes its own layers with %s, so they cannot be divided again", c.code).WithHint("drop --relayer, or use OUTPUT --generator=%s", p.req.Relayer)
		}
	}
	code := "OUTPUT --generator=" + p.req.Relayer + " " + relayerDir
	c, err := parseOutput(own{code: code, name: "OUTPUT", location: s.inst.Location, comments: s.inst.Comments},
		map[string]string{"generator": p.req.Relayer}, []string{relayerDir})
	if err != nil {
		return err
	}
	s.inst.Commands = append(s.inst.Commands, c)
	s.total++
	return nil
}

// output is the directory of a stage that makes its own layers.
type output struct {
	c      *outputCommand
	op     graph.Layers
	at     []diag.Span
	title  string
	first  graph.Edge // the directory as the stage's steps find it
	tree   graph.Edge // as they have left it so far
	base   graph.Edge
	cfg    *image.Config // the base's
	after  []command     // the instructions that follow
	record graph.Edge    // once it is sealed: what was verified
}

// output is OUTPUT: the steps that follow see the directory; the stage's image is what is in it at the end.
func (st *step) output(c *outputCommand) error {
	if st.out != nil {
		return invalidf("a stage has one OUTPUT, and this one has another at line %d", st.out.at[0].First)
	}
	o := &output{c: c, at: st.at, title: c.String(), base: st.began.root, cfg: st.start}
	if err := st.outputOp(o); err != nil {
		return err
	}
	api, err := st.outputAPI(&o.op)
	if err != nil {
		return err
	}
	when := time.Unix(0, 0).UTC()
	if st.p.epoch != nil {
		when = *st.p.epoch
	}
	f := &fileOp{cur: graph.None}
	f.do(graph.Action{Mkdir: &graph.Mkdir{Path: "/output/blobs/sha256", Mode: 0o755, Parents: true, Time: &when}})
	f.do(graph.Action{Mkdir: &graph.Mkdir{Path: "/input", Mode: 0o755, Time: &when}})
	f.do(graph.Action{Mkfile: &graph.Mkfile{Path: "/history.json", Mode: 0o644, Data: []byte("[]\n"), Time: &when}})
	f.do(graph.Action{Mkfile: &graph.Mkfile{Path: "/api.json", Mode: 0o644, Data: api, Time: &when}})
	o.first = f.edge(graph.Named("[internal] preparing %s", o.op.Dir), graph.From(st.at...))
	o.tree = o.first
	for i := range st.commands {
		if st.commands[i].Command == st.c.Command {
			o.after = st.commands[i+1:]
		}
	}
	st.out = o
	return nil
}

func (st *step) outputOp(o *output) error {
	c := o.c
	dir := path.Clean(c.Dir)
	if !path.IsAbs(c.Dir) || dir == "/" {
		return invalidf("OUTPUT: %q must be an absolute path, and not the root", c.Dir).WithHint("write it as OUTPUT /layers")
	}
	o.op = graph.Layers{Dir: dir, Mode: graph.LayersReplace, Max: DefaultMaxLayers, Epoch: st.p.epoch}
	switch c.Mode {
	case "", "replace":
	case "append":
		o.op.Mode = graph.LayersAppend
	default:
		return didYouMean(invalidf("invalid mode: %q: it must be replace or append", c.Mode), c.Mode, []string{"replace", "append"})
	}
	if c.Max != "" {
		n, err := strconv.Atoi(c.Max)
		if err != nil || n < 1 || n > DefaultMaxLayers {
			return invalidf("invalid max-layers: %q: it must be a number from 1 to %d", c.Max, DefaultMaxLayers)
		}
		o.op.Max = n
	}
	if c.Generator != "" {
		if o.op.Mode == graph.LayersAppend {
			return invalidf("--generator divides the whole root file system, so it cannot be combined with --mode=append")
		}
		parts := strings.Split(c.Generator, ",")
		o.op.Generator = parts[0]
		for _, kv := range parts[1:] {
			k, v, ok := strings.Cut(kv, "=")
			if !ok || k == "" {
				return invalidf("invalid generator: %q: %q is not NAME=VALUE", c.Generator, kv)
			}
			if o.op.Options == nil {
				o.op.Options = map[string]string{}
			}
			o.op.Options[k] = v
		}
	}
	if c.Previous == "none" || st.p.req.Rerun {
		return nil
	}
	o.op.Previous = &graph.Previous{Name: st.title2() + " " + dir}
	if c.Previous != "" && c.Previous != "auto" {
		o.op.Previous.Ref = c.Previous
	}
	if st.from != nil {
		o.op.Previous.Base = st.from.Name
	}
	return nil
}

// title2 names the stage among those of its file.
func (s *stage) title2() string {
	if s.name != "" {
		return s.name
	}
	return strconv.Itoa(slices.Index(s.p.stages, s))
}

func (st *step) outputAPI(op *graph.Layers) ([]byte, error) {
	pf := graph.NormalizePlatform(*st.platform)
	api := image.OutputAPI{
		APIVersion: 1, MaxLayers: op.Max, Mode: op.Mode,
		Platform: image.OutputPlatform{OS: pf.OS, Architecture: pf.Architecture, Variant: pf.Variant},
	}
	if st.p.epoch != nil {
		sec := st.p.epoch.Unix()
		api.SourceDateEpoch = &sec
	}
	if st.from != nil && st.base == nil {
		api.Base = &image.OutputBase{Name: st.from.Name, Digest: st.from.Digest}
	}
	b, err := json.MarshalIndent(api, "", "  ")
	return append(b, '\n'), err
}

// inOutput returns the path within the directory of OUTPUT, if p is there.
func (s *stage) inOutput(p string) (string, bool) {
	if s.out == nil {
		return "", false
	}
	rel, ok := strings.CutPrefix(p, s.out.op.Dir)
	if !ok || rel != "" && rel[0] != '/' {
		return "", false
	}
	return path.Join("/", rel) + trailing(rel), true
}

func trailing(p string) string {
	if len(p) > 1 && strings.HasSuffix(p, "/") {
		return "/"
	}
	return ""
}

// mount shows the directory to a RUN. What it writes there becomes the vertex's second output.
func (o *output) mount(x *execOp) {
	dir := o.op.Dir
	x.op.Mounts = append(x.op.Mounts,
		graph.Mount{Type: graph.MountBind, Target: dir, Input: x.input(o.tree), Output: 1},
		graph.Mount{Type: graph.MountBind, Target: dir + "/api.json", Input: x.input(o.first), Source: "/api.json", Output: graph.None, ReadOnly: true},
		graph.Mount{Type: graph.MountInput, Target: dir, Input: graph.None, Output: graph.None, ReadOnly: true, Previous: o.op.Previous})
}

// seal ends a stage with an OUTPUT.
func (s *stage) seal() {
	o := s.out
	in := []graph.Edge{o.tree, o.base}
	if o.op.Generator != "" {
		in = append(in, s.root)
	}
	opts := []graph.Option{graph.On(*s.platform), graph.From(o.at...), graph.Named("%s", s.stepName(o.title))}
	if s.noCache || s.p.req.Rerun {
		opts = append(opts, graph.NoCache)
	}
	op := o.op
	v := graph.New(&op, in, opts...)
	s.root, o.record = graph.Edge{V: v}, graph.Edge{V: v, Out: 1}
	if op.Mode == graph.LayersReplace {
		s.from = nil
	}
}

// complete gives a stage with an OUTPUT the configuration that it has: the base's if that is kept, what the build wrote, and
// the instructions that follow OUTPUT. That needs the build's result.
func (s *stage) complete(ctx context.Context) error {
	if s.out == nil || s.sealed != nil || s.p.dry {
		return nil
	}
	data, err := s.p.r.ReadFile(ctx, s.out.record, image.SealedPath, image.MaxSealed)
	if err != nil {
		return err
	}
	var sealed image.Sealed
	if err := strictjson.Unmarshal(data, &sealed); err != nil {
		return diag.Errorf(diag.Internal, "OUTPUT: the record of the layers: %w", err)
	}
	s.sealed = &sealed
	if s.out.op.Generator != "" {
		s.generated()
		return nil
	}
	s.cfg = empty(*s.platform)
	if s.out.op.Mode == graph.LayersAppend {
		s.cfg = s.out.cfg.Clone()
	}
	s.cfg.Apply(sealed.Config)
	for _, l := range sealed.Layers {
		s.cfg.History = append(s.cfg.History, l.History)
	}
	s.args, s.cmd, s.entrypoint, s.healthcheck = nil, nil, nil, nil
	s.env = newEnv()
	for _, kv := range s.cfg.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		s.env.set(k, v)
	}
	for _, c := range s.out.after {
		if err := (&step{stage: s, c: c, at: spans(s.p.req.Source, c.Location())}).configure(); err != nil {
			return located(s.p.req.Source, err, c.Location())
		}
	}
	return nil
}

// generated is for a stage whose root file system was divided into layers: the configuration is the stage's own.
func (s *stage) generated() {
	s.squashRows(0)
	for _, l := range s.sealed.Layers {
		s.cfg.History = append(s.cfg.History, l.History)
	}
}

// configure applies an instruction that only changes the configuration once more.
func (st *step) configure() error {
	switch c := st.c.Command.(type) {
	case *instructions.WorkdirCommand:
		if err := st.setWorkdir(c.Path); err != nil {
			return err
		}
		st.commit(false, "WORKDIR %s", st.cfg.Config.WorkingDir)
	case *instructions.AddCommand, *instructions.ArgCommand, *instructions.CopyCommand, *instructions.RunCommand, *squashCommand, *outputCommand:
	default:
		return st.dispatch()
	}
	return nil
}
