package pack

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/registry"
)

// What is written in a format, with any outer compression, is read again with the same content and configuration.
func TestFormats(t *testing.T) {
	w := workspace(t, Options{})
	im := sample(t, w)
	want := shows(t, w, im)
	if want["layer-order"] != "a" || want["etc/b"] != "b" || len(want) != 4 {
		t.Fatalf("the sample shows %v", want)
	}
	dir := t.TempDir()
	for _, f := range Formats() {
		for _, ext := range []string{"", ".gz", ".zst"} {
			if ext != "" && (f == string(OCI) || f == string(Dir)) {
				continue
			}
			for _, c := range []*layer.Compression{nil, {Type: layer.Zstd}, {Type: layer.Uncompressed}} {
				name := filepath.Join(dir, fmt.Sprint(f, "-", c != nil, c != nil && c.Type == layer.Zstd, ext))
				r := write(t, w, im, Target{Format: Format(f), Path: name, Names: []string{"app:1"}, Compression: c})
				got := open(t, workspace(t, Options{}), name)
				if !maps.Equal(shows(t, w, got), want) {
					t.Errorf("%s: it shows something else", name)
				}
				if !slices.Equal(diffs(got), diffs(im)) || fmt.Sprintf("%v %v %v", got.Config.Config.Env, got.Config.Config.User, got.Config.Config.Labels) != "[A=1] 1000:1000 map[l:v]" {
					t.Errorf("%s: %v, %+v", name, diffs(got), got.Config.Config)
				}
				if f != string(Dir) && f != string(DockerLegacy) && got.Name != "docker.io/library/app:1" {
					t.Errorf("%s: the name is %s", name, got.Name)
				}
				if len(got.Config.History) != 3 || got.Config.Created.Format(time.RFC3339) != "1970-01-01T00:00:00Z" {
					t.Errorf("%s: history %+v, created %v", name, got.Config.History, got.Config.Created)
				}
				if f == string(OCIArchive) && ext == "" {
					again := write(t, w, got, Target{Format: OCI, Path: name + ".dir"})
					if again.Digest != r.Digest {
						t.Errorf("%s: converting changes the digest", name)
					}
				}
			}
		}
	}
}

// The bytes depend on the content only.
func TestReproducible(t *testing.T) {
	var first []byte
	for range 2 {
		w := workspace(t, Options{})
		var b bytes.Buffer
		write(t, w, sample(t, w), Target{Format: OCIArchive, Out: &b, Names: []string{"app:auto"}})
		if first != nil && !bytes.Equal(first, b.Bytes()) {
			t.Error("two archives differ")
		}
		first = b.Bytes()
	}
}

func TestAutoTag(t *testing.T) {
	w := workspace(t, Options{})
	r := write(t, w, sample(t, w), Target{Format: OCIArchive, Out: io.Discard, Names: []string{"app:auto", "other:2"}})
	if want := "docker.io/library/app:" + r.Digest.Encoded()[:32]; r.Names[0] != want || r.Names[1] != "docker.io/library/other:2" {
		t.Errorf("names %v", r.Names)
	}
}

// A pulled image is a base, and what is made on it another one; the parent's environment stays, the child's wins.
func TestBase(t *testing.T) {
	s := newServer(t)
	w := workspace(t, Options{})
	r := write(t, w, sample(t, w), Target{Push: true, Names: []string{s.host + "/base:1"}})
	if r.Sent == 0 || len(s.uploaded()) != 3 { // two layers, one of them twice, and the configuration
		t.Errorf("receipt %+v", r)
	}
	name := s.host + "/base@" + r.Digest.String()
	for range 2 { // generated on pulled, generated on generated
		w := workspace(t, Options{})
		base := open(t, w, name)
		im := Assemble(base, []*Layer{dirLayer(t, w, "more", map[string]string{"more": "m"})}, Change{Env: []string{"A=2", "B=3"}})
		if fmt.Sprint(im.Config.Config.Env) != "[A=2 B=3]" || im.Config.Config.Cmd[0] != "/bin/x" {
			t.Errorf("%+v", im.Config.Config)
		}
		r := write(t, w, im, Target{Push: true, Names: []string{s.host + "/base:2"}})
		if r.Kept == 0 {
			t.Error("the base's layers were sent again")
		}
		name = s.host + "/base:2"
	}
	got := open(t, workspace(t, Options{}), name)
	if len(got.Layers) != 5 || len(got.Config.History) != 5 {
		t.Errorf("%d layers, %d rows", len(got.Layers), len(got.Config.History))
	}
}

