package buildkit

import (
	"strings"
	"testing"

	"google.golang.org/grpc/status"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/llb"
)

func TestErrorsInBuildKitsWords(t *testing.T) {
	typo := diag.Errorf(diag.Invalid, "unknown flag: --mont").WithHint("did you mean --mount?")
	for _, c := range []struct {
		err  error
		want string
	}{
		{typo, "unknown flag: --mont (did you mean mount?)"},
		{diag.Errorf(diag.Invalid, "wrong").WithHint("try again"), "wrong\nhint: try again"},
		{&dockerfile.GrammarError{Line: 4, Err: diag.Errorf(diag.Invalid, "unknown instruction: X")}, "dockerfile parse error on line 4: unknown instruction: X"},
		{
			&engine.ContentError{Input: "sha256:1", Err: diag.Errorf(diag.NotFound, "%q: not found", "/a")},
			`failed to compute cache key: failed to calculate checksum of ref sha256:1: "/a": not found`,
		},
	} {
		if got := status.Convert(toStatus(c.err)).Message(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestUnsupportedByAVersion(t *testing.T) {
	st := status.Convert(toStatus(diag.Errorf(diag.Unsupported, "exporting to image: %w", &engine.CompatibilityError{Version: 10, Feature: "image exporter compression=zstd"})))
	const want = "unsupported compatibility-version 10 feature image exporter compression=zstd"
	if !strings.Contains(st.Message(), want) || len(st.Proto().Details) != 1 {
		t.Fatalf("%v", st)
	}
	d := st.Proto().Details[0]
	if d.TypeUrl != "github.com/moby/buildkit/errdefs.CompatibilityFeature+json" || string(d.Value) != `{"version":10,"feature":"image exporter compression=zstd"}` {
		t.Errorf("%s: %s", d.TypeUrl, d.Value)
	}
}

func TestWarningsTellTheirLine(t *testing.T) {
	src := &diag.Source{Name: "Dockerfile", Data: []byte("FROM a\nRUN b\\\n c\n"), Origin: graph.Edge{V: graph.New(&graph.Local{Name: "dockerfile"}, nil)}}
	r := newJournal(t.TempDir()).warn("sha256:1", &diag.Warning{Rule: "R", Msg: "m", Detail: []string{"d"}, URL: "u", At: []diag.Span{src.Lines(2, 3)}})
	w := r.Warnings[0]
	if string(w.Short) != "R: m (line 2)" || string(w.Detail[0]) != "d" || w.Url != "u" || w.Level != 1 {
		t.Errorf("%v", w)
	}
	if len(w.Ranges) != 2 || w.Ranges[0].Start.Line != 2 || w.Ranges[1].Start.Line != 3 {
		t.Errorf("a range for each line is wanted: %v", w.Ranges)
	}
	if w.Info.GetLanguage() != "Dockerfile" || len(w.Info.GetDefinition().GetDef()) != 2 || llb.SourceInfo(nil) != nil {
		t.Errorf("%v", w.Info)
	}
}

func TestLintAnswer(t *testing.T) {
	src := &diag.Source{Name: "Dockerfile", Data: []byte("FROM a AS B\n")}
	at := []diag.Span{src.Lines(1, 1)}
	res, err := lintAnswer(&dockerfile.Checked{
		Source: src, Warnings: []diag.Warning{{Rule: "R", Msg: "m", Detail: []string{"d"}, URL: "u", At: at}},
		Failure: diag.Errorf(diag.Invalid, "lint violation found for rules: R").WithSpan(at...).WithHint("error=true"),
	})
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"result.json":       `"message": "lint violation found for rules: R"`,
		"result.txt":        "\nWARNING: R - u\nm\nDockerfile:1\n",
		"result.statuscode": "1",
	} {
		if got := string(res.meta[key]); !strings.Contains(got, want) {
			t.Errorf("%s: %s lacks %q", key, got, want)
		}
	}
	clean, err := lintAnswer(&dockerfile.Checked{Source: src})
	if err != nil || string(clean.meta["result.statuscode"]) != "0" || strings.Contains(string(clean.meta["result.json"]), "buildError") {
		t.Errorf("%v, %s", err, clean.meta["result.json"])
	}
}

func TestEpochOfAFrontend(t *testing.T) {
	meta := map[string][]byte{metaEpoch: []byte("1"), metaEpoch + "/linux/amd64": []byte("2"), metaEpoch + "/x": []byte("no")}
	for id, want := range map[string]int64{"": 1, "linux/arm64": 1, "linux/amd64": 2} {
		if got, err := epochIn(meta, id); err != nil || got.Unix() != want {
			t.Errorf("%q: %v, %v", id, got, err)
		}
	}
	if _, err := epochIn(meta, "x"); err == nil {
		t.Error("no number, no error")
	}
}
