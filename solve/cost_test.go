package solve

import (
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
)

// A client sends a graph of 50,000 ops, next to each other or one on the other. Neither may cost a stack for each of them.
func TestGraphOfManyOps(t *testing.T) {
	const ops = 50_000
	base := graph.Edge{V: graph.New(&graph.Image{Ref: "base"}, nil, graph.Named("base"))}
	in := make([]graph.Edge, ops)
	for i := range in {
		in[i] = exec(fmt.Sprint("step ", i), fmt.Sprint(i), base)
	}
	wide := graph.Edge{V: graph.New(&graph.Merge{}, in)}
	deep := base
	for i := range 10_000 {
		deep = exec(fmt.Sprint("level ", i), fmt.Sprint(i), deep)
	}
	for name, root := range map[string]graph.Edge{"wide": wide, "deep": deep} {
		s, f := newWorld()
		var most, stack uint64
		n := 0
		var mu sync.Mutex
		sink := event.Sink(func(event.Event) {
			mu.Lock()
			defer mu.Unlock()
			if n++; n%5000 == 0 {
				most = max(most, uint64(runtime.NumGoroutine()))
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				stack = max(stack, m.StackInuse)
			}
		})
		if err := solveOnce(t, s, &world{}, sink, root); err != nil {
			t.Fatal(err)
		}
		if runs := len(f.took()); runs < 10_000 {
			t.Errorf("%s: %d runs", name, runs)
		}
		// Flights have goroutines of their own, and end on their own.
		if most > 10*maxBranches || stack > 128<<20 {
			t.Errorf("%s: %d goroutines, stacks of %d MiB", name, most, stack>>20)
		}
	}
}

// A step says a gigabyte: what a flight keeps for those who join it later is bounded in bytes, not only in events.
func TestFlightOfMuchOutput(t *testing.T) {
	f := &flight[files, *world]{sinks: map[int]event.Sink{}}
	for range 2000 {
		f.emit(event.Event{Kind: event.Log, Data: make([]byte, 32<<10)})
	}
	kept := 0
	f.join(func(e event.Event) { kept += len(e.Data) })
	if kept == 0 || kept > replayedBytes {
		t.Errorf("%d bytes are kept", kept)
	}
}