// A virtual layer that the registry has is not made again.
func TestVirtualIsNotMade(t *testing.T) {
	s := newServer(t)
	w := workspace(t, Options{})
	l := dirLayer(t, w, "x", map[string]string{"f": "content"})
	plain := &layer.Compression{Type: layer.Uncompressed}
	write(t, w, Assemble(nil, []*Layer{l}, Change{}), Target{Push: true, Names: []string{s.host + "/v:1"}, Compression: plain})
	opened := 0
	for _, e := range l.entries {
		if e.Open != nil {
			inner := e.Open
			e.Open = func() (io.ReadCloser, error) { opened++; return inner() }
		}
	}
	s.uploaded()
	write(t, w, Assemble(nil, []*Layer{l}, Change{User: "5"}), Target{Push: true, Names: []string{s.host + "/v:2"}, Compression: plain})
	if up := s.uploaded(); opened != 0 || len(up) != 1 {
		t.Errorf("the tar was made %d times, %v were sent", opened, up)
	}
}

func TestLimit(t *testing.T) {
	w := workspace(t, Options{})
	im := sample(t, w)
	gone := NewLayer("gone", []*layer.Entry{{Path: "etc", Type: layer.Dir, Mode: 0o755}, {Path: "etc/.wh.a", Type: layer.File}}, layer.TarOptions{})
	all := append(slices.Clone(im.Layers), gone)
	want := shows(t, w, Assemble(nil, all, Change{}))
	for n := 1; n <= 5; n++ {
		layers, err := w.Limit(t.Context(), all, n)
		if err != nil {
			t.Fatal(err)
		}
		if got := shows(t, w, Assemble(nil, layers, Change{})); len(layers) != min(n, 4) || !maps.Equal(got, want) {
			t.Errorf("%d layers of at most %d show %v", len(layers), n, got)
		}
	}
	_, err := w.Limit(t.Context(), all, 0)
	wantKind(t, err, diag.Invalid, "one layer")
}

// Comparing paths alone would lose changed files.
func TestMissing(t *testing.T) {
	w := workspace(t, Options{})
	im := sample(t, w)
	more := dirLayer(t, w, "more", map[string]string{"etc/a": "a", "etc/b": "changed", "usr/share/big": strings.Repeat("big ", 10_000), "new/x": "x", "layer-order": "a"})
	got, err := w.Missing(t.Context(), im, more.entries)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, e := range got {
		paths = append(paths, e.Path)
	}
	if s := strings.Join(paths, " "); s != "etc etc/b new new/x" {
		t.Errorf("missing are %s", s)
	}
	for name, change := range map[string]func(*layer.Entry){
		"mode": func(e *layer.Entry) { e.Mode = 0o600 }, "owner": func(e *layer.Entry) { e.UID = 5 }, "xattr": func(e *layer.Entry) { e.Xattrs = map[string]string{"user.a": "b"} },
		"type": func(e *layer.Entry) { e.Type, e.Link, e.Size, e.Open = layer.Symlink, "b", 0, nil },
	} {
		i := slices.IndexFunc(more.entries, func(e *layer.Entry) bool { return e.Path == "etc/a" })
		e := *more.entries[i]
		change(&e)
		if got, err := w.Missing(t.Context(), im, []*layer.Entry{&e}); err != nil || len(got) != 1 {
			t.Errorf("another %s is left out: %v", name, err)
		}
	}
}

