package provenance

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

var amd64 = graph.Platform{OS: "linux", Architecture: "amd64"}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"https://u:p@h/x#r": "https://xxxxx:xxxxx@h/x#r", "https://u@h/x": "https://xxxxx@h/x", "https://h/x": "https://h/x", "a b:%": "a b:%",
	} {
		if got := Redact(in); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

func TestOptions(t *testing.T) {
	o, err := ParseOptions(nil)
	if err != nil || !o.Max || o.Type() != TypeV1 || o.Filename != "provenance.json" {
		t.Errorf("%+v, %v", o, err)
	}
	o, err = ParseOptions(map[string]string{"mode": "min", "version": "v0.2", "inline-only": "true", "builder-id": "https://b", "reproducible": "true", "filename": "p"})
	if err != nil || o != (Options{V02: true, InlineOnly: true, BuilderID: "https://b", Reproducible: true, Filename: "p"}) || o.Type() != TypeV02 {
		t.Errorf("%+v, %v", o, err)
	}
	for k, v := range map[string]string{"mode": "most", "version": "v3", "reproducible": "perhaps", "complete-materials": "x"} {
		if _, err := ParseOptions(map[string]string{k: v}); err == nil || !strings.Contains(err.Error(), v) {
			t.Errorf("%s: %v", k, err)
		}
	}
}

// example is a build of an image, a commit and a directory, with secrets.
func example(t *testing.T) *Sources {
	t.Helper()
	base := graph.New(&graph.Image{Ref: "docker.io/library/base:1"}, nil, graph.On(amd64))
	pinned := graph.New(&graph.Image{Ref: "docker.io/library/base:1@sha256:" + strings.Repeat("b", 64)}, nil, graph.On(amd64))
	src := graph.New(&graph.Git{Remote: "https://u:p@example.com/r.git", Ref: "v1", AuthToken: "token"}, nil)
	dir := graph.New(&graph.Local{Name: "context"}, nil)
	run := graph.New(&graph.Exec{
		Network: graph.NetworkNone,
		Mounts: []graph.Mount{
			{Type: graph.MountBind, Target: "/", Input: 0, Output: 0},
			{Type: graph.MountSecret, ID: "s", Optional: true, Input: graph.None, Output: graph.None},
			{Type: graph.MountSSH, Input: graph.None, Output: graph.None},
		},
		SecretEnv: []graph.SecretEnv{{ID: "s", Name: "S"}},
	}, []graph.Edge{{V: base}, {V: pinned}, {V: src}, {V: dir}})
	s, err := Collect([]graph.Edge{{V: run}, {V: base}}, func(v *graph.Vertex) (string, error) {
		if _, ok := v.Op.(*graph.Git); ok {
			return strings.Repeat("c", 40), nil
		}
		return digest.FromString("image").String(), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCollect(t *testing.T) {
	s := example(t)
	if len(s.Images) != 1 || s.Images[0].Ref != "docker.io/library/base:1" || s.Images[0].Digest != digest.FromString("image") {
		t.Errorf("%+v", s.Images)
	}
	if len(s.Git) != 1 || s.Git[0].URL != "https://xxxxx:xxxxx@example.com/r.git#v1" {
		t.Errorf("%+v", s.Git)
	}
	if !reflect.DeepEqual(s.Secrets, []Need{{"s", false}, {"token", true}}) || !reflect.DeepEqual(s.SSH, []Need{{"default", false}}) {
		t.Errorf("%+v %+v", s.Secrets, s.SSH)
	}
	if s.Network || s.Incomplete || !reflect.DeepEqual(s.Locals, []string{"context"}) {
		t.Errorf("%+v", s)
	}
}

func TestForPlatform(t *testing.T) {
	arm := graph.Platform{OS: "linux", Architecture: "arm64"}
	s := &Sources{Images: []Image{{Ref: "a", Platform: &amd64}, {Ref: "a", Platform: &arm}, {Ref: "only", Platform: &amd64}}}
	got := s.For(arm, []graph.Platform{amd64, arm})
	if len(got.Images) != 2 || got.Images[0].Platform != &arm || got.Images[1].Ref != "only" || len(s.Images) != 3 {
		t.Errorf("%+v", got.Images)
	}
}

func definition(t *testing.T) (*pb.Definition, graph.Digest) {
	t.Helper()
	marshal := func(op *pb.Op) ([]byte, graph.Digest) {
		b, err := op.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		return b, digest.FromBytes(b)
	}
	src, d := marshal(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "local://x", Attrs: map[string]string{pb.AttrLocalSessionID: "secret", pb.AttrLocalUniqueID: "u"}}}})
	last, _ := marshal(&pb.Op{Inputs: []*pb.Input{{Digest: d.String()}}})
	at := map[string]*pb.Locations{d.String(): {Locations: []*pb.Location{{SourceIndex: 1}}}}
	info := &pb.SourceInfo{Filename: "Dockerfile", Data: []byte("FROM x"), Language: "Dockerfile"}
	return &pb.Definition{Def: [][]byte{src, last}, Source: &pb.Source{Infos: []*pb.SourceInfo{info, info}, Locations: at}}, d
}

func TestPredicates(t *testing.T) {
	def, op := definition(t)
	req := NewRequest("dockerfile.v0", map[string]string{
		"context": "https://u:p@example.com/r.git#v1:sub", "filename": "D", "build-arg:A": "1", "label:l": "2", "vcs:source": "https://u:p@h", "attest:sbom": "", "platform": "x", "target": "t",
	})
	req.Inputs = map[string]*Request{"in": NewRequest("dockerfile.v0", map[string]string{"build-arg:B": "1"})}
	req.Root = NewRequest("", map[string]string{"k": "v"})
	b := Build{
		Options: Options{Max: true}, Request: req, Sources: example(t), Definition: def, ID: "id", Started: time.Unix(1, 0), Builder: amd64, Target: amd64,
		Language: "1.2.3", Env: map[string]any{"who": "me", "platform": "not mine"}, Compatibility: 30,
	}
	layers := []Layers{{Step: op, Layers: []image.Descriptor{{Digest: "sha256:l"}}}, {Step: "sha256:other", Layers: []image.Descriptor{{}}}}
	raw, err := b.Predicate(time.Unix(2, 0), layers)
	if err != nil {
		t.Fatal(err)
	}
	var v1 predicateV1
	if err := json.Unmarshal(raw, &v1); err != nil {
		t.Fatal(err)
	}
	ext, meta := v1.BuildDefinition.ExternalParameters, v1.RunDetails.Metadata
	if ext.ConfigSource.URI != "https://xxxxx:xxxxx@example.com/r.git#v1:sub" || ext.ConfigSource.Digest["sha1"] != strings.Repeat("c", 40) || ext.ConfigSource.Path != "D" {
		t.Errorf("%+v", ext.ConfigSource)
	}
	p := ext.Request
	if !reflect.DeepEqual(p.Args, map[string]string{"build-arg:A": "1", "label:l": "2", "target": "t"}) || p.Inputs["in"].Request.Args["build-arg:B"] != "1" || p.Root.Request.Args["k"] != "v" {
		t.Errorf("%+v", p)
	}
	if meta.BuildKit.VCS["source"] != "https://xxxxx:xxxxx@h" || len(meta.BuildKit.Layers["step0:0"]) != 1 || len(meta.BuildKit.Layers) != 1 {
		t.Errorf("%+v", meta.BuildKit)
	}
	if s := meta.BuildKit.Source; len(s.Infos) != 1 || s.Locations["step0"].Locations[0].SourceIndex != 0 {
		t.Errorf("a file that was read twice is one: %+v", s)
	}
	if !meta.Completeness.Request || meta.Completeness.Dependencies || meta.Hermetic || v1.BuildDefinition.InternalParameters["who"] != "me" {
		t.Errorf("%s", raw)
	}
	if strings.Contains(string(raw), "secret\"") {
		t.Errorf("a session's id is told: %s", raw)
	}
	b.Max, b.V02 = false, true
	if raw, err = b.Predicate(time.Unix(2, 0), nil); err != nil {
		t.Fatal(err)
	}
	for _, hidden := range []string{"build-arg", "label:", "llbDefinition", `"secrets"`} {
		if strings.Contains(string(raw), hidden) {
			t.Errorf("%s in %s", hidden, raw)
		}
	}
	var v02 predicateV02
	if err := json.Unmarshal(raw, &v02); err != nil {
		t.Fatal(err)
	}
	if v02.Metadata.Completeness.Parameters || v02.Invocation.Environment["platform"] != "linux/amd64" || len(v02.Materials) != 2 || v02.Invocation.ConfigSource.EntryPoint != "D" {
		t.Errorf("%s", raw)
	}
	if req.Args["build-arg:A"] != "1" || req.Args["filename"] != "D" {
		t.Error("the request was changed")
	}
	b.Complete = true
	if _, err := b.Predicate(time.Unix(2, 0), nil); err == nil || !strings.Contains(err.Error(), "materials are incomplete") {
		t.Errorf("%v", err)
	}
}

func TestFetchedByProxies(t *testing.T) {
	s := &Sources{}
	s.Fetched([]Download{{URL: "http://a/x", Digest: graph.Digest("sha256:" + strings.Repeat("1", 64))}}, nil)
	b := &Build{Sources: s, Options: Options{Complete: true}}
	out, err := b.Predicate(time.Unix(2, 0), nil)
	if err != nil || !strings.Contains(string(out), "http://a/x") || !strings.Contains(string(out), `"mode": "proxy"`) {
		t.Errorf("%s %v", out, err)
	}
	s.Fetched(nil, []Missed{{Step: "curl", Method: "POST", URL: "http://a/y", Reason: "method_not_materializable"}})
	_, err = b.Predicate(time.Unix(2, 0), nil)
	var e *IncompleteError
	if !errors.As(err, &e) || len(e.Missed) != 1 || diag.KindOf(err) != diag.Invalid || !strings.Contains(err.Error(), "http://a/y") {
		t.Error(err)
	}
	b.Complete = false
	if out, err = b.Predicate(time.Unix(2, 0), nil); err != nil || !strings.Contains(string(out), `"reason": "method_not_materializable"`) {
		t.Errorf("%s %v", out, err)
	}
}
