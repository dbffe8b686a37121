package dockerfile

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/strata-build/strata/diag"
)

// TestCheckGolden lints every Dockerfile of testdata/lint.
func TestCheckGolden(t *testing.T) {
	files, _ := filepath.Glob("testdata/lint/*.dockerfile")
	if len(files) == 0 {
		t.Fatal("no testdata")
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".dockerfile")
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			res, err := Check(t.Context(), request(t, name, data), newFake())
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			renderWarnings(&out, res.Warnings)
			if res.Failure != nil {
				out.WriteString("fails\n")
			}
			if res.Err != nil {
				diag.Render(&out, res.Err)
			}
			golden(t, strings.TrimSuffix(file, ".dockerfile")+".golden", out.String())
		})
	}
}

func TestCheckConfigFromArgument(t *testing.T) {
	req := Request{
		Source:    &diag.Source{Name: "Dockerfile", Data: []byte("# check=skip=all\nFROM alpine AS A\n")},
		BuildArgs: map[string]string{"BUILDKIT_DOCKERFILE_CHECK": "error=true"},
	}
	res, err := Check(t.Context(), req, newFake())
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Warnings) != 1 || res.Warnings[0].Rule != "StageNameCasing" || !(res.Failure != nil) {
		t.Errorf("the build argument does not replace the directive: %+v", res)
	}
	if _, err := Plan(t.Context(), req, newFake()); diag.KindOf(err) != diag.Invalid {
		t.Errorf("error=true: %v", err)
	}
	req.BuildArgs["BUILDKIT_DOCKERFILE_CHECK"] = "bogus"
	if _, err := Check(t.Context(), req, newFake()); err == nil {
		t.Error("a wrong option is accepted")
	}
}

// The words of a FROM are looked at also where it has too many of them.
func TestCheckFromWithTooManyWords(t *testing.T) {
	for file, want := range map[string][]string{
		"FROM scratch as a b\n":                                   {"FromAsCasing"},
		"FROM scratch as B\n":                                     {"StageNameCasing", "FromAsCasing"},
		"FROM scratch for B\n":                                    {"StageNameCasing", "FromAsCasing"},
		"FROM scratch AS a b c d\n":                               nil,
		"# syntax=docker/dockerfile:1\nFROM scratch\nLABEL a=b\n": nil,
	} {
		c, err := Check(t.Context(), Request{Source: &diag.Source{Name: "Dockerfile", Data: []byte(file)}}, newFake())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, w := range c.Warnings {
			got = append(got, w.Rule)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q", file, got)
		}
	}
}
