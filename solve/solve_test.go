package solve

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
)

// files is a fake result: paths and their content.
type files struct {
	m        map[string]string
	released *atomic.Int64
}

func (f files) Content(_ context.Context, sel graph.Selector) (graph.Digest, error) {
	var b strings.Builder
	for _, s := range sel.Paths {
		c, ok := f.m[s.Path]
		if s.Path == "/" {
			c, ok = fmt.Sprint(f.m), true
		}
		if !ok {
			return "", diag.Errorf(diag.NotFound, "%q not found", s.Path)
		}
		fmt.Fprintf(&b, "%s=%s\n", s.Path, c)
	}
	return digest.FromString(b.String()), nil
}

func (f files) Release() { f.released.Add(1) }

// world is what the fake runner sees from outside, per build.
type world struct {
	context map[string]string
	tag     string
	block   chan struct{} // closed = go on
	begun   chan struct{}
	gone    context.Context // the client's life
}

type fake struct {
	mu       sync.Mutex
	runs     []string
	secret   bool // steps ask for one, of the build that runs them
	peers    int  // that had it
	released atomic.Int64
}

func (f *fake) Pin(_ context.Context, v *graph.Vertex, w *world) (Pin, error) {
	switch v.Op.(type) {
	case *graph.Local:
		return Pin{Volatile: true, Light: true}, nil
	case *graph.Image:
		return Pin{Value: w.tag, Light: true}, nil
	}
	return Pin{}, nil
}

func (f *fake) Run(ctx context.Context, s *Step[files, *world]) ([]files, error) {
	if l, ok := s.V.Op.(*graph.Local); ok {
		if s.Env.tag == "no directories" {
			return nil, diag.Errorf(diag.NotFound, "the client gives no directories")
		}
		return []files{f.result(s.Env.context, l.Name)}, nil
	}
	f.mu.Lock()
	f.runs = append(f.runs, s.V.Name)
	if f.secret {
		has := func(w *world) bool { return w.tag == "has the secret" }
		for _, p := range s.Peers() {
			if has(p) {
				f.peers++
			}
		}
		if !has(s.Env) {
			s.Lacked(has)
		}
	}
	f.mu.Unlock()
	if strings.Contains(s.V.Name, "fails beside") {
		<-s.Env.begun
		return nil, errors.New("it fails")
	}
	if s.Env.block != nil {
		s.Env.begun <- struct{}{}
		select {
		case <-s.Env.block:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.Env.gone.Done():
			return nil, errors.New("the session is gone")
		}
	}
	if strings.Contains(s.V.Name, "fails") {
		return nil, errors.New("it fails")
	}
	out := map[string]string{}
	for _, in := range s.In {
		for k, v := range in.m {
			out[k] = v
		}
	}
	if e, ok := s.V.Op.(*graph.Exec); ok {
		out["/out"] = strings.Join(e.Args, " ")
	}
	return []files{f.result(out, "")}, nil
}

func (f *fake) result(m map[string]string, _ string) files { return files{m: m, released: &f.released} }

func (f *fake) took() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.runs
	f.runs = nil
	return r
}

type memory struct {
	mu    sync.Mutex
	outs  map[graph.Digest][]files
	memos map[graph.Digest]graph.Digest
	last  map[string]*Preimage
}

var errMiss = errors.New("never made")

func (m *memory) Lookup(_ context.Context, k graph.Digest) ([]files, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o, ok := m.outs[k]; ok {
		return o, nil
	}
	return nil, errMiss
}

func (m *memory) Store(_ context.Context, e *Entry[files]) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.outs[e.Key] = e.Outputs
	m.last[e.Name] = e.Preimage
	return nil
}

func (m *memory) Memo(_ context.Context, of graph.Digest) (graph.Digest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d, ok := m.memos[of]; ok {
		return d, nil
	}
	return "", errMiss
}

func (m *memory) SetMemo(_ context.Context, of, is graph.Digest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.memos[of] = is
	return nil
}

func (m *memory) Why(_ context.Context, name string, p *Preimage) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.last[name]; old != nil {
		return Explain(old, p)
	}
	return ""
}