func TestRebase(t *testing.T) {
	w := workspace(t, Options{})
	from := Assemble(nil, []*Layer{dirLayer(t, w, "old", map[string]string{"base": "1"})}, Change{Env: []string{"PATH=/a", "V=1"}, Labels: map[string]string{"base": "1"}})
	to := Assemble(nil, []*Layer{dirLayer(t, w, "new", map[string]string{"base": "2"}), dirLayer(t, w, "extra", map[string]string{"x": "x"})},
		Change{Env: []string{"PATH=/b", "V=2"}, Labels: map[string]string{"base": "2"}})
	im := Assemble(from, []*Layer{dirLayer(t, w, "app", map[string]string{"app": "a"})}, Change{Env: []string{"APP=1", "V=mine"}, Cmd: []string{"app"}})
	for _, x := range []*Image{from, to, im} {
		write(t, w, x, Target{Format: OCIArchive, Out: io.Discard})
	}
	got, err := Rebase(im, from, to)
	if err != nil {
		t.Fatal(err)
	}
	if s := shows(t, w, got); fmt.Sprint(s) != "map[app:a base:2 x:x]" {
		t.Errorf("it shows %v", s)
	}
	c := got.Config.Config
	if fmt.Sprint(c.Env, c.Labels, c.Cmd) != "[PATH=/b V=mine APP=1] map[base:2] [app]" || len(got.Config.History) != 3 {
		t.Errorf("%+v, %d rows", c, len(got.Config.History))
	}
	_, err = Rebase(im, to, from)
	wantKind(t, err, diag.Invalid, "not based on")
}

// Blobs that are not what they are said to be.
func TestLies(t *testing.T) {
	w := workspace(t, Options{})
	im := sample(t, w)
	dir := t.TempDir()
	write(t, w, im, Target{Format: OCI, Path: dir, Compression: &layer.Compression{Type: layer.Gzip}})
	blob := filepath.Join(dir, "blobs", "sha256", im.Layers[0].packed[layer.Compression{Type: layer.Gzip}].Digest.Encoded())
	data, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-20] ^= 1
	if err := os.WriteFile(blob, data, 0o644); err != nil {
		t.Fatal(err)
	}
	v := workspace(t, Options{})
	got := open(t, v, dir)
	_, err = v.FS(t.Context(), got)
	wantKind(t, err, diag.Invalid, "")
	_, err = v.Write(t.Context(), []*Image{got}, Target{Format: OCIArchive, Path: filepath.Join(dir, "copy.tar")})
	wantKind(t, err, diag.Invalid, "the digest")
	if _, serr := os.Stat(filepath.Join(dir, "copy.tar")); serr == nil {
		t.Error("half an archive was left")
	}

	wrong := im.Config.Clone()
	x := &Image{Platform: im.Platform, Config: wrong, Layers: slices.Clone(im.Layers)}
	write(t, w, x, Target{Format: OCI, Path: dir + "2"})
	r := open(t, w, dir+"2")
	r.Layers[0].diffID = digest.FromString("lie")
	_, err = w.Entries(t.Context(), r.Layers[0])
	wantKind(t, err, diag.Invalid, "the configuration says")
}

func TestOpenErrors(t *testing.T) {
	w := workspace(t, Options{})
	for name, want := range map[string]diag.Kind{
		"dir:/nowhere": diag.NotFound, "store:x": diag.NotFound, "oci:" + t.TempDir(): diag.Invalid, "Not A Name": diag.Invalid,
	} {
		_, err := w.Open(t.Context(), name)
		wantKind(t, err, want, "")
	}
	p := filepath.Join(t.TempDir(), "a.tar")
	write(t, w, sample(t, w), Target{Format: OCIArchive, Path: p, Names: []string{"app:1"}})
	if im := open(t, w, p+":1"); im.Name != "docker.io/library/app:1" {
		t.Errorf("by tag: %s", im.Name)
	}
	s, err := w.Open(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Image(t.Context(), graph.Platform{OS: "linux", Architecture: "riscv64"})
	wantKind(t, err, diag.NotFound, "riscv64")
}

// All platforms come along; one can be chosen; what does not change keeps its digest.
func TestPlatforms(t *testing.T) {
	w := workspace(t, Options{})
	var images []*Image
	for _, arch := range []string{"amd64", "arm64"} {
		images = append(images, Assemble(nil, []*Layer{dirLayer(t, w, arch, map[string]string{"arch": arch})}, Change{Platform: graph.Platform{OS: "linux", Architecture: arch}}))
	}
	p := filepath.Join(t.TempDir(), "multi.tar")
	r, err := w.Write(t.Context(), images, Target{Format: OCIArchive, Path: p, Names: []string{"m:1"}})
	if err != nil {
		t.Fatal(err)
	}
	src, err := w.Open(t.Context(), p)
	if err != nil || len(src.Platforms()) != 2 {
		t.Fatal(err, src)
	}
	im, err := src.Image(t.Context(), graph.Platform{OS: "linux", Architecture: "arm64"})
	if err != nil || shows(t, w, im)["arch"] != "arm64" {
		t.Error(err)
	}
	all, err := src.Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t)
	again, err := w.Write(t.Context(), all, Target{Push: true, Names: []string{s.host + "/m:1"}, Index: src.Index})
	if err != nil || again.Digest != r.Digest {
		t.Errorf("%v, %s became %s", err, r.Digest, again.Digest)
	}
	_, err = w.Write(t.Context(), all, Target{Format: Dir, Path: t.TempDir()})
	wantKind(t, err, diag.Unsupported, "one platform")
}

