package lint

import (
	"slices"
	"testing"

	"github.com/strata-build/strata/diag"
)

func TestParseConfig(t *testing.T) {
	c, err := ParseConfig(" skip=A, B ; error=true;experimental=all")
	if err != nil || !slices.Equal(c.Skip, []string{"A", "B"}) || !c.Error || !c.ExperimentalAll || c.SkipAll {
		t.Errorf("%+v, %v", c, err)
	}
	for _, bad := range []string{"skip", "error=maybe", "what=x", "skip=A;;"} {
		if _, err := ParseConfig(bad); diag.KindOf(err) != diag.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestWithNarrows(t *testing.T) {
	src := &diag.Source{Name: "Dockerfile", Data: []byte("x\ny\n")}
	l := New(Config{})
	MaintainerDeprecated(l.With([]string{"check = skip=MaintainerDeprecated because it is old"}), []diag.Span{src.Lines(1, 1)})
	MaintainerDeprecated(l.With([]string{"check=nonsense"}), []diag.Span{src.Lines(2, 2)})
	MaintainerDeprecated(l.With(nil), []diag.Span{src.Lines(1, 1)})
	ws := l.Warnings()
	if len(ws) != 2 || ws[0].At[0].First != 1 || ws[1].At[0].First != 2 {
		t.Errorf("%+v", ws)
	}
	if ws[0].URL != "https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/" || ws[0].Level != 1 || len(ws[0].Detail) != 1 {
		t.Errorf("%+v", ws[0])
	}
	if l.Err() != nil {
		t.Error("warnings are errors without being asked for")
	}
}

func TestNilLinter(t *testing.T) {
	var l *Linter
	StageNameCasing(l.With([]string{"check=skip=all"}), nil, "A")
	if l.Warnings() != nil || l.Err() != nil {
		t.Error("a nil linter found something")
	}
}

func TestSecretNames(t *testing.T) {
	for name, want := range map[string]bool{
		"TOKEN": true, "GITHUB_TOKEN": true, "api_key": true, "apikey": true, "AUTH": true, "DB_PASSWD": true,
		"TOKENS": false, "KEYBOARD": false, "PUBLIC_KEY": false, "PASSWORD_FILE": false, "TOKEN_VERSION": false, "GITHUBTOKEN": false,
	} {
		l := New(Config{})
		SecretsUsedInArgOrEnv(l, nil, "ENV", name)
		if got := len(l.Warnings()) == 1; got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