func newWorld() (*Solver[files, *world], *fake) {
	f := &fake{}
	c := &memory{outs: map[graph.Digest][]files{}, memos: map[graph.Digest]graph.Digest{}, last: map[string]*Preimage{}}
	return New[files, *world](f, c, Options{Parallel: 2}), f
}

func exec(name, arg string, in ...graph.Edge) graph.Edge {
	op := &graph.Exec{Args: []string{arg}, Mounts: []graph.Mount{{Type: graph.MountBind, Target: "/", Input: 0, Output: 0}}}
	return graph.Edge{V: graph.New(op, in, graph.Named("%s", name))}
}

func copyFrom(name, src string, base, from graph.Edge) graph.Edge {
	op := &graph.File{Actions: []graph.Action{{In: 0, From: 1, Out: 0, Copy: &graph.Copy{Src: src, Dest: "/"}}}}
	return graph.Edge{V: graph.New(op, []graph.Edge{base, from}, graph.Named("%s", name))}
}

// project is five steps: a build stage with a context, and a final stage that takes its result.
func project() graph.Edge {
	base := graph.Edge{V: graph.New(&graph.Image{Ref: "base"}, nil, graph.Named("base"))}
	ctx := graph.Edge{V: graph.New(&graph.Local{Name: "context"}, nil, graph.Named("context"))}
	tools := exec("tools", "install", base)
	src := copyFrom("src", "/main.go", tools, ctx)
	build := exec("build", "make", src)
	return copyFrom("final", "/out", base, build)
}

func solveOnce(t *testing.T, s *Solver[files, *world], w *world, sink event.Sink, e graph.Edge) error {
	t.Helper()
	b := s.Build(t.Context(), w, BuildOptions{Sink: sink})
	defer b.Close()
	_, err := b.Solve(e)
	return err
}

func want(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	counts := map[string]int{}
	for _, g := range got {
		counts[g]++
	}
	for _, w := range want {
		counts[w]--
	}
	for n, c := range counts {
		if c != 0 {
			t.Errorf("%s: ran %v, want %v (%s)", what, got, want, n)
			return
		}
	}
}

func TestRebuilds(t *testing.T) {
	s, f := newWorld()
	w := &world{context: map[string]string{"/main.go": "1", "/README": "1"}, tag: "sha256:a"}
	run := func() []string {
		if err := solveOnce(t, s, w, nil, project()); err != nil {
			t.Fatal(err)
		}
		return f.took()
	}
	want(t, "cold", run(), "base", "tools", "src", "build", "final")
	want(t, "unchanged", run())
	w.context["/README"] = "2"
	want(t, "an unused file changed", run())
	w.context["/main.go"] = "2"
	// The build's output stays the same, so the final stage is a hit: early cut-off.
	want(t, "a source changed", run(), "src", "build")
	w.tag = "sha256:b"
	want(t, "the base moved", run(), "base", "tools", "src", "build", "final")
}

func TestWhy(t *testing.T) {
	s, _ := newWorld()
	w := &world{context: map[string]string{"/main.go": "1"}, tag: "sha256:a"}
	if err := solveOnce(t, s, w, nil, project()); err != nil {
		t.Fatal(err)
	}
	w.context["/main.go"] = "2"
	var reasons []string
	sink := func(e event.Event) {
		if e.Kind == event.Started && e.Reason != "" {
			reasons = append(reasons, e.Reason)
		}
	}
	if err := solveOnce(t, s, w, sink, project()); err != nil {
		t.Fatal(err)
	}
	if len(reasons) != 2 || reasons[0] != "files that it uses from context changed" || reasons[1] != "it builds on src, which changed" {
		t.Errorf("reasons: %q", reasons)
	}
}

func TestEventsEndEveryVertexOnce(t *testing.T) {
	s, _ := newWorld()
	w := &world{context: map[string]string{"/main.go": "1"}, tag: "sha256:a"}
	for round := range 2 {
		planned, done, cached := map[graph.Digest]int{}, map[graph.Digest]int{}, 0
		var mu sync.Mutex
		sink := func(e event.Event) {
			mu.Lock()
			defer mu.Unlock()
			switch e.Kind {
			case event.Planned:
				planned[e.Vertex]++
			case event.Done:
				done[e.Vertex]++
				if e.Cached {
					cached++
				}
			}
		}
		if err := solveOnce(t, s, w, sink, project()); err != nil {
			t.Fatal(err)
		}
		if len(planned) != 6 || len(done) != 6 {
			t.Errorf("round %d: %d planned, %d done", round, len(planned), len(done))
		}
		for v, n := range done {
			if n != 1 {
				t.Errorf("%s ended %d times", v, n)
			}
		}
		if round == 1 && cached < 5 {
			t.Errorf("%d of 6 cached in an unchanged build", cached)
		}
	}
}

