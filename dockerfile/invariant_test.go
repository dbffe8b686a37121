package dockerfile

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// layersOf counts the vertices that put a layer on the base of a target.
func layersOf(e graph.Edge) int {
	n := 0
	for !e.IsScratch() {
		switch op := e.V.Op.(type) {
		case *graph.Exec:
			n++
			i := op.Mounts[0].Input
			if i == graph.None {
				return n
			}
			e = e.V.In[i]
		case *graph.File:
			n++
			first := op.Actions[0]
			for _, a := range op.Actions {
				if a.Mkfile == nil {
					first = a
					break
				}
			}
			if first.In == graph.None {
				return n
			}
			e = e.V.In[first.In]
		case *graph.Merge:
			n++
			e = e.V.In[0]
		case *graph.Squash:
			n++
			e = e.V.In[1]
		case *graph.Layers:
			n += 2 // what the fake resolver says
			e = e.V.In[1]
		default:
			return n
		}
	}
	return n
}

func rows(h []image.History) int {
	n := 0
	for _, r := range h {
		if !r.EmptyLayer {
			n++
		}
	}
	return n
}

// TestLayersMatchHistory holds every golden Dockerfile to the rule that an instruction makes one layer and one row of
// the history, or neither.
func TestLayersMatchHistory(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.dockerfile")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := Plan(t.Context(), request(t, file, data), newFake())
		if err != nil {
			continue
		}
		for _, target := range plan.Targets {
			base := 0
			if target.Base != nil && !strings.Contains(target.Base.Name, "bare") {
				base = 1
			}
			if l, r := layersOf(target.Root), rows(target.Config.History); l+base != r {
				t.Errorf("%s: %d layers on %d of the base, but %d rows", file, l, base, r)
			}
		}
	}
}

// TestPlanIsStable plans everything twice: the vertices' IDs must agree.
func TestPlanIsStable(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.dockerfile")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var ids [2]graph.Digest
		for i := range ids {
			plan, err := Plan(t.Context(), request(t, file, data), newFake())
			if err == nil && plan.Targets[0].Root.V != nil {
				ids[i] = plan.Targets[0].Root.V.ID
			}
		}
		if ids[0] != ids[1] {
			t.Errorf("%s: %s and then %s", file, ids[0], ids[1])
		}
	}
}

// An argument that a RUN does not see must not change its key.
func TestKeys(t *testing.T) {
	id := func(text string, args map[string]string) graph.Digest {
		t.Helper()
		plan, err := Plan(t.Context(), Request{BuildPlatform: amd64, BuildArgs: args, Source: &diag.Source{Name: "Dockerfile", Data: []byte(text)}}, newFake())
		if err != nil {
			t.Fatal(err)
		}
		return plan.Targets[0].Root.V.ID
	}
	const late = "FROM alpine\nRUN a\nARG X\n"
	if id(late, nil) != id(late, map[string]string{"X": "1"}) {
		t.Error("an ARG after the RUN changes its key")
	}
	const early = "FROM alpine\nARG X\nRUN a\n"
	if id(early, nil) == id(early, map[string]string{"X": "1"}) {
		t.Error("an ARG in scope does not change the key")
	}
	if id(late, nil) != id(late, map[string]string{"HTTP_PROXY": "http://x"}) {
		t.Error("a proxy changes the key")
	}
	if id("FROM alpine\nRUN a\n", nil) != id("# comment\nFROM alpine AS x\n\nRUN   a\n", nil) {
		t.Error("the text around an instruction changes its key")
	}
	if id("FROM alpine\nCOPY --link a b\nRUN x", nil) == id("FROM alpine\nCOPY a b\nRUN x", nil) {
		t.Error("a linked copy is the same as another")
	}
}

// meter counts how many images are being resolved at once; every call waits for the others.
type meter struct {
	*fake
	want  int32
	now   atomic.Int32
	ready chan struct{}
}

