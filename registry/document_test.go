package registry

import (
	"encoding/json"
	"io"
	"log"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/image"
)

var nilLog = log.New(io.Discard, "", 0)

const (
	aDigest  = `"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"`
	aDesc    = `{"mediaType":"x/y","digest":` + aDigest + `,"size":1}`
	manifest = ocispec.MediaTypeImageManifest
	index    = ocispec.MediaTypeImageIndex
)

func TestDecode(t *testing.T) {
	ok := map[string]string{
		`{"schemaVersion":2,"config":` + aDesc + `,"layers":[]}`:                                         manifest,
		`{"schemaVersion":2,"mediaType":"` + manifest + `","config":` + aDesc + `,"layers":[]}`:          "",
		`{"schemaVersion":2,"config":` + aDesc + `,"layers":[],"annotations":{"Size":"1","size":"2"}}`:   manifest + "; charset=utf-8",
		`{"schemaVersion":2,"mediaType":"` + image.DockerManifestList + `","manifests":[` + aDesc + `]}`: "application/json",
		`{"schemaVersion":2,"manifests":[` + aDesc + `]}`:                                                "",
		`{"schemaVersion":2,"manifests":[],"futureField":{"A":1,"a":2}}`:                                 index,
	}
	ok[`{"schemaVersion":2,"config":`+aDesc+`,"layers":[] }`] = "application/octet-stream"
	for in, mt := range ok {
		if _, err := Decode([]byte(in), mt); err != nil {
			t.Errorf("%s: %v", in, err)
		}
	}
	bad := []struct {
		in, mt string
		kind   diag.Kind
		text   string
	}{
		{`{"schemaVersion":2,"layers":[]}`, "", diag.Invalid, "neither a manifest nor an index"},
		{`{"schemaVersion":2,"config":` + aDesc + `,"layers":[],"manifests":[]}`, manifest, diag.Invalid, "both"},
		{`{"schemaVersion":2,"config":` + aDesc + `,"layers":[],"manifests":[]}`, index, diag.Invalid, "both"},
		{`{"schemaVersion":2,"config":` + aDesc + `,"layers":[],"layers":[]}`, manifest, diag.Invalid, "twice"},
		{`{"schemaVersion":2,"config":` + aDesc + `,"layers":[],"Layers":[]}`, manifest, diag.Invalid, `"Layers" is not "layers"`},
		{`{"schemaVersion":2,"config":{"mediaType":"a","Digest":` + aDigest + `,"size":1},"layers":[]}`, manifest, diag.Invalid, `"Digest"`},
		{`{"schemaVersion":2,"mediaType":"` + index + `","config":` + aDesc + `}`, manifest, diag.Invalid, "announced"},
		{`{"schemaVersion":2,"layers":[]}`, manifest, diag.Invalid, "no config"},
		{`{"schemaVersion":2,"config":` + aDesc + `}`, index, diag.Invalid, "no manifests"},
		{`{"schemaVersion":2,"config":{"mediaType":"a","digest":"sha256:../../x","size":1}}`, manifest, diag.Invalid, "invalid digest"},
		{`{"schemaVersion":2,"config":{"mediaType":"a","digest":` + aDigest + `,"size":-1}}`, manifest, diag.Invalid, "negative"},
		{`{"schemaVersion":2,"config":{"digest":` + aDigest + `,"size":1}}`, manifest, diag.Invalid, "no mediaType"},
		{`{"schemaVersion":1,"fsLayers":[]}`, image.DockerSchema1, diag.Unsupported, "schema 1"},
		{`{"schemaVersion":1}`, "", diag.Unsupported, "skopeo"},
		{`{"schemaVersion":2,"config":` + aDesc + `} {}`, manifest, diag.Invalid, "after"},
		{`[]`, manifest, diag.Invalid, "object"},
		{``, manifest, diag.Invalid, "JSON"},
		{`{"schemaVersion":2,"config":`, manifest, diag.Invalid, "JSON"},
		{`{}`, "text/html", diag.Unsupported, "text/html"},
		{strings.Repeat(" ", MaxManifest+1), manifest, diag.Exhausted, "more than"},
	}
	for _, tc := range bad {
		_, err := Decode([]byte(tc.in), tc.mt)
		wantKind(t, err, tc.kind, tc.text)
	}
}