func TestSharedWorkOutlivesHalfOfItsWaiters(t *testing.T) {
	s, f := newWorld()
	block, begun := make(chan struct{}), make(chan struct{}, 1)
	leaf := exec("slow", "slow", graph.Edge{})
	type result struct {
		i   int
		err error
	}
	results := make(chan result, 8)
	cancels := make([]context.CancelFunc, 8)
	start := func(i int) {
		ctx, cancel := context.WithCancel(t.Context())
		cancels[i] = cancel
		b := s.Build(ctx, &world{block: block, begun: begun, gone: t.Context()}, BuildOptions{})
		go func() {
			defer b.Close()
			_, err := b.Solve(leaf)
			results <- result{i, err}
		}()
	}
	start(0)
	<-begun
	for i := 1; i < 8; i++ {
		start(i)
	}
	waitFor(t, func() bool { return waiters(s) == 8 })
	for i := range 4 { // the one that started the run is among them
		cancels[i]()
	}
	waitFor(t, func() bool { return waiters(s) == 4 })
	close(block)
	for range 8 {
		r := <-results
		if (r.err != nil) != (r.i < 4) {
			t.Errorf("build %d: %v", r.i, r.err)
		}
	}
	want(t, "shared", f.took(), "slow")
	for _, c := range cancels {
		c()
	}
}

func TestLastWaiterStopsTheRun(t *testing.T) {
	s, f := newWorld()
	begun := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	b := s.Build(ctx, &world{block: make(chan struct{}), begun: begun, gone: t.Context()}, BuildOptions{})
	go func() { <-begun; cancel() }()
	_, err := b.Solve(exec("slow", "slow", graph.Edge{}))
	b.Close()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if waiters(s) != 0 || len(s.flights) != 0 {
		t.Error("a flight is left")
	}
	want(t, "cancelled", f.took(), "slow")
}

// A build that has what a run did without, by whose session the run was started, does not take its result.
func TestLackingRunIsDoneAgain(t *testing.T) {
	s, f := newWorld()
	w := &world{begun: make(chan struct{}, 8), block: make(chan struct{}), gone: context.Background()}
	has := &world{begun: w.begun, block: w.block, gone: w.gone, tag: "has the secret"}
	f.secret = true
	e := exec("step", "x", graph.Edge{})
	var wg sync.WaitGroup
	var errs [3]error
	for i, env := range []*world{w, has, {begun: w.begun, block: w.block, gone: w.gone}} {
		wg.Go(func() { errs[i] = solveOnce(t, s, env, nil, e) })
		if i == 0 {
			<-w.begun
		} else {
			waitFor(t, func() bool { return waiters(s) == i+1 })
		}
	}
	close(w.block)
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	want(t, "with a build that has the secret", f.took(), "step", "step")
}

// A client runs a step with a limit that makes it fail, while others ask for the same step: it must fail nowhere else, and who
// has a limit must not escape it. Builds with equal limits share the run.
func TestAttackLimitsOfAnotherBuild(t *testing.T) {
	s, _ := newWorld()
	w := &world{begun: make(chan struct{}, 8), block: make(chan struct{}), gone: context.Background()}
	limited := func(l graph.Limits) graph.Edge {
		e := exec("step", "x", graph.Edge{})
		e.V.Op.(*graph.Exec).Limits = l
		return e
	}
	var wg sync.WaitGroup
	var errs [4]error
	for i, step := range []struct {
		limits  graph.Limits
		flights int
	}{
		{graph.Limits{Memory: 1 << 20}, 1},
		{graph.Limits{}, 2},
		{graph.Limits{CPUQuota: 1000, CPUPeriod: 100000}, 3},
		{graph.Limits{Memory: 1 << 20}, 3},
	} {
		wg.Go(func() { errs[i] = solveOnce(t, s, w, nil, limited(step.limits)) })
		waitFor(t, func() bool { return waiters(s) == i+1 })
		s.mu.Lock()
		if n := len(s.flights); n != step.flights {
			t.Errorf("build %d: %d runs under way, want %d", i, n, step.flights)
		}
		s.mu.Unlock()
	}
	close(w.block)
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		t.Error(err)
	}
}

