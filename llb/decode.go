package llb

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/apicaps"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// Limits of Options that are zero.
const (
	DefaultMaxOps   = 100_000
	DefaultMaxDepth = 10_000
	DefaultMaxBytes = 64 << 20
)

// Options are what a definition does not say, and bounds. Zero bounds are the defaults.
type Options struct {
	Platform graph.Platform // of commands and images that name none
	MaxOps   int
	MaxDepth int  // ops on the longest way from a result to a source
	MaxBytes int  // of all ops
	Proxied  bool // commands have a proxy alone, in place of the network that they ask for
}

// Meta is what a definition says besides the graph.
type Meta struct {
	Digests  map[*graph.Vertex]graph.Digest // what the definition, and so its client, calls a vertex
	Vertices map[graph.Digest]*graph.Vertex // the reverse
	Caps     []string                       // capabilities that its ops need, sorted
	Sources  []*diag.Source                 // files that it was made from
}

// maxNesting bounds messages within messages. A definition names source files, which come with the definitions of their own
// trees, and so on: three levels for each.
const maxNesting = 100

// Unmarshal decodes a message that may hold definitions, from anybody. Unlike the generated UnmarshalVT it stops at a depth,
// and refuses strings that are not UTF-8.
func Unmarshal(data []byte, m proto.Message) error {
	if err := (proto.UnmarshalOptions{RecursionLimit: maxNesting}).Unmarshal(data, m); err != nil {
		return diag.Errorf(diag.Invalid, "a message cannot be read: %w", err)
	}
	return nil
}

// Decode reads a definition. The roots are the inputs of its last op, of which BuildKit builds the first. A definition
// without ops is scratch: one root, the zero Edge.
func Decode(def *pb.Definition, opt Options) (roots []graph.Edge, meta *Meta, err error) {
	d := &decoder{
		opt: opt, ops: map[graph.Digest]*pb.Op{}, done: map[graph.Digest]*node{},
		meta: &Meta{Digests: map[*graph.Vertex]graph.Digest{}, Vertices: map[graph.Digest]*graph.Vertex{}},
	}
	if len(def.GetDef()) == 0 {
		return []graph.Edge{{}}, d.meta, nil
	}
	last, err := d.read(def)
	if err != nil {
		return nil, nil, err
	}
	if err := d.locate(def.Source); err != nil {
		return nil, nil, err
	}
	if err := d.capabilities(def); err != nil {
		return nil, nil, err
	}
	if roots, err = d.inputs(last, 0); err != nil {
		return nil, nil, err
	}
	return roots, d.meta, nil
}

type decoder struct {
	opt  Options
	def  *pb.Definition
	ops  map[graph.Digest]*pb.Op
	at   map[graph.Digest][]diag.Span
	done map[graph.Digest]*node
	meta *Meta
}

// node is an op that was reached: what its outputs are, nil while it is being decoded.
type node struct {
	outs  []graph.Edge
	depth int // of the ops below it
}

func invalidf(format string, args ...any) *diag.Error {
	return diag.Errorf(diag.Invalid, "invalid build definition: "+format, args...)
}

func or(n, standard int) int {
	if n > 0 {
		return n
	}
	return standard
}

// read parses the ops and returns the last one, which names the results.
func (d *decoder) read(def *pb.Definition) (last *pb.Op, err error) {
	d.def = def
	if n, limit := len(def.Def), or(d.opt.MaxOps, DefaultMaxOps); n > limit {
		return nil, invalidf("it has %d ops, more than %d", n, limit)
	}
	bytes, limit := 0, or(d.opt.MaxBytes, DefaultMaxBytes)
	for i, raw := range def.Def {
		if bytes += len(raw); bytes > limit {
			return nil, invalidf("its ops have more than %d bytes", limit)
		}
		op := &pb.Op{}
		if err := Unmarshal(raw, op); err != nil {
			return nil, invalidf("op %d cannot be read: %w", i, err)
		}
		last = op
		d.ops[digest.FromBytes(raw)] = op
	}
	if last.Op != nil {
		return nil, invalidf("its last op is a step; it must only name the results")
	}
	if len(last.Inputs) == 0 {
		return nil, invalidf("its last op names no result")
	}
	return last, nil
}

// capabilities checks that all that the ops need is known to the version of LLB that this package reads.
func (d *decoder) capabilities(def *pb.Definition) error {
	known := pb.Caps.CapSet(pb.Caps.All())
	need := map[string]bool{}
	for _, md := range def.Metadata {
		for c := range md.GetCaps() {
			need[c] = true
		}
	}
	d.meta.Caps = slices.Sorted(maps.Keys(need))
	for _, c := range d.meta.Caps {
		if err := known.Supports(apicaps.CapID(c)); err != nil {
			return diag.Errorf(diag.Unsupported, "the build definition needs the capability %q, which this version does not have", c).
				WithHint("use a client or frontend that is not newer than the builder")
		}
	}
	return nil
}

