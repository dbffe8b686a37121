package engine

import (
	"context"
	"slices"
	"testing"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/session"
)

func copyOf(src string, base, from graph.Edge) graph.Edge {
	op := &graph.File{Actions: []graph.Action{{In: 0, From: 1, Copy: &graph.Copy{Src: src, Dest: "/"}}}}
	return graph.Edge{V: graph.New(op, []graph.Edge{base, from}, graph.Named("COPY %s", src), graph.NoCache)}
}

func TestNarrowAsksForWhatIsRead(t *testing.T) {
	ctx := graph.Edge{V: graph.New(&graph.Local{Name: "context", Exclude: []string{"x"}}, nil, graph.Named("load"))}
	all := graph.Edge{V: graph.New(&graph.Local{Name: "all"}, nil)}
	top := copyOf("/src/*.go", copyOf("../b", graph.Edge{}, ctx), ctx)
	top = copyOf("/", top, all)
	plan := &image.Plan{Targets: []image.Target{{Root: top}}}
	(&build{session: syncing{}}).narrow(plan)
	seen := map[string][]string{}
	graph.Walk([]graph.Edge{plan.Targets[0].Root}, func(v *graph.Vertex) {
		if o, ok := v.Op.(*graph.Local); ok {
			seen[o.Name] = o.Follow
		} else if !v.NoCache || v.ID == top.V.ID {
			t.Errorf("%s: it was not made anew with what it had", v.Name)
		}
	})
	if got := seen["context"]; !slices.Equal(got, []string{"b", "src/*.go"}) {
		t.Errorf("context: %v", got)
	}
	if len(seen["all"]) > 0 {
		t.Errorf("all: %v", seen["all"])
	}
	again := &image.Plan{Targets: []image.Target{{Root: top}}}
	(&build{}).narrow(again)
	if again.Targets[0].Root != top {
		t.Error("a directory of this machine was narrowed")
	}
}

// syncing is a session whose directories are elsewhere.
type syncing struct{ session.Session }

func (syncing) Sync(context.Context, *graph.Local, func(int64, bool)) (session.Dir, error) {
	return session.Dir{}, nil
}