// A run may use what other builds with its vertex have.
func TestPeersOfARun(t *testing.T) {
	s, f := newWorld()
	f.secret = true
	e := exec("step", "x", graph.Edge{})
	b := s.Build(t.Context(), &world{tag: "has the secret"}, BuildOptions{})
	defer b.Close()
	b.plan([]graph.Edge{e})
	other := s.Build(t.Context(), &world{tag: "has the secret"}, BuildOptions{Tenant: "other"})
	defer other.Close()
	other.plan([]graph.Edge{e})
	if err := solveOnce(t, s, &world{}, nil, e); err != nil {
		t.Fatal(err)
	}
	if f.peers != 1 {
		t.Errorf("the run had %d peers with the secret, want 1", f.peers)
	}
}

// A build whose client lacks a directory finds what a live build has made of it.
func TestContentOfAnotherBuild(t *testing.T) {
	s, f := newWorld()
	ctx := graph.Edge{V: graph.New(&graph.Local{Name: "context"}, nil, graph.Named("context"))}
	e := copyFrom("src", "/main.go", exec("base", "b", graph.Edge{}), ctx)
	bare := &world{tag: "no directories"}
	if err := solveOnce(t, s, bare, nil, e); err == nil {
		t.Fatal("a build without its directory is made")
	}
	f.took()
	b := s.Build(t.Context(), &world{context: map[string]string{"/main.go": "1"}}, BuildOptions{})
	if _, err := b.Solve(e); err != nil {
		t.Fatal(err)
	}
	f.took()
	if err := solveOnce(t, s, bare, nil, e); err != nil {
		t.Error(err)
	}
	want(t, "while the other build lives", f.took())
	b.Close()
	if err := solveOnce(t, s, bare, nil, e); err == nil {
		t.Error("a build without its directory is made, though nobody has it")
	}
}

func TestOrphanedRunIsDoneAgain(t *testing.T) {
	s, f := newWorld()
	block, begun := make(chan struct{}), make(chan struct{}, 2)
	leaf := exec("slow", "slow", graph.Edge{})
	first, leave := context.WithCancel(t.Context())
	b1 := s.Build(first, &world{block: block, begun: begun, gone: first}, BuildOptions{})
	go b1.Solve(leaf)
	<-begun
	done := make(chan error, 1)
	b2 := s.Build(t.Context(), &world{block: block, begun: begun, gone: t.Context()}, BuildOptions{})
	go func() { _, err := b2.Solve(leaf); done <- err }()
	waitFor(t, func() bool { return waiters(s) == 2 })
	leave() // the session of the run ends, and the run fails for it
	<-begun
	close(block)
	if err := <-done; err != nil {
		t.Error(err)
	}
	b1.Close()
	b2.Close()
	want(t, "orphaned", f.took(), "slow", "slow")
}

func TestNoCacheRunsAgainAndStores(t *testing.T) {
	s, f := newWorld()
	w := &world{}
	plain := exec("step", "x", graph.Edge{})
	forced := graph.Edge{V: graph.New(plain.V.Op, plain.V.In, graph.Named("step"), graph.NoCache)}
	for _, e := range []graph.Edge{plain, forced, plain} {
		if err := solveOnce(t, s, w, nil, e); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "no cache", f.took(), "step", "step")
}