func (m *meter) Image(ctx context.Context, ref string, p graph.Platform, mode graph.ResolveMode) (Resolved, error) {
	if m.now.Add(1) == m.want {
		close(m.ready)
	}
	select {
	case <-m.ready:
	case <-ctx.Done():
		return Resolved{}, ctx.Err()
	}
	return m.fake.Image(ctx, ref, p, mode)
}

func TestBasesResolveInParallel(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	m := &meter{fake: newFake(), want: 4, ready: make(chan struct{})}
	src := &diag.Source{Name: "Dockerfile", Data: []byte("FROM a AS one\nFROM b AS two\nFROM c\nCOPY --from=one / /\nCOPY --from=two / /\nCOPY --from=d / /\nFROM x AS unused\n")}
	if _, err := Plan(ctx, Request{Source: src, Target: "2"}, m); err != nil {
		t.Fatal(err)
	}
	for _, ref := range m.asked {
		if strings.Contains(ref, "/x:") {
			t.Error("an unused stage was resolved")
		}
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m := &meter{fake: newFake(), want: 2, ready: make(chan struct{})}
	_, err := Plan(ctx, Request{Source: &diag.Source{Name: "Dockerfile", Data: []byte("FROM a")}}, m)
	if diag.KindOf(err) != diag.Canceled {
		t.Errorf("%v", err)
	}
}

// FuzzPlan looks for texts that make the planner panic or not come back.
func FuzzPlan(f *testing.F) {
	for _, glob := range []string{"testdata/*.dockerfile", "testdata/lint/*.dockerfile"} {
		files, _ := filepath.Glob(glob)
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			for strings.HasPrefix(string(data), "#! ") {
				_, rest, _ := strings.Cut(string(data), "\n")
				data = []byte(rest)
			}
			f.Add(string(data))
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		req := Request{Source: &diag.Source{Name: "Dockerfile", Data: []byte(text)}, BuildPlatform: amd64, BuildArgs: map[string]string{"A": "x"}}
		plan, err := Plan(t.Context(), req, newFake())
		if err == nil && len(plan.Targets) != 1 {
			t.Error("no target")
		}
		if err != nil {
			var b strings.Builder
			diag.Render(&b, err)
		}
		if _, err := Targets(req.Source); err == nil {
			_, _ = Check(t.Context(), req, newFake())
		}
	})
}

// A Dockerfile of a few lines must not fill the memory.
func TestLimits(t *testing.T) {
	double := "FROM scratch\nENV A=xxxxxxxxxxxxxxxx\n" + strings.Repeat("ENV A=$A$A\n", 60)
	many := "FROM scratch\nARG B=" + strings.Repeat("x", 60000) + "\n" + strings.Repeat("LABEL l=$B\n", 200)
	for name, text := range map[string]string{
		"doubling": double,
		"history":  many,
		"main":     "ARG A=xxxxxxxxxxxxxxxx\n" + strings.Repeat("ARG A=$A$A\n", 60) + "FROM scratch\n",
		"replace":  "FROM scratch\nENV A=" + strings.Repeat("x", 60000) + "\nENV B=${A//x/$A}\n",
		"length":   "FROM scratch\n" + strings.Repeat("ENV A=b\n", maxInstructions),
		"lines":    "FROM scratch\n" + strings.Repeat("#\n", 8_000_000),
		"trigger":  "FROM scratch AS a\n" + strings.Repeat("ONBUILD ENV A=b\n", maxInstructions) + "FROM a\n",
		"ports":    "FROM scratch\nEXPOSE " + strings.Repeat("0-65535 ", 7000) + "\n",
	} {
		_, err := Plan(t.Context(), Request{Source: &diag.Source{Name: "Dockerfile", Data: []byte(text)}}, newFake())
		if diag.KindOf(err) != diag.Exhausted {
			t.Errorf("%s: %v", name, err)
		}
	}
}
