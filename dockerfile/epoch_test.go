package dockerfile

import (
	"strings"
	"testing"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

func TestEpochOfTargets(t *testing.T) {
	for _, c := range []struct{ file, given, want string }{
		{"ARG SOURCE_DATE_EPOCH=7\nFROM scratch\n", "", "7"},
		{"ARG SOURCE_DATE_EPOCH=7\nFROM scratch\n", "9", "9"},
		{"FROM scratch\n", "context", ""}, // a client's directory has no time of its own
		{"FROM scratch\n", "", ""},
	} {
		req := Request{Source: &diag.Source{Name: "Dockerfile", Data: []byte(c.file)}}
		if c.given != "" {
			req.BuildArgs = map[string]string{epochArg: c.given}
		}
		plan, err := Plan(t.Context(), req, newFake())
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if e := plan.Targets[0].Epoch; e != nil {
			got = e.Format("5")
		}
		if got != c.want {
			t.Errorf("%q with %q: %q, want %q", c.file, c.given, got, c.want)
		}
	}
}

func TestOnlySource(t *testing.T) {
	web := edge(graph.New(&graph.HTTP{URL: "http://x/a.tar", Filename: "context"}, nil))
	if v := onlySource(copyInto(web, graph.Copy{Src: "/context", Dest: "/", Unpack: true}, "unpack")); v != web.V {
		t.Errorf("%v", v)
	}
	local := edge(graph.New(&graph.Local{Name: "context"}, nil))
	both := edge(graph.New(&graph.Merge{}, []graph.Edge{web, local}))
	for _, e := range []graph.Edge{{}, local, both} {
		if v := onlySource(e); v != nil {
			t.Errorf("%v", v)
		}
	}
}

func TestWarningsComeWithTheError(t *testing.T) {
	req := Request{Source: &diag.Source{Name: "Dockerfile", Data: []byte("FROM scratch AS Bad\nMAINTAINER me\nBADCMD\n")}}
	plan, err := Plan(t.Context(), req, newFake())
	if err == nil || !strings.Contains(err.Error(), "unknown instruction: BADCMD") {
		t.Fatal(err)
	}
	if plan == nil || len(plan.Targets) != 0 || len(plan.Warnings) != 2 || plan.Warnings[0].Rule != "StageNameCasing" {
		t.Errorf("%+v", plan)
	}
}