// A cached result must not stand in for a step that depends on one that must run: it was made from an earlier output of it.
func TestNoCacheReachesWhatIsKeyedByIt(t *testing.T) {
	s, f := newWorld()
	w := &world{context: map[string]string{"/main.go": "1"}, tag: "sha256:a"}
	graphOf := func(opts ...graph.Option) graph.Edge {
		base := exec("base", "b", graph.Edge{})
		tools := graph.Edge{V: graph.New(exec("tools", "install", base).V.Op, []graph.Edge{base}, append(opts, graph.Named("tools"))...)}
		dir := exec("workdir", "mkdir", tools)
		build := exec("build", "make", dir)
		return copyFrom("final", "/out", exec("other", "o", graph.Edge{}), build)
	}
	for _, e := range []graph.Edge{graphOf(), graphOf(graph.NoCache)} {
		if err := solveOnce(t, s, w, nil, e); err != nil {
			t.Fatal(err)
		}
	}
	// The final copy is found: it was made from a file with the content that the new run made.
	want(t, "no cache", f.took(), "base", "tools", "workdir", "build", "other", "final", "tools", "workdir", "build")
	reasons := map[string]bool{}
	if err := solveOnce(t, s, w, func(e event.Event) {
		if e.Kind == event.Started {
			reasons[e.Reason] = true
		}
	}, graphOf(graph.NoCache)); err != nil {
		t.Fatal(err)
	}
	f.took()
	if !reasons["--no-cache"] || !reasons[`"tools" runs again: --no-cache`] {
		t.Errorf("reasons %v", reasons)
	}
	if err := solveOnce(t, s, w, nil, graphOf()); err != nil {
		t.Fatal(err)
	}
	want(t, "with the cache again", f.took())
}

// Of two equal steps one may be asked to run without the cache: the build has one of them, and it runs.
func TestNoCacheOfOneOfTwoEqualSteps(t *testing.T) {
	s, f := newWorld()
	plain := exec("step", "x", graph.Edge{})
	forced := graph.Edge{V: graph.New(plain.V.Op, plain.V.In, graph.Named("step"), graph.NoCache)}
	top := exec("top", "t", plain, exec("other", "o", forced))
	for range 2 {
		if err := solveOnce(t, s, &world{}, nil, top); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "no cache", f.took(), "step", "other", "top", "step", "other", "top")
}

// A step that fails while the content of another input is still being made for the same step's key stops that work.
func TestFailureStopsSiblingsBelowACopy(t *testing.T) {
	for _, swap := range []bool{false, true} {
		s, f := newWorld()
		w := &world{begun: make(chan struct{}, 2), block: make(chan struct{}), gone: context.Background()}
		slow := exec("slow", "s", graph.Edge{})
		bad := exec("fails beside another", "f", graph.Edge{})
		first, second := slow, bad
		if swap {
			first, second = bad, slow
		}
		op := &graph.File{Actions: []graph.Action{
			{In: graph.None, From: 0, Out: graph.None, Copy: &graph.Copy{Src: "/out", Dest: "/a"}},
			{In: 2, From: 1, Out: 0, Copy: &graph.Copy{Src: "/out", Dest: "/b"}},
		}}
		ended := map[graph.Digest]string{}
		err := solveOnce(t, s, w, func(e event.Event) {
			if e.Kind == event.Done {
				ended[e.Vertex] = e.Error
			}
		}, graph.Edge{V: graph.New(op, []graph.Edge{first, second}, graph.Named("copies"))})
		if ended[slow.V.ID] != context.Canceled.Error() || ended[bad.V.ID] != "it fails" {
			t.Errorf("swap %v: the steps ended with %v", swap, ended)
		}
		if err == nil || !strings.Contains(err.Error(), "it fails") {
			t.Errorf("swap %v: error %v", swap, err)
		}
		f.took()
	}
}

// A step that ends just when another one fails is forgotten by the build, though what is made from it was already waiting.
func TestFailureBetweenAnEndAndItsUser(t *testing.T) {
	s, f := newWorld()
	w := &world{begun: make(chan struct{}, 1)}
	ends, bad := exec("ends", "e", graph.Edge{}), exec("fails beside another", "f", graph.Edge{})
	var b *Build[files, *world]
	b = s.Build(t.Context(), w, BuildOptions{Sink: func(e event.Event) {
		if e.Kind != event.Done || e.Vertex != ends.V.ID {
			return
		}
		w.begun <- struct{}{} // now the other one may fail
		for known := true; known; time.Sleep(time.Millisecond) {
			b.mu.Lock()
			_, known = b.nodes[ends.V.ID]
			b.mu.Unlock()
		}
	}})
	_, err := b.Solve(exec("user", "u", ends), bad)
	b.Close()
	if err == nil || !strings.Contains(err.Error(), "it fails") {
		t.Errorf("error %v", err)
	}
	if runs := f.took(); slices.Contains(runs, "user") {
		t.Errorf("runs %v", runs)
	}
}

