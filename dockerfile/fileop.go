package dockerfile

import (
	"slices"
	"strconv"
	"strings"

	"github.com/strata-build/strata/graph"
)

// fileOp collects the file actions of one instruction, which become one vertex.
type fileOp struct {
	in      []graph.Edge
	actions []graph.Action
	cur     int  // the tree that the next action changes
	users   *int // the tree that has the passwd and group files; nil = cur
}

// Results of actions are numbered after the inputs, whose number is known only at the end: until then result i is firstResult-i.
const firstResult = -2

func newFileOp(base graph.Edge) *fileOp {
	f := &fileOp{}
	f.cur = f.input(base)
	return f
}

// input is the index of a tree to read.
func (f *fileOp) input(e graph.Edge) int {
	if e.IsScratch() {
		return graph.None
	}
	if i := slices.Index(f.in, e); i >= 0 {
		return i
	}
	f.in = append(f.in, e)
	return len(f.in) - 1
}

// do adds an action on the current tree.
func (f *fileOp) do(a graph.Action) {
	a.In, a.Out = f.cur, graph.None
	f.cur = f.push(a)
}

// inlineDocument is a tree with nothing but a file that the Dockerfile holds. It is a vertex of its own, as in BuildKit, whose
// caches are then hit.
func inlineDocument(name string, mode uint32, data string) graph.Edge {
	f := &fileOp{cur: graph.None}
	f.do(graph.Action{Mkfile: &graph.Mkfile{Path: name, Mode: mode, Data: []byte(data)}})
	return f.edge(graph.Named("[internal] preparing inline document"))
}

func (f *fileOp) push(a graph.Action) int {
	f.actions = append(f.actions, a)
	return firstResult - (len(f.actions) - 1)
}

// owner reads USER[:GROUP], names or ids, of the passwd and group files of the current tree. Without a group it is
// that of the user: of the same number, or what passwd says, for which None stands.
func (f *fileOp) owner(s string) *graph.Owner {
	if s == "" {
		return nil
	}
	user, group, _ := strings.Cut(s, ":")
	o := &graph.Owner{UserIn: f.cur, GroupIn: f.cur}
	if f.users != nil {
		o.UserIn, o.GroupIn = *f.users, *f.users
	}
	if id, ok := parseID(user); ok {
		o.UID, o.GID = id, graph.None
	} else {
		o.User, o.GID = user, graph.None
	}
	if group == "" {
		return o
	}
	if id, ok := parseID(group); ok {
		o.GID = id
	} else {
		o.Group, o.GID = group, 0
	}
	return o
}

func parseID(s string) (int, bool) {
	if s == "root" {
		return 0, true
	}
	n, err := strconv.ParseInt(s, 10, 32)
	return int(n), err == nil
}

// edge makes the vertex; its output is the current tree.
func (f *fileOp) edge(opts ...graph.Option) graph.Edge {
	fix := func(i int) int {
		if i <= firstResult {
			return len(f.in) + firstResult - i
		}
		return i
	}
	for i := range f.actions {
		a := &f.actions[i]
		a.In = fix(a.In)
		if a.Copy != nil {
			a.From = fix(a.From)
		}
		if o := ownerOf(a); o != nil {
			// Names are only looked up where there are names: the index of none is 0, so that it is not part of the key.
			if o.User == "" {
				o.UserIn = 0
			}
			if o.Group == "" {
				o.GroupIn = 0
			}
			o.UserIn, o.GroupIn = fix(o.UserIn), fix(o.GroupIn)
		}
	}
	f.actions[len(f.actions)-1].Out = 0
	return edge(graph.New(&graph.File{Actions: f.actions}, f.in, opts...))
}

func ownerOf(a *graph.Action) *graph.Owner {
	switch {
	case a.Copy != nil:
		return a.Copy.Owner
	case a.Mkdir != nil:
		return a.Mkdir.Owner
	}
	return nil
}

func byName(o *graph.Owner) bool { return o != nil && (o.User != "" || o.Group != "") }