func TestDecodeConfig(t *testing.T) {
	c, err := DecodeConfig([]byte(`{"architecture":"arm64","os":"linux","variant":"v8","config":{"Env":["A=b"],"Labels":{"os":"x","OS":"y"}},"rootfs":{"type":"layers","diff_ids":[` + aDigest + `]},"x-own":1}`))
	if err != nil || c.Architecture != "arm64" || len(c.RootFS.DiffIDs) != 1 || !strings.Contains(string(c.Extra), "x-own") {
		t.Fatalf("%+v %v", c, err)
	}
	for _, in := range []string{`{"os":"linux","OS":"windows"}`, `{"rootfs":{"diff_ids":["x"]}}`, `{"rootfs":{},"rootfs":{}}`, `{"RootFS":{}}`} {
		_, err := DecodeConfig([]byte(in))
		wantKind(t, err, diag.Invalid)
	}
}

// A registry answers with a manifest or a configuration of a million levels. A parser that recurses needs a gigabyte of stack.
func TestDocumentOfMillionLevels(t *testing.T) {
	for _, unit := range []string{"[", `{"a":`} {
		deep := func(most int) []byte {
			return []byte(`{"schemaVersion":2,"x":` + strings.Repeat(unit, (most-100)/len(unit)))
		}
		_, err := Decode(deep(MaxManifest), manifest)
		wantKind(t, err, diag.Exhausted, "levels")
		_, err = DecodeConfig(deep(MaxConfig))
		wantKind(t, err, diag.Exhausted, "levels")
	}
}

// A manifest of a million empty descriptors: three bytes each, and 200 in memory.
func TestManifestOfMillionDescriptors(t *testing.T) {
	_, err := Decode([]byte(`{"schemaVersion":2,"config":`+aDesc+`,"layers":[`+strings.Repeat("{},", 1_000_000)+`{}]}`), manifest)
	wantKind(t, err, diag.Exhausted, "values")
	_, err = DecodeConfig([]byte(`{"rootfs":{"diff_ids":[` + strings.Repeat(`"",`, 1_000_000) + `""]}}`))
	wantKind(t, err, diag.Exhausted, "values")
}

// encoding/json takes the long s and the Kelvin sign for s and k.
func TestKeysInLettersThatFold(t *testing.T) {
	_, err := Decode([]byte("{\"schemaVersion\":2,\"config\":{\"mediaType\":\"a\",\"dige\u017ft\":"+aDigest+",\"size\":1},\"layers\":[]}"), manifest)
	wantKind(t, err, diag.Invalid, "is not")
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":`+aDesc+`,"layers":[]}`), manifest)
	f.Fuzz(func(_ *testing.T, data []byte, mt string) {
		_, _ = Decode(data, mt)
		_, _ = DecodeConfig(data)
	})
}

// A chart, a signature or a module is not an image, and its type says so.
func TestArtifactType(t *testing.T) {
	for raw, want := range map[string]string{
		`{"config":{"mediaType":"application/vnd.oci.image.config.v1+json"}}`:                                   "",
		`{"artifactType":"x/y","config":{"mediaType":"application/vnd.docker.container.image.v1+json"}}`:        "",
		`{"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json"}}`:                                   "application/vnd.cncf.helm.config.v1+json",
		`{"artifactType":"application/vnd.example","config":{"mediaType":"application/vnd.oci.empty.v1+json"}}`: "application/vnd.example",
		`{"config":{}}`: "", // of old builders
	} {
		var m ocispec.Manifest
		if err := json.Unmarshal([]byte(raw), &m); err != nil {
			t.Fatal(err)
		}
		if got := ArtifactType(&m); got != want {
			t.Errorf("%s: %q, want %q", raw, got, want)
		}
	}
}