// inputs decodes the inputs of an op.
func (d *decoder) inputs(op *pb.Op, depth int) ([]graph.Edge, error) {
	in := make([]graph.Edge, len(op.Inputs))
	for i, x := range op.Inputs {
		if x == nil {
			return nil, invalidf("input %d is missing", i)
		}
		n, err := d.node(graph.Digest(x.Digest), depth)
		if err != nil {
			return nil, err
		}
		if x.Index < 0 || x.Index >= int64(len(n.outs)) {
			return nil, invalidf("input %d is output %d of %s, which has %d", i, x.Index, x.Digest, len(n.outs))
		}
		in[i] = n.outs[x.Index]
	}
	return in, nil
}

// node decodes the op with a digest, and all below it.
func (d *decoder) node(dgst graph.Digest, depth int) (*node, error) {
	limit := or(d.opt.MaxDepth, DefaultMaxDepth)
	if n, ok := d.done[dgst]; ok {
		if n == nil {
			return nil, invalidf("op %s is its own input", dgst)
		}
		if depth+n.depth >= limit {
			return nil, invalidf("a chain of ops is longer than %d", limit)
		}
		return n, nil
	}
	if depth >= limit {
		return nil, invalidf("a chain of ops is longer than %d", limit)
	}
	op := d.ops[dgst]
	if op == nil {
		return nil, invalidf("the input %q is missing", dgst)
	}
	d.done[dgst] = nil
	in, err := d.inputs(op, depth+1)
	if err != nil {
		return nil, err
	}
	n := &node{}
	for _, x := range op.Inputs {
		n.depth = max(n.depth, d.done[graph.Digest(x.Digest)].depth+1)
	}
	v, err := d.vertex(dgst, op, in)
	if err != nil {
		return nil, diag.At(err, d.at[dgst]...)
	}
	n.outs = make([]graph.Edge, v.Op.Outputs())
	for i := range n.outs {
		n.outs[i] = graph.Edge{V: v, Out: i}
	}
	d.done[dgst] = n
	d.meta.Digests[v], d.meta.Vertices[dgst] = dgst, v
	return n, nil
}

func (d *decoder) vertex(dgst graph.Digest, op *pb.Op, in []graph.Edge) (*graph.Vertex, error) {
	md := d.def.Metadata[string(dgst)]
	o, in, err := operation(op, in, md)
	if err != nil {
		return nil, err
	}
	if e, ok := o.(*graph.Exec); ok && d.opt.Proxied {
		e.Network = e.Network.Proxied()
	}
	p := platform(op.Platform)
	if p.OS == "" && p.Architecture == "" {
		switch o.(type) {
		case *graph.Exec, *graph.Image, *graph.OCILayout, *graph.Build:
			p = d.opt.Platform
		}
	}
	name := md.GetDescription()[nameKey]
	if name == "" {
		name = opName(o, in)
	}
	return graph.New(o, in, graph.On(p), graph.From(d.at[dgst]...), func(v *graph.Vertex) {
		v.Name = name
		v.Workers = op.GetConstraints().GetFilter()
		if md == nil {
			return
		}
		v.NoCache, v.Labels = md.IgnoreCache, md.Description
		if g := md.ProgressGroup; g != nil {
			v.Group, v.Label, v.Weak = g.Id, g.Name, g.Weak
		}
		if md.ExportCache != nil {
			v.Export = &md.ExportCache.Value
		}
	}), nil
}

// nameKey is the description that clients name a vertex with.
const nameKey = "llb.customname"

// operation decodes the op itself. The inputs that it returns may be others: scratch is an input of a graph's vertex, but
// not of an op.
func operation(op *pb.Op, in []graph.Edge, md *pb.OpMetadata) (graph.Op, []graph.Edge, error) {
	switch o := op.Op.(type) {
	case *pb.Op_Source:
		if len(in) > 0 {
			return nil, nil, invalidf("a source with %d inputs", len(in))
		}
		s, err := decodeSource(o.Source)
		return s, nil, err
	case *pb.Op_Exec:
		e, err := DecodeExec(o.Exec, len(in))
		if err == nil {
			err = decodeResources(e, md.GetLinuxResources())
		}
		return e, in, err
	case *pb.Op_File:
		f, err := decodeFile(o.File, len(in))
		return f, in, err
	case *pb.Op_Merge:
		return decodeMerge(o.Merge, in)
	case *pb.Op_Diff:
		return decodeDiff(o.Diff, in)
	case *pb.Op_Build:
		return decodeBuild(o.Build, in)
	case *pb.Op_Passthrough:
		p, err := decodePassthrough(o.Passthrough, len(in))
		return p, in, err
	case nil:
		return nil, nil, invalidf("an op that is none of source, exec, file, merge, diff, build and passthrough").
			WithHint("it may be of a newer version of BuildKit")
	}
	return nil, nil, diag.Errorf(diag.Unsupported, "the build definition has an op of an unknown kind (%T)", op.Op)
}

func decodeMerge(o *pb.MergeOp, in []graph.Edge) (graph.Op, []graph.Edge, error) {
	if o == nil || len(o.Inputs) != len(in) {
		return nil, nil, invalidf("a merge of %d inputs has %d inputs", len(o.GetInputs()), len(in))
	}
	out := make([]graph.Edge, len(in))
	for i, m := range o.Inputs {
		if m == nil || m.Input < 0 || m.Input >= int64(len(in)) {
			return nil, nil, invalidf("a merge of input %d, but it has %d inputs", m.GetInput(), len(in))
		}
		out[i] = in[m.Input]
	}
	return &graph.Merge{}, out, nil
}

