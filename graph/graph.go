// Package graph holds the build graph: immutable vertices that say what is to be made, never how.
//
// A [Vertex] has an [Op] (a source, a command, file actions, a merge, a diff, a nested build), the outputs of other
// vertices as its inputs, and an ID: the Merkle hash of the op, the platform and the inputs. Names and source positions
// are for people and not part of the ID. Ops are plain data; fields tagged `json:"-"` change how a step runs but not
// what it makes, and are part of no hash.
//
//	base := graph.New(&graph.Image{Ref: "docker.io/library/debian:12"}, nil, graph.On(p))
//	ctx := graph.New(&graph.Local{Name: "context"}, nil)
//	app := graph.New(&graph.File{Actions: []graph.Action{{In: 0, From: 1, Out: 0, Copy: &graph.Copy{Src: "/app", Dest: "/"}}}},
//		[]graph.Edge{{V: base}, {V: ctx}}, graph.Named("COPY app /"))
package graph

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
)

// Digest is a content digest, "sha256:" and 64 hex digits.
type Digest = digest.Digest

// Platform is the system that a vertex is made for. The zero value means that the platform does not matter.
type Platform struct {
	OS           string   `json:"os,omitempty"`
	Architecture string   `json:"arch,omitempty"`
	Variant      string   `json:"variant,omitempty"`
	OSVersion    string   `json:"osVersion,omitempty"`
	OSFeatures   []string `json:"osFeatures,omitempty"`
}

// Op is what a vertex does. Its JSON is its identity: it must be deterministic.
type Op interface {
	// Kind names the op, such as "exec" or "source.image".
	Kind() string
	// Outputs is the number of trees that the op makes, at least 1 but for an exec that keeps nothing.
	Outputs() int
	// Uses says which files of input i the op can read. Nil means that it depends on all of the input, which is then
	// keyed by how it was made; otherwise the input is keyed by the content of the selected files.
	Uses(i int) *Selector
}

// Identity is what the result of an op is keyed by: the op itself, or what it says with a method Identity.
func Identity(op Op) any {
	if i, ok := op.(interface{ Identity() any }); ok {
		return i.Identity()
	}
	return op
}

// Edge names one output of a vertex. The zero Edge is the empty tree (scratch).
type Edge struct {
	V   *Vertex
	Out int
}

// IsScratch reports whether the edge is the empty tree.
func (e Edge) IsScratch() bool { return e.V == nil }

// Vertex is one step of a build. It is immutable once made.
type Vertex struct {
	Op       Op
	In       []Edge
	Platform Platform
	Name     string            // for people, such as "[build 2/5] RUN make"
	At       []diag.Span       // where it was written, innermost first
	Advice   string            // a hint for people if it does not find something; "" = none
	NoCache  bool              // run it even if its result is known; not part of the ID
	Group    string            // vertices of one progress group are shown together; "" = none
	Label    string            // what people see of the group; "" = Group
	Weak     bool              // the group is shown only if its vertices do something
	Labels   map[string]string // for people: descriptions that clients send along; not part of the ID
	Workers  []string          // BuildKit's filters of workers: carried along, not used
	Export   *bool             // whether an exported cache holds the result; nil = as it sees fit
	ID       Digest
}

// Option changes a vertex that New makes.
type Option func(*Vertex)

// Named sets the name that people see.
func Named(format string, args ...any) Option {
	return func(v *Vertex) {
		v.Name = format
		if len(args) > 0 {
			v.Name = fmt.Sprintf(format, args...)
		}
	}
}

// On sets the platform.
func On(p Platform) Option { return func(v *Vertex) { v.Platform = p } }

// From sets the places where the vertex was written.
func From(at ...diag.Span) Option { return func(v *Vertex) { v.At = at } }

// Advise sets the hint of an error of kind diag.NotFound that has none.
func Advise(hint string) Option { return func(v *Vertex) { v.Advice = hint } }

// NoCache makes the vertex run even if its result is known.
func NoCache(v *Vertex) { v.NoCache = true }

// New makes a vertex and computes its ID.
func New(op Op, in []Edge, opts ...Option) *Vertex {
	v := &Vertex{Op: op, In: in}
	for _, o := range opts {
		o(v)
	}
	if n, err := Normalize(v.Op); err == nil { // an address without a normal form is refused by who would use it
		v.Op = n
	}
	op, in = v.Op, v.In
	h := sha256.New()
	writeField(h, op.Kind())
	writeField(h, string(Canonical(op)))
	writeField(h, string(Canonical(v.Platform)))
	for _, e := range in {
		if e.V == nil {
			writeField(h, "scratch")
			continue
		}
		writeField(h, string(e.V.ID)+"#"+strconv.Itoa(e.Out))
	}
	v.ID = digest.NewDigest(digest.SHA256, h)
	if v.Name = diag.Redact(v.Name); v.Name == "" {
		v.Name = op.Kind()
	}
	return v
}

// Canonical returns the bytes that identify a plain value: its JSON, whose map keys are sorted. A value that has no
// JSON is a programming error.
func Canonical(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("graph: %T has no canonical form: %v", v, err))
	}
	return b
}

// Fields are length-prefixed, so that no two lists of fields hash alike.
func writeField(h hash.Hash, s string) {
	fmt.Fprintf(h, "%d:", len(s))
	h.Write([]byte(s))
}

// Walk calls f for every vertex below the edges, inputs first, each once. It does not recurse: chains may be long.
func Walk(roots []Edge, f func(*Vertex)) {
	seen := map[*Vertex]bool{}
	type frame struct {
		v    *Vertex
		next int // input
	}
	var stack []frame
	enter := func(v *Vertex) {
		if v != nil && !seen[v] {
			seen[v] = true
			stack = append(stack, frame{v: v})
		}
	}
	for _, e := range roots {
		enter(e.V)
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if top.next < len(top.v.In) {
				top.next++
				enter(top.v.In[top.next-1].V)
				continue
			}
			f(top.v)
			stack = stack[:len(stack)-1]
		}
	}
}
