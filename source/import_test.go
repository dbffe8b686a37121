package source

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/ulikunitz/xz"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

func pack(t *testing.T, kind string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch kind {
	case "":
		return b
	case "gz":
		return gz(b)
	case "zst":
		w, err = zstd.NewWriter(&out)
	case "xz":
		w, err = xz.NewWriter(&out)
	case "bz2":
		cmd := exec.Command("bzip2", "-c")
		cmd.Stdin = bytes.NewReader(b)
		raw, err := cmd.Output()
		if err != nil {
			t.Skip("no bzip2")
		}
		return raw
	}
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func blobName(b []byte) string { return "blobs/sha256/" + digest.FromBytes(b).Encoded() }

func (b *built) blobs() []file {
	out := []file{{blobName(b.manifest), string(b.manifest), ""}, {blobName(b.config), string(b.config), ""}}
	for _, l := range b.layers {
		out = append(out, file{blobName(l), string(l), ""})
	}
	return out
}

const layoutFile = `{"imageLayoutVersion":"1.0.0"}`

func layoutIndex(entries ...image.Descriptor) string {
	idx := ocispec.Index{Manifests: entries}
	idx.SchemaVersion = 2
	raw, _ := json.Marshal(idx)
	return string(raw)
}

func annotated(d image.Descriptor, kv ...string) image.Descriptor {
	d.Annotations = map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		d.Annotations[kv[i]] = kv[i+1]
	}
	return d
}

func manifestJSON(config string, tags []string, layers ...string) string {
	raw, _ := json.Marshal([]map[string]any{{"Config": config, "RepoTags": tags, "Layers": layers}})
	return string(raw)
}

const id1, id2 = "1111111111111111111111111111111111111111111111111111111111111111", "2222222222222222222222222222222222222222222222222222222222222222"