func TestFailureNamesItsPlaceOnce(t *testing.T) {
	s, f := newWorld()
	src := &diag.Source{Name: "Dockerfile", Data: []byte("FROM x\nRUN fails\nRUN more\n")}
	op := &graph.Exec{Args: []string{"a"}, Mounts: []graph.Mount{{Target: "/", Input: graph.None, Output: 0}}}
	bad := graph.New(op, nil, graph.Named("fails"), graph.From(src.Lines(2, 2)))
	top := graph.New(&graph.Exec{Args: []string{"b"}, Mounts: []graph.Mount{{Target: "/", Input: 0, Output: 0}}}, []graph.Edge{{V: bad}}, graph.Named("more"), graph.From(src.Lines(3, 3)))
	var failed []string
	err := solveOnce(t, s, &world{}, func(e event.Event) {
		if e.Kind == event.Done && e.Error != "" {
			failed = append(failed, e.Error)
		}
	}, graph.Edge{V: top})
	var d *diag.Error
	if !errors.As(err, &d) || len(d.At) != 1 || d.At[0].First != 2 {
		t.Errorf("error %v", err)
	}
	if len(failed) != 1 {
		t.Errorf("%d vertices failed: %v", len(failed), failed)
	}
	want(t, "failure", f.took(), "fails")
}

func TestSolveGoesOnAfterAFailure(t *testing.T) {
	s, f := newWorld()
	b := s.Build(t.Context(), &world{}, BuildOptions{})
	base := exec("base", "b", graph.Edge{})
	good, bad := exec("good", "g", base), exec("fails", "f", base)
	forced := graph.Edge{V: graph.New(base.V.Op, nil, graph.Named("forced"), graph.NoCache)}
	if _, err := b.Solve(forced); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := b.Solve(bad); err == nil || !strings.Contains(err.Error(), "it fails") {
			t.Fatalf("error %v", err)
		}
	}
	if _, err := b.Solve(good, forced); err != nil {
		t.Fatal(err)
	}
	b.Close()
	want(t, "after a failure", f.took(), "forced", "base", "fails", "fails", "good")
}

func TestMissingFileIsTheCopysFault(t *testing.T) {
	s, _ := newWorld()
	src := &diag.Source{Name: "Dockerfile", Data: []byte("FROM x\nCOPY nope /\n")}
	ctx := graph.Edge{V: graph.New(&graph.Local{Name: "context"}, nil)}
	op := &graph.File{Actions: []graph.Action{{In: graph.None, From: 0, Out: 0, Copy: &graph.Copy{Src: "/nope", Dest: "/"}}}}
	err := solveOnce(t, s, &world{context: map[string]string{}}, nil, graph.Edge{V: graph.New(op, []graph.Edge{ctx}, graph.From(src.Lines(2, 2)))})
	var d *diag.Error
	if !errors.As(err, &d) || d.Kind != diag.NotFound || len(d.At) != 1 || d.At[0].First != 2 {
		t.Errorf("error %#v", err)
	}
}

func TestDeepChainsAreLinear(t *testing.T) {
	s, f := newWorld()
	chain := func(n int) graph.Edge {
		e := exec("0", "0", graph.Edge{})
		for i := 1; i < n; i++ {
			e = exec(fmt.Sprint(i), fmt.Sprint(i), e)
		}
		return e
	}
	if err := solveOnce(t, s, &world{}, nil, chain(400)); err != nil {
		t.Fatal(err)
	}
	if n := len(f.took()); n != 400 {
		t.Errorf("%d runs", n)
	}
	if err := solveOnce(t, s, &world{}, nil, chain(401)); err != nil {
		t.Fatal(err)
	}
	want(t, "one more", f.took(), "400")
}

func waiters[R Result, E any](s *Solver[R, E]) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, f := range s.flights {
		f.mu.Lock()
		n += f.waiters
		f.mu.Unlock()
	}
	return n
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for !ok() {
		if t.Context().Err() != nil {
			t.Fatal("the test ended while it waited")
		}
		time.Sleep(time.Millisecond)
	}
}
