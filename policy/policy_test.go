package policy

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

const alpine = "docker-image://docker.io/library/alpine:3"

var linux = graph.Platform{OS: "linux", Architecture: "amd64"}

func rules(t *testing.T, text string) *spb.Policy {
	t.Helper()
	p, err := Read([]byte(`{"rules": [` + text + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func denyRule(id string) string {
	return `{"action": "DENY", "selector": {"identifier": "` + id + `"}}`
}

func allowRule(id string) string {
	return strings.Replace(denyRule(id), "DENY", "ALLOW", 1)
}

func TestRules(t *testing.T) {
	const image = `"docker-image://docker.io/library/alpine:3"`
	for name, tc := range map[string]struct {
		rules string
		want  string // what the image becomes; "" = it is denied
	}{
		"none":             {``, alpine},
		"other":            {denyRule("https://*"), alpine},
		"deny":             {denyRule("docker-image://*"), ""},
		"last wins":        {denyRule("*") + "," + allowRule("docker-image://docker.io/*"), alpine},
		"last wins, deny":  {allowRule("*") + "," + denyRule("*"), ""},
		"exact":            {`{"action": "DENY", "selector": {"identifier": "docker-image://*", "match_type": "EXACT"}}`, alpine},
		"regex":            {`{"action": "DENY", "selector": {"identifier": "alp[a-z]+:3$", "match_type": "REGEX"}}`, ""},
		"attribute":        {`{"action": "DENY", "selector": {"identifier": "*", "constraints": [{"key": "image.layerlimit", "value": "2"}]}}`, ""},
		"other attribute":  {`{"action": "DENY", "selector": {"identifier": "*", "constraints": [{"key": "image.layerlimit", "value": "2", "condition": "NOTEQUAL"}]}}`, alpine},
		"attribute regex":  {`{"action": "DENY", "selector": {"identifier": "*", "constraints": [{"key": "image.layerlimit", "value": "^[0-9]$", "condition": "MATCHES"}]}}`, ""},
		"convert":          {`{"action": "CONVERT", "selector": {"identifier": ` + image + `}, "updates": {"identifier": "docker-image://docker.io/library/busybox:1"}}`, "docker-image://docker.io/library/busybox:1"},
		"convert wildcard": {`{"action": "CONVERT", "selector": {"identifier": "docker-image://docker.io/*:*"}, "updates": {"identifier": "docker-image://mirror.example/${1}:${2}-x"}}`, "docker-image://mirror.example/library/alpine:3-x"},
		"convert regex":    {`{"action": "CONVERT", "selector": {"identifier": "docker.io/library/(\\w+)", "match_type": "REGEX"}, "updates": {"identifier": "quay.io/$1"}}`, "docker-image://quay.io/alpine:3"},
		"convert, denied":  {`{"action": "CONVERT", "selector": {"identifier": ` + image + `}, "updates": {"identifier": "docker-image://x.example/a:1"}},` + denyRule("docker-image://x.example/*"), ""},
		"denied, unless converted": {denyRule("*") + "," + allowRule("docker-image://x.example/*") +
			`,{"action": "CONVERT", "selector": {"identifier": ` + image + `}, "updates": {"identifier": "docker-image://x.example/a:1"}}`, "docker-image://x.example/a:1"},
	} {
		p, err := New(Options{}, rules(t, tc.rules))
		if err != nil {
			t.Fatal(name, err)
		}
		op, err := p.Source(t.Context(), &graph.Image{Ref: "docker.io/library/alpine:3", LayerLimit: 2}, linux)
		if tc.want == "" {
			if diag.KindOf(err) != diag.Denied || !strings.Contains(err.Error(), "source denied by policy") {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if img := op.(*graph.Image); "docker-image://"+img.Ref != tc.want || img.LayerLimit != 2 {
			t.Errorf("%s: %+v", name, img)
		}
	}
}

func TestWrongRules(t *testing.T) {
	for text, want := range map[string]string{
		`{}`: "nil selector",
		`{"action": "DENY", "selector": {"identifier": "a**b"}}`:                                     "invalid wildcard",
		`{"action": "DENY", "selector": {"identifier": "(", "match_type": "REGEX"}}`:                 "invalid pattern",
		`{"action": "DENY", "selector": {"identifier": "x", "typo": "REGEX"}}`:                       "typo",
		`{"action": "REFUSE", "selector": {"identifier": "x"}}`:                                      "REFUSE",
		`{"selector": {"identifier": "x", "constraints": [{"condition": "MATCHES", "value": "("}]}}`: "invalid regex",
	} {
		if _, err := Read([]byte(`{"rules": [` + text + `]}`)); diag.KindOf(err) != diag.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	for text, want := range map[string]string{
		`{"action": "CONVERT", "selector": {"identifier": "*"}}`:                                           "missing destination",
		`{"action": "CONVERT", "selector": {"identifier": "*"}, "updates": {"identifier": "$1"}}`:          "",
		`{"action": "CONVERT", "selector": {"identifier": "*"}, "updates": {"identifier": "${1}x"}}`:       "too many mutations",
		`{"action": "CONVERT", "selector": {"identifier": "*"}, "updates": {"identifier": "nonsense://"}}`: "nonsense",
	} {
		p, err := New(Options{}, rules(t, text))
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Source(t.Context(), &graph.Image{Ref: "docker.io/library/alpine:3"}, linux)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestSources(t *testing.T) {
	when := time.Unix(1000, 0)
	sum := graph.Digest("sha256:" + strings.Repeat("a", 64))
	p, err := New(Options{}, rules(t, denyRule("local://secret")+`,
		{"action": "CONVERT", "selector": {"identifier": "https://*"}, "updates": {"attrs": {"http.checksum": "`+string(sum)+`"}}},
		{"action": "CONVERT", "selector": {"identifier": "git://github.com/a/b.git#main"}, "updates": {"identifier": "git://github.com/a/b.git#v1"}}`),
		rules(t, denyRule("git://*:absolute/path")), rules(t, denyRule("oci-layout+blob://local/bundle@*")))
	if err != nil {
		t.Fatal(err)
	}
	op, err := p.Source(t.Context(), &graph.HTTP{URL: "https://x/y", ModTime: &when}, linux)
	if h, ok := op.(*graph.HTTP); err != nil || !ok || h.Checksum != sum || h.ModTime != &when {
		t.Errorf("%+v %v", op, err)
	}
	op, err = p.Source(t.Context(), &graph.Git{Remote: "https://github.com/a/b.git", Ref: "main", KeepDir: true}, linux)
	if g, ok := op.(*graph.Git); err != nil || !ok || g.Ref != "v1" || !g.KeepDir || g.Remote != "https://github.com/a/b.git" {
		t.Errorf("%+v %v", op, err)
	}
	same := &graph.Local{Name: "context", Follow: []string{"a"}}
	if op, err := p.Source(t.Context(), same, graph.Platform{}); err != nil || op != graph.Op(same) {
		t.Errorf("%+v %v", op, err)
	}
	exec := &graph.Exec{}
	if op, err := p.Source(t.Context(), exec, linux); err != nil || op != graph.Op(exec) {
		t.Errorf("%+v %v", op, err)
	}
	for _, denied := range []graph.Op{
		&graph.Local{Name: "secret"}, &graph.Git{Remote: "https://github.com/a/b.git", Ref: "x", Subdir: "absolute/path"},
		&graph.Git{Remote: "https://github.com/a/c.git", Checksum: "1", BundleFrom: "oci-layout+blob://local/bundle@sha256:" + strings.Repeat("b", 64)},
	} {
		if _, err := p.Source(t.Context(), denied, linux); diag.KindOf(err) != diag.Denied {
			t.Errorf("%+v: %v", denied, err)
		}
	}
	if p, err := New(Options{}, nil, &spb.Policy{}); p != nil || err != nil {
		t.Error("an empty policy is one", err)
	}
	if op, err := (*Policy)(nil).Source(t.Context(), same, linux); err != nil || op != graph.Op(same) {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	var seen []string
	opt := Options{Check: func(_ context.Context, src *pb.SourceOp, p graph.Platform, asked *int) (*pb.SourceOp, error) {
		if err := Question(asked); err != nil {
			return nil, err
		}
		seen = append(seen, src.Identifier+" "+p.Architecture+" "+src.Attrs["foo"])
		switch {
		case src.Identifier == alpine:
			return &pb.SourceOp{Identifier: "docker-image://docker.io/library/busybox:1", Attrs: map[string]string{"foo": "bar"}}, nil
		case strings.HasPrefix(src.Identifier, "https:"):
			return src, nil
		}
		return nil, nil
	}}
	p, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	op, err := p.Source(t.Context(), &graph.Image{Ref: "docker.io/library/alpine:3"}, linux)
	if err != nil || op.(*graph.Image).Ref != "docker.io/library/busybox:1" {
		t.Errorf("%+v %v", op, err)
	}
	if want := []string{alpine + " amd64 ", "docker-image://docker.io/library/busybox:1 amd64 bar"}; !reflect.DeepEqual(seen, want) {
		t.Errorf("%q", seen)
	}
	seen = nil
	_, err = p.Source(t.Context(), &graph.HTTP{URL: "https://x/y"}, linux)
	if err == nil || !strings.Contains(err.Error(), "too many policy requests") || len(seen) != MaxQuestions {
		t.Errorf("%v after %d questions", err, len(seen))
	}
	// What the rules make of a source is what is asked about, and what the answer makes is subject to the rules.
	p, err = p.With(rules(t, denyRule("docker-image://docker.io/library/busybox:*")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Source(t.Context(), &graph.Image{Ref: "docker.io/library/alpine:3"}, linux); diag.KindOf(err) != diag.Denied {
		t.Error(err)
	}
	if _, err := p.Unchecked().Source(t.Context(), &graph.Image{Ref: "docker.io/library/alpine:3"}, linux); err != nil {
		t.Error(err)
	}
}