func decodeDiff(o *pb.DiffOp, in []graph.Edge) (graph.Op, []graph.Edge, error) {
	if o.GetLower() == nil || o.GetUpper() == nil {
		return nil, nil, invalidf("a diff without a lower or an upper input")
	}
	out := make([]graph.Edge, 2)
	used := 0
	for i, n := range []int64{o.Lower.Input, o.Upper.Input} {
		if n == int64(pb.Empty) {
			continue
		}
		if n < 0 || n >= int64(len(in)) {
			return nil, nil, invalidf("a diff of input %d, but it has %d inputs", n, len(in))
		}
		used++
		out[i] = in[n]
	}
	if used != len(in) {
		return nil, nil, invalidf("a diff of %d inputs has %d inputs", used, len(in))
	}
	return &graph.Diff{}, out, nil
}

func decodeBuild(o *pb.BuildOp, in []graph.Edge) (graph.Op, []graph.Edge, error) {
	if o == nil {
		return nil, nil, invalidf("a build op without content")
	}
	if o.Builder != int64(pb.LLBBuilder) {
		return nil, nil, invalidf("a nested build by input %d: only the builder's own is allowed", o.Builder)
	}
	x := o.Inputs[pb.LLBDefinitionInput]
	if x == nil || x.Input < 0 || x.Input >= int64(len(in)) {
		return nil, nil, invalidf("a nested build whose definition is input %d, but it has %d inputs", x.GetInput(), len(in))
	}
	b := &graph.Build{File: o.Attrs[pb.AttrLLBDefinitionFilename]}
	for k, v := range o.Attrs {
		if k == pb.AttrLLBDefinitionFilename {
			continue
		}
		if b.Attrs == nil {
			b.Attrs = map[string]string{}
		}
		b.Attrs[k] = v
	}
	return b, []graph.Edge{in[x.Input]}, checkPath("the definition's file", b.File)
}

func decodePassthrough(o *pb.PassthroughOp, inputs int) (*graph.Passthrough, error) {
	if o.GetId() == "" || len(o.Outputs) == 0 {
		return nil, invalidf("a passthrough without an id or without outputs")
	}
	p := &graph.Passthrough{ID: o.Id, Outs: make([]int, len(o.Outputs))}
	for i, n := range o.Outputs {
		if n < 0 || n >= int64(inputs) {
			return nil, invalidf("a passthrough of input %d, but it has %d inputs", n, inputs)
		}
		p.Outs[i] = int(n)
	}
	return p, nil
}

func platform(p *pb.Platform) graph.Platform {
	if p == nil {
		return graph.Platform{}
	}
	return graph.NormalizePlatform(graph.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures})
}

// checkPath refuses what no system call takes.
func checkPath(what, p string) error {
	if strings.ContainsRune(p, 0) {
		return invalidf("%s %q has a zero byte", what, p)
	}
	return nil
}

// opName names an op for people, as BuildKit does.
func opName(o graph.Op, in []graph.Edge) string {
	side := func(e graph.Edge) string {
		if e.IsScratch() {
			return "scratch"
		}
		return shorten(e.V.Name)
	}
	switch o := o.(type) {
	case *graph.Exec:
		return strings.Join(o.Args, " ")
	case *graph.File:
		var names []string
		for i := range o.Actions {
			names = append(names, actionName(&o.Actions[i]))
		}
		return strings.Join(names, ", ")
	case *graph.Merge:
		var names []string
		for _, e := range in {
			if names = append(names, side(e)); len(names) == maxNames && len(in) > maxNames {
				names = append(names, "…")
				break
			}
		}
		return fmt.Sprintf("merge (%s)", strings.Join(names, ", "))
	case *graph.Diff:
		paren := func(s string, e graph.Edge) string {
			if e.IsScratch() {
				return s
			}
			return "(" + s + ")"
		}
		return "diff " + paren(side(in[0]), in[0]) + " -> " + paren(side(in[1]), in[1])
	case *graph.Build:
		return "build"
	case *graph.Passthrough:
		return "passthrough " + o.ID
	}
	if id, _, err := encodeSource(o); err == nil {
		return id
	}
	return o.Kind()
}

// maxNames is how many inputs a merge is named after.
const maxNames = 20

// shorten bounds the names within names, which would grow with every level.
func shorten(s string) string {
	const most = 200
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

func actionName(a *graph.Action) string {
	switch {
	case a.Copy != nil:
		return "copy " + a.Copy.Src + " " + a.Copy.Dest
	case a.Mkfile != nil:
		return "mkfile " + a.Mkfile.Path
	case a.Mkdir != nil:
		return "mkdir " + a.Mkdir.Path
	case a.Rm != nil:
		return "rm " + a.Rm.Path
	case a.Symlink != nil:
		return "symlink " + a.Symlink.Path + " -> " + a.Symlink.Target
	}
	return ""
}
