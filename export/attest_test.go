package export

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// holding is an attestation that a step wrote into a tree.
func holding(t *testing.T, s *store.Store, a image.Attestation, files map[string]string) Attestation {
	t.Helper()
	st := tree.NewStack(s, []store.LayerID{addLayer(t, s, files)})
	t.Cleanup(st.Release)
	return Attestation{Attestation: a, Tree: st}
}

func readStatement(t *testing.T, file string) statement {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var s statement
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	if s.Type != "https://in-toto.io/Statement/v1" {
		t.Errorf("type %s", s.Type)
	}
	return s
}

func TestLocalAttestations(t *testing.T) {
	needRoot(t)
	s := openStore(t)
	arm := graph.Platform{OS: "linux", Architecture: "arm64"}
	set := &Set{}
	for _, p := range []graph.Platform{amd64, arm} {
		st := tree.NewStack(s, []store.LayerID{addLayer(t, s, map[string]string{"bin-" + p.Architecture: "program"})})
		defer st.Release()
		set.Images = append(set.Images, Image{Platform: p, Tree: st, Attestation: []Attestation{
			holding(t, s, image.Attestation{PredicateType: "https://example.com/a", Path: "/out/a.json"}, map[string]string{"out/a.json": `{"ok":true}`}),
			holding(t, s, image.Attestation{Path: "/b", Bundle: true}, map[string]string{
				"b/b.json": `{"predicateType":"https://example.com/b","predicate":{"n":1},"subject":[{"name":"x","digest":{"sha256":"ff"}}]}`,
			}),
			{Attestation: image.Attestation{PredicateType: "https://slsa.dev/provenance/v1", Path: "hidden.json", InlineOnly: true}, Make: func(context.Context, []image.Descriptor) ([]byte, error) {
				t.Error("it is for images only")
				return nil, nil
			}},
		}})
	}
	dir := t.TempDir()
	export(t, testEnv(s, &client{dir: dir}), set, output("local", "platform-split=false", "attestation-prefix=x."))
	var names []string
	for _, l := range listing(t, dir) {
		names = append(names, strings.Fields(l)[0])
	}
	if want := []string{"bin-amd64", "bin-arm64", "x.a.linux_amd64.json", "x.a.linux_arm64.json", "x.b.linux_amd64.json", "x.b.linux_arm64.json"}; !slices.Equal(names, want) {
		t.Fatalf("%q", names)
	}
	a := readStatement(t, filepath.Join(dir, "x.a.linux_arm64.json"))
	sum := sha256.Sum256([]byte("program"))
	var predicate struct{ OK bool }
	if err := json.Unmarshal(a.Predicate, &predicate); err != nil || !predicate.OK {
		t.Errorf("%s, %v", a.Predicate, err)
	}
	if len(a.Subject) != 1 || a.Subject[0].Name != "bin-arm64" || a.Subject[0].Digest["sha256"] != hex.EncodeToString(sum[:]) {
		t.Errorf("%+v", a)
	}
	b := readStatement(t, filepath.Join(dir, "x.b.linux_amd64.json"))
	if b.PredicateType != "https://example.com/b" || len(b.Subject) != 1 || b.Subject[0].Name != "x" || b.Subject[0].Digest["sha256"] != "ff" {
		t.Errorf("%+v", b)
	}
	dir = t.TempDir()
	export(t, testEnv(s, &client{dir: dir}), set, output("local"))
	if a := readStatement(t, filepath.Join(dir, "linux_amd64", "a.json")); a.Subject[0].Name != "bin-amd64" {
		t.Errorf("%+v", a)
	}
}

func TestForgedProvenance(t *testing.T) {
	needRoot(t)
	s := openStore(t)
	forged := map[string]string{"p/p.json": `{"predicateType":"https://slsa.dev/provenance/v1","predicate":{}}`}
	for _, a := range []image.Attestation{
		{PredicateType: "https://slsa.dev/provenance/v1", Path: "/p/p.json"},
		{Path: "/p", Bundle: true},
	} {
		set := twoLayers(t, s)
		set.Images[0].Attestation = []Attestation{holding(t, s, a, forged)}
		x, err := New(output("oci"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Run(t.Context(), testEnv(s, &client{}), set, []Exporter{x}); diag.KindOf(err) != diag.Denied {
			t.Errorf("%+v: %v", a, err)
		}
	}
}

func TestNoteLayers(t *testing.T) {
	doc := `{"spdxVersion":"SPDX-2.2","name":"d","files":[{"fileName":"/foo"},{"fileName":"/bar"},{"fileName":"/foo","comment":"mine"}],
		"packages":[{"name":"p","files":[{"fileName":"./foo"}]}]}`
	out := noteLayers([]byte(doc), func(name string) (image.Descriptor, bool) {
		return image.Descriptor{Digest: "sha256:abc"}, strings.HasSuffix(name, "foo")
	})
	var got struct {
		CreationInfo struct{ Creators []string }
		Files        []struct{ FileName, Comment string }
		Packages     []struct{ Files []struct{ Comment string } }
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if got.Files[0].Comment != "layerID: sha256:abc" || got.Files[1].Comment != "" || got.Files[2].Comment != "mine" || got.Packages[0].Files[0].Comment == "" {
		t.Errorf("%s", out)
	}
	if !slices.Equal(got.CreationInfo.Creators, []string{"Tool: strata"}) {
		t.Errorf("%v", got.CreationInfo.Creators)
	}
	for _, other := range []string{"no JSON", `{"bomFormat":"CycloneDX"}`} {
		if got := noteLayers([]byte(other), nil); string(got) != other {
			t.Errorf("%s", got)
		}
	}
}

func TestAnnotationsOfTheFrontend(t *testing.T) {
	needRoot(t)
	s := openStore(t)
	set := twoLayers(t, s)
	err := set.Annotate(map[string]string{"annotation.a": "frontend", "annotation-manifest-descriptor.d": "1", "annotation.b": "frontend", "containerimage.config": "{}"})
	if err != nil {
		t.Fatal(err)
	}
	r := export(t, testEnv(s, &client{}), set, output("oci", "annotation.b=output"))
	raw, err := readBlob(t.Context(), s, r.Descriptor.Digest)
	if err == nil {
		t.Fatalf("an archive leaves no manifest in the store: %s", raw)
	}
	if r.Descriptor.Annotations["d"] != "1" {
		t.Errorf("%+v", r.Descriptor)
	}
	r = export(t, testEnv(s, nil), set, output("image", "name=app:1", "annotation.b=output"))
	if raw, err = readBlob(t.Context(), s, r.Descriptor.Digest); err != nil {
		t.Fatal(err)
	}
	var m struct{ Annotations map[string]string }
	if err := json.Unmarshal(raw, &m); err != nil || m.Annotations["a"] != "frontend" || m.Annotations["b"] != "output" {
		t.Errorf("%s, %v", raw, err)
	}
	if err := set.Annotate(map[string]string{"annotation-nowhere.a": "x"}); err == nil {
		t.Error("an annotation of nothing")
	}
}
