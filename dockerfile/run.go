package dockerfile

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/strata-build/strata/graph"
)

// exec is RUN.
func (st *step) exec(c *instructions.RunCommand) error {
	x := newExecOp(st.root)
	args, summary, err := st.runArgs(c, x)
	if err != nil {
		return err
	}
	req := st.p.req
	x.op.Args = args
	x.op.Env = st.env.list()
	x.op.Cwd = st.cwd()
	x.op.User = st.cfg.Config.User
	x.op.Hostname = req.Hostname
	x.op.ExtraHosts = req.ExtraHosts
	x.op.Proxy, x.op.Limits = st.p.proxy, req.Limits
	x.op.Shell, x.op.Stubs = c.PrependShell, true
	x.op.Devices = slices.Clone(req.Devices)
	for _, d := range instructions.GetDevices(c) {
		x.op.Devices = append(x.op.Devices, graph.Device{Name: d.Name, Optional: !d.Required})
	}
	if err := st.confine(c, x.op); err != nil {
		return err
	}
	if st.out != nil {
		st.out.mount(x)
	}
	if err := st.mounts(c, x); err != nil {
		return err
	}
	opts := []graph.Option{graph.On(*st.platform), graph.From(st.at...), graph.Named("%s", st.title(st.describeRun(c, summary)))}
	if st.noCache || st.out != nil && st.p.req.Rerun {
		opts = append(opts, graph.NoCache)
	}
	v := graph.New(x.op, x.in, opts...)
	st.root = edge(v)
	if st.out != nil {
		st.out.tree = graph.Edge{V: v, Out: 1}
	}
	st.commit(true, "RUN %s # buildkit", strings.Join(append(st.argPrefix(), args...), " "))
	return nil
}

// confine is --network and --security.
func (st *step) confine(c *instructions.RunCommand, op *graph.Exec) error {
	switch n := instructions.GetNetwork(c); n {
	case instructions.NetworkDefault:
		op.Network = st.p.req.Network
	case instructions.NetworkNone:
		op.Network = graph.NetworkNone
	case instructions.NetworkHost:
		op.Network = graph.NetworkHost
	default:
		return invalidf("unsupported network mode %q", n)
	}
	if st.p.req.Proxied {
		op.Network = op.Network.Proxied()
	}
	switch s := instructions.GetSecurity(c); s {
	case instructions.SecuritySandbox:
	case instructions.SecurityInsecure:
		op.Security = graph.SecurityInsecure
	default:
		return invalidf("unsupported security mode %q", s)
	}
	return nil
}

// runArgs is the command line, and what to add to the step's name.
func (st *step) runArgs(c *instructions.RunCommand, x *execOp) (args []string, summary string, err error) {
	args = c.CmdLine
	if len(c.Files) > 0 {
		if len(args) != 1 || !c.PrependShell {
			return nil, "", invalidf("a heredoc needs the shell form of RUN")
		}
		if parser.MustParseHeredoc(args[0]) == nil {
			// The heredocs are redirections within a line: the shell reads them.
			var b strings.Builder
			b.WriteString(args[0])
			for _, f := range c.Files {
				b.WriteString("\n" + f.Data + f.Name)
			}
			return st.withShell([]string{b.String()}), "", nil
		}
		data := c.Files[0].Data
		summary = " (" + firstLine(data) + ")"
		if c.Files[0].Chomp {
			data = parser.ChompHeredocContent(data)
		}
		if strings.HasPrefix(data, "#!") && st.cfg.OS != "windows" {
			return st.withShell([]string{x.script(c.Files[0].Name, data)}), summary, nil
		}
		args = []string{data}
	}
	if c.PrependShell {
		args = st.withShell(args)
	}
	return args, summary, nil
}

// script mounts a file that the instruction itself holds, and returns its path.
func (x *execOp) script(name, data string) string {
	const dir = "/dev/pipes/"
	in := x.input(inlineDocument("/"+name, 0o755, data))
	x.op.Mounts = append(x.op.Mounts, graph.Mount{Type: graph.MountBind, Target: dir, Input: in, Output: graph.None, ReadOnly: true})
	return dir + name
}

func firstLine(doc string) string {
	first, _, more := strings.Cut(strings.ReplaceAll(strings.TrimSpace(doc), "\r\n", "\n"), "\n")
	if more {
		first += "..."
	}
	return first
}

// argPrefix is "|2 A=1 B=2": the build arguments of a RUN, as the history shows them.
func (s *stage) argPrefix() []string {
	var out []string
	at := map[string]int{}
	for _, a := range s.args {
		v, ok := s.env.Get(a.Key)
		if !ok {
			v = a.ValueString()
		}
		kv := a.Key + "=" + v
		if i, ok := at[a.Key]; ok {
			out[i] = kv
			continue
		}
		at[a.Key] = len(out)
		out = append(out, kv)
	}
	if len(out) > 0 {
		out = append([]string{fmt.Sprintf("|%d", len(out))}, out...)
	}
	return out
}

// describeRun is the text of a RUN for people: variables that the builder knows are shown with their values, those of
// the shell stay, and those that hold secrets become stars.
func (st *step) describeRun(c *instructions.RunCommand, summary string) string {
	lex := shell.NewLex(st.p.file.escape)
	lex.RawQuotes, lex.RawEscapes, lex.SkipUnsetEnv = true, true, true
	e := st.env
	for _, m := range instructions.GetMounts(c) {
		if m.Type == instructions.MountTypeSecret && m.Env != nil {
			if e == st.env {
				e = e.clone()
			}
			e.set(*m.Env, "****")
		}
	}
	return st.describe(lex, c.String()+summary, e)
}

// execOp is a command being put together: its vertex's inputs are those that mounts refer to.
type execOp struct {
	op *graph.Exec
	in []graph.Edge
}

func newExecOp(root graph.Edge) *execOp {
	x := &execOp{op: &graph.Exec{}}
	x.op.Mounts = []graph.Mount{{Type: graph.MountBind, Target: "/", Input: x.input(root), Output: 0}}
	return x
}

func (x *execOp) input(e graph.Edge) int {
	if e.IsScratch() {
		return graph.None
	}
	if i := slices.Index(x.in, e); i >= 0 {
		return i
	}
	x.in = append(x.in, e)
	return len(x.in) - 1
}