// archives are all the shapes in which the same two layers may come.
func archives(t *testing.T) map[string]struct {
	files []file
	names string
} {
	one, two := makeTar(file{"f", "one", ""}, file{"only-one", "1", ""}), makeTar(file{"f", "two", ""})
	b, z := build(amd64, false, one, two), build(amd64, true, one, two)
	cfg := digest.FromBytes(b.config).Encoded() + ".json"
	both := []string{ocispec.AnnotationRefName, "1", "io.containerd.image.name", "docker.io/library/app:1"}
	shuffled := build(amd64, false, one, two)
	shuffled.descs[0], shuffled.descs[1] = shuffled.descs[1], shuffled.descs[0]
	shuffled.finish(amd64)
	legacyJSON := func(id, parent, config string) string {
		return fmt.Sprintf(`{"id":%q,"parent":%q,"created":"2015-01-01T00:00:00Z","container_config":{"Cmd":["make"]},"config":%s,"os":"linux","architecture":"amd64"}`, id, parent, config)
	}
	legacy := []file{
		{id1 + "/VERSION", "1.0", ""},
		{id1 + "/json", legacyJSON(id1, "", "null"), ""},
		{id1 + "/layer.tar", string(one), ""},
		{id2 + "/VERSION", "1.0", ""},
		{id2 + "/json", legacyJSON(id2, id1, `{"Env":["IMAGE=amd64"]}`), ""},
		{id2 + "/layer.tar", string(two), ""},
	}
	docker := func(layers ...string) []file {
		return []file{{cfg, string(b.config), ""}, {"manifest.json", manifestJSON(cfg, []string{"app:1"}, layers...), ""}}
	}
	dotted := []file{{"./", "", ""}}
	for _, f := range append(docker("a/layer.tar", "b/layer.tar"), file{"a/layer.tar", string(one), ""}, file{"b/layer.tar", string(two), ""}) {
		f.name = "./" + f.name
		dotted = append(dotted, f)
	}
	layout := func(b *built, idx string, more ...file) []file {
		return append(append([]file{{"oci-layout", layoutFile, ""}, {"index.json", idx, ""}}, b.blobs()...), more...)
	}
	dir := []file{{"version", "Directory Transport Version: 1.1\n", ""}, {"manifest.json", string(z.manifest), ""}, {digest.FromBytes(z.config).Encoded(), string(z.config), ""}}
	for _, l := range z.layers {
		dir = append(dir, file{digest.FromBytes(l).Encoded(), string(l), ""})
	}
	idx := index(z)
	const app = "docker.io/library/app:1"
	return map[string]struct {
		files []file
		names string
	}{
		"oci":                {layout(z, layoutIndex(annotated(z.desc, ocispec.AnnotationRefName, "app:1"))), app},
		"oci nested index":   {layout(z, layoutIndex(annotated(describeBytes(ocispec.MediaTypeImageIndex, idx), ocispec.AnnotationRefName, "app:1")), file{blobName(idx), string(idx), ""}), app},
		"oci no name":        {layout(z, layoutIndex(z.desc)), z.desc.Digest.String()},
		"docker 25":          {layout(b, layoutIndex(annotated(b.desc, both...)), file{"manifest.json", manifestJSON(blobName(b.config), []string{"app:1"}, blobName(one), blobName(two)), ""}), app},
		"docker 25.0.0":      {layout(shuffled, layoutIndex(annotated(shuffled.desc, both...))), app},
		"docker 1.10":        {append(docker("a/layer.tar", "b/layer.tar"), file{"a/layer.tar", string(one), ""}, file{"b/layer.tar", string(two), ""}), app},
		"docker dotted":      {dotted, app},
		"docker compressed":  {append(docker("a/layer.tar", "b/layer.tar"), file{"a/layer.tar", string(gz(one)), ""}, file{"b/layer.tar", string(pack(t, "zst", two)), ""}), app},
		"docker symlinks":    {append(docker("a/layer.tar", "b/layer.tar"), file{"a/layer.tar", "", "../l/hop"}, file{"l/hop", "", "./hop2"}, file{"l/hop2", "", "../x.tar"}, file{"x.tar", string(one), ""}, file{"b/layer.tar", string(two), ""}), app},
		"docker hardlinks":   {append(docker("a/layer.tar", "b/layer.tar"), file{"x.tar", string(one), ""}, file{"a/layer.tar", "", "=x.tar"}, file{"b/layer.tar", string(two), ""}), app},
		"docker shuffled":    {append(docker("b/layer.tar", "a/layer.tar"), file{"a/layer.tar", string(one), ""}, file{"b/layer.tar", string(two), ""}), app},
		"docker legacy":      {append(legacy, file{"repositories", `{"app":{"1":"` + id2 + `"}}`, ""}), app},
		"docker legacy bare": {legacy, ""},
		"skopeo dir":         {dir, z.desc.Digest.String()},
	}
}

