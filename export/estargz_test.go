package export

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
)

// An eStargz image is one for everybody (its diff_ids are of what the blobs hold), its files can be read one by one, and pushing
// it again makes the same. What was pulled stays, unless it is told otherwise.
func TestEStargz(t *testing.T) {
	s := openStore(t)
	set := twoLayers(t, s)
	env := testEnv(s, &client{})
	ids, _ := set.Images[0].Tree.Layers()
	pulled := pulledLayer(t, s, ids[0])
	set.Images[0].BaseLayers = 1
	host := testRegistry(t)
	push := func(attrs ...string) (digest string) {
		t.Helper()
		r := export(t, env, set, output("image", append(attrs, "compression=estargz", "push=true", "name="+host+"/app")...))
		check(t, pull(t, host+"/app"))
		return r.Metadata["containerimage.digest"]
	}
	push()
	m, err := pull(t, host+"/app").Manifest()
	if err != nil || m.Layers[0].Digest.String() != pulled.Digest.String() || m.Layers[1].Annotations[estargz.TOCJSONDigestAnnotation] == "" {
		t.Fatalf("%+v, %v", m, err)
	}
	first := push("force-compression=true")
	img := pull(t, host+"/app")
	if m, err = img.Manifest(); err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	seen := ""
	for i, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		blob, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		z, err := estargz.Open(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.VerifyTOC(digest.Digest(m.Layers[i].Annotations[estargz.TOCJSONDigestAnnotation])); err != nil {
			t.Errorf("layer %d: %v", i, err)
		}
		for _, name := range []string{"data", "app/main"} {
			if f, err := z.OpenFile(name); err == nil {
				seen += readAll(t, f)
			}
		}
	}
	if seen != "data"+strings.Repeat("layer two\n", 3000) {
		t.Errorf("the files hold %d bytes: %.20q…", len(seen), seen)
	}
	if again := push("force-compression=true"); again != first {
		t.Errorf("again: %s, before %s", again, first)
	}
}