// A manifest of schema 1 is read behind a flag only.
func TestSchema1(t *testing.T) {
	s := newServer(t)
	w := workspace(t, Options{Schema1: true})
	im := sample(t, w)
	write(t, w, im, Target{Push: true, Names: []string{s.host + "/old:2"}, Compression: &layer.Compression{Type: layer.Gzip}})
	sum := func(i int) string { return im.Layers[i].packed[layer.Compression{Type: layer.Gzip}].Digest.String() }
	v1 := func(text string) string { return fmt.Sprintf(`{"v1Compatibility":%q}`, text) }
	raw := fmt.Sprintf(`{"schemaVersion":1,"name":"old","tag":"1","architecture":"amd64","fsLayers":[{"blobSum":%q},{"blobSum":%q},{"blobSum":%q},{"blobSum":%q}],"history":[%s,%s,%s,%s],"signatures":[]}`,
		sum(1), sum(1), sum(0), sum(0),
		v1(`{"id":"c","parent":"b","architecture":"amd64","os":"linux","config":{"Env":["X=1"],"Cmd":["sh"]},"container_config":{"Cmd":["CMD sh"]},"throwaway":true}`),
		v1(`{"id":"b","parent":"a","container_config":{"Cmd":["/bin/sh","-c","two"]}}`),
		v1(`{"id":"a","container_config":{"Cmd":["/bin/sh","-c","one"]}}`), v1(`{"id":"a","container_config":{"Cmd":["/bin/sh","-c","one"]}}`))
	ref, err := registry.ParseRef(s.host + "/old:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.opt.Registry.PushManifest(t.Context(), ref, []byte(raw), image.DockerSchema1); err != nil {
		t.Fatal(err)
	}
	src, err := w.Open(t.Context(), ref.String())
	if err != nil {
		t.Fatal(err)
	}
	got, err := src.Image(t.Context(), graph.Platform{})
	if err != nil {
		t.Fatal(err)
	}
	if d := diffs(got); len(d) != 2 || d[0] != diffs(im)[0] || d[1] != diffs(im)[1] {
		t.Errorf("layers %v", d)
	}
	h := got.Config.History
	if len(h) != 3 || h[0].CreatedBy != "/bin/sh -c one" || !h[2].EmptyLayer || got.Config.Config.Env[0] != "X=1" {
		t.Errorf("configuration %+v", got.Config)
	}
	write(t, w, got, Target{Format: DockerArchive, Out: io.Discard})
	_, err = workspace(t, Options{}).Open(t.Context(), ref.String())
	wantKind(t, err, diag.Unsupported, "schema 1")
}

// An image of a store comes as an archive.
func TestStore(t *testing.T) {
	make := workspace(t, Options{})
	w := workspace(t, Options{Store: func(ctx context.Context, name string, f *os.File) error {
		_, err := make.Write(ctx, []*Image{sample(t, make)}, Target{Format: OCIArchive, Out: f, Names: []string{name}})
		return err
	}})
	if im := open(t, w, "store:app:7"); im.Name != "docker.io/library/app:7" || len(im.Layers) != 3 {
		t.Errorf("%s, %d layers", im.Name, len(im.Layers))
	}
}