func TestImport(t *testing.T) {
	outer := []string{"", "gz", "zst", "xz", "bz2"}
	n := 0
	for name, tc := range archives(t) {
		n++
		kind := outer[n%len(outer)]
		t.Run(name+" "+kind, func(t *testing.T) {
			f := setup(t)
			im := f.images(nil)
			got, err := im.Import(t.Context(), "", bytes.NewReader(pack(t, kind, makeTar(tc.files...))), ImportOptions{Platform: amd64})
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 1 || tc.names != "" && got[0].Name != tc.names {
				t.Fatalf("names: %+v", got)
			}
			rec, err := f.store.Image(got[0].Name)
			if err != nil {
				t.Fatal(err)
			}
			p := rec.Platforms[0]
			if len(p.Layers) != 2 || f.read(p.Layers, "f") != "two" || f.read(p.Layers, "only-one") != "1" || p.Platform.Architecture != "amd64" {
				t.Errorf("%+v", p)
			}
			img, err := f.images(nil).fromRecord(t.Context(), rec, amd64)
			if err != nil || img.Config.Config.Env[0] != "IMAGE=amd64" {
				t.Errorf("%+v %v", img, err)
			}
		})
		if kind == "" || strings.HasPrefix(name, "oci") || strings.HasPrefix(name, "skopeo") {
			t.Run(name+" unpacked", func(t *testing.T) { // a directory, used in place
				f := setup(t)
				dir := filepath.Join(t.TempDir(), "x")
				for _, e := range tc.files {
					p := filepath.Join(dir, e.name)
					_ = os.MkdirAll(filepath.Dir(p), 0o755)
					if e.link != "" || strings.HasSuffix(e.name, "/") {
						continue
					}
					if err := os.WriteFile(p, []byte(e.body), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if strings.Contains(name, "links") {
					return
				}
				im := f.images(nil)
				img, err := im.ResolvePath(t.Context(), dir, "", amd64)
				if err != nil {
					t.Fatal(err)
				}
				layers, err := im.Layers(t.Context(), img, 0, "")
				if err != nil || f.read(layers, "f") != "two" {
					t.Fatal(err)
				}
			})
		}
	}
}

func TestImportLazily(t *testing.T) {
	f := setup(t)
	am, ar := build(amd64, true, makeTar(file{"am", "1", ""})), build(arm64, true, makeTar(file{"ar", "1", ""}))
	idx := index(am, ar)
	files := []file{{"oci-layout", layoutFile, ""}, {"index.json", layoutIndex(annotated(describeBytes(ocispec.MediaTypeImageIndex, idx), ocispec.AnnotationRefName, "v1")), ""}, {blobName(idx), string(idx), ""}}
	files = append(append(files, am.blobs()...), ar.blobs()...)
	got, err := f.images(nil).Import(t.Context(), "", bytes.NewReader(makeTar(files...)), ImportOptions{Name: "r.example/app", Platform: amd64})
	if err != nil || len(got) != 1 || got[0].Name != "r.example/app:v1" || len(got[0].Platforms) != 2 {
		t.Fatalf("%+v %v", got, err)
	}
	if len(got[0].Platforms[0].Layers) != 1 || len(got[0].Platforms[1].Layers) != 0 {
		t.Errorf("%+v", got[0].Platforms)
	}
	im := f.images(nil)
	im.env.Registry = nil
	layers, _, err := im.Fetch(t.Context(), &graph.Image{Ref: "r.example/app:v1"}, arm64, "")
	if err != nil || f.read(layers, "ar") != "1" {
		t.Fatal(err)
	}
	rec, err := f.store.Image("r.example/app:v1")
	if err != nil || len(rec.Platforms) != 2 || len(rec.Platforms[0].Layers) != 1 || len(rec.Platforms[1].Layers) != 1 {
		t.Errorf("%+v %v", rec, err)
	}
}

func TestImportSeveral(t *testing.T) {
	f := setup(t)
	a, b := build(amd64, false, makeTar(file{"a", "a", ""})), build(amd64, false, makeTar(file{"b", "b", ""}))
	list, _ := json.Marshal([]map[string]any{
		{"Config": "a.json", "RepoTags": []string{"x:a", "x:also"}, "Layers": []string{"a.tar"}},
		{"Config": "b.json", "RepoTags": nil, "Layers": []string{"b.tar"}},
	})
	raw := makeTar(file{"manifest.json", string(list), ""}, file{"a.json", string(a.config), ""}, file{"b.json", string(b.config), ""}, file{"a.tar", string(a.layers[0]), ""}, file{"b.tar", string(b.layers[0]), ""})
	got, err := f.images(nil).Import(t.Context(), "", bytes.NewReader(raw), ImportOptions{})
	if err != nil || len(got) != 3 || got[0].Name != "docker.io/library/x:a" || got[1].Name != "docker.io/library/x:also" || got[2].Name != digest.FromBytes(b.config).String() {
		t.Fatalf("%+v %v", got, err)
	}
	_, err = f.images(nil).Import(t.Context(), "", bytes.NewReader(raw), ImportOptions{Name: "y"})
	wantKind(t, err, diag.Invalid, "several images")
	p := filepath.Join(t.TempDir(), "x.tar")
	if err := os.WriteFile(p, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	img, err := f.images(nil).ResolvePath(t.Context(), p, "x:also", amd64)
	if err != nil || img.Pin(0) != a.diffs[0] {
		t.Errorf("%v", err)
	}
	_, err = f.images(nil).ResolvePath(t.Context(), p, "x:none", amd64)
	wantKind(t, err, diag.NotFound, "x:a")
}

func TestImportRootFS(t *testing.T) {
	f := setup(t)
	raw := makeTar(file{"bin/", "", ""}, file{"bin/sh", "#!", ""})
	got, err := f.images(nil).Import(t.Context(), "", bytes.NewReader(gz(raw)), ImportOptions{Name: "base:1"})
	if err != nil || len(got) != 1 || got[0].Name != "docker.io/library/base:1" {
		t.Fatalf("%+v %v", got, err)
	}
	if p := got[0].Platforms[0]; p.DiffIDs[0] != digest.FromBytes(raw) || f.read(p.Layers, "bin/sh") != "#!" {
		t.Errorf("%+v", p)
	}
}

func TestBadArchives(t *testing.T) {
	one := makeTar(file{"f", "one", ""})
	b := build(amd64, false, one)
	desc := annotated(b.desc, ocispec.AnnotationRefName, "app:1")
	lied := desc
	lied.Digest = digest.FromString("x")
	for name, tc := range map[string]struct {
		files []file
		kind  diag.Kind
		text  string
	}{
		"wrong manifest":  {[]file{{"oci-layout", layoutFile, ""}, {"index.json", layoutIndex(lied), ""}, {"blobs/sha256/" + lied.Digest.Encoded(), string(b.manifest), ""}}, diag.Invalid, "digest"},
		"no blob":         {append([]file{{"oci-layout", layoutFile, ""}, {"index.json", layoutIndex(desc), ""}}, b.blobs()[:2]...), diag.NotFound, "no blobs/sha256"},
		"wrong blob":      {append([]file{{"oci-layout", layoutFile, ""}, {"index.json", layoutIndex(desc), ""}}, append(b.blobs()[:2], file{blobName(one), strings.Repeat("x", len(one)), ""})...), diag.Invalid, "digest"},
		"index of both":   {[]file{{"oci-layout", layoutFile, ""}, {"index.json", `{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}`, ""}}, diag.Invalid, "both"},
		"huge index.json": {[]file{{"oci-layout", layoutFile, ""}, {"index.json", strings.Repeat(" ", 5<<20), ""}}, diag.Exhausted, "limit"},
		"link circle":     {[]file{{"manifest.json", manifestJSON("c", nil), ""}, {"c", "", "d"}, {"d", "", "c"}}, diag.NotFound, "c"},
		"layer count":     {[]file{{"manifest.json", manifestJSON("c", nil), ""}, {"c", string(b.config), ""}}, diag.Invalid, "0 layers"},
		"other layers":    {[]file{{"manifest.json", manifestJSON("c", nil, "l"), ""}, {"c", string(b.config), ""}, {"l", string(makeTar(file{"other", "", ""})), ""}}, diag.Invalid, "diff_id"},
		"parents circle":  {[]file{{id1 + "/json", `{"id":"` + id1 + `","parent":"` + id1 + `"}`, ""}, {id1 + "/layer.tar", string(one), ""}, {"repositories", `{"a":{"b":"` + id1 + `"}}`, ""}}, diag.Invalid, "circle"},
		"escape":          {[]file{{"manifest.json", manifestJSON("../../../../etc/passwd", nil), ""}}, diag.NotFound, "etc/passwd"},
	} {
		t.Run(name, func(t *testing.T) {
			f := setup(t)
			_, err := f.images(nil).Import(t.Context(), "", bytes.NewReader(makeTar(tc.files...)), ImportOptions{Platform: amd64})
			wantKind(t, err, tc.kind, tc.text)
			if all, _ := f.store.Images(); len(all) != 0 {
				t.Errorf("%v", all)
			}
		})
	}
	f := setup(t)
	_, err := f.images(nil).Import(t.Context(), "", strings.NewReader("hello, this is no tar at all"), ImportOptions{})
	wantKind(t, err, diag.Invalid, "not a tar archive")
	_, err = f.images(nil).Import(t.Context(), "", bytes.NewReader(makeTar(file{"a", "content", ""})[:515]), ImportOptions{})
	wantKind(t, err, diag.Invalid, "cut off")
	_, err = f.images(nil).Import(t.Context(), "/nonexistent", nil, ImportOptions{})
	wantKind(t, err, diag.NotFound, "/nonexistent")
}

// TestDirLinks: a blob may be a link to elsewhere, a document may not.
func TestDirLinks(t *testing.T) {
	f := setup(t)
	b := build(amd64, false, makeTar(file{"f", "1", ""}))
	dir, other := t.TempDir(), t.TempDir()
	write := func(p, s string) {
		_ = os.MkdirAll(filepath.Dir(p), 0o755)
		if err := os.WriteFile(p, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(dir+"/version", "Directory Transport Version: 1.1\n")
	write(dir+"/manifest.json", string(b.manifest))
	for _, blob := range [][]byte{b.config, b.layers[0]} {
		hex := digest.FromBytes(blob).Encoded()
		write(other+"/"+hex, string(blob))
		_ = os.Symlink(other+"/"+hex, dir+"/"+hex)
	}
	if _, err := f.images(nil).Import(t.Context(), dir, nil, ImportOptions{Name: "linked", Platform: amd64}); err != nil {
		t.Fatal(err)
	}
	evil := t.TempDir()
	write(other+"/manifest.json", string(b.manifest))
	_ = os.Symlink(other+"/manifest.json", evil+"/manifest.json")
	_, err := f.images(nil).Import(t.Context(), evil, nil, ImportOptions{Name: "evil"})
	wantKind(t, err, diag.Invalid)
}

// TestSkopeo reads what another program writes.
func TestSkopeo(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("skopeo is not installed")
	}
	b := build(amd64, true, makeTar(file{"f", "one", ""}), makeTar(file{"f", "two", ""}))
	dir := t.TempDir()
	layout := filepath.Join(dir, "layout")
	for _, e := range append(b.blobs(), file{"oci-layout", layoutFile, ""}, file{"index.json", layoutIndex(annotated(b.desc, ocispec.AnnotationRefName, "1")), ""}) {
		_ = os.MkdirAll(filepath.Dir(filepath.Join(layout, e.name)), 0o755)
		if err := os.WriteFile(filepath.Join(layout, e.name), []byte(e.body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for kind, path := range map[string]string{"docker-archive": "d.tar:app:1", "oci-archive": "o.tar:app:1", "dir": "dir", "oci": "layout2:app:1"} {
		dst := filepath.Join(dir, path)
		out, err := exec.Command(skopeo, "--insecure-policy", "copy", "-q", "oci:"+layout+":1", kind+":"+dst).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %s", kind, out)
		}
		f := setup(t)
		name, _, _ := strings.Cut(path, ":")
		got, err := f.images(nil).Import(t.Context(), filepath.Join(dir, name), nil, ImportOptions{Name: "app:1", Platform: amd64})
		if err != nil || len(got) != 1 || got[0].Name != "docker.io/library/app:1" || f.read(got[0].Platforms[0].Layers, "f") != "two" {
			t.Errorf("%s: %+v %v", kind, got, err)
		}
	}
}
