package op

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// sealBench is a store in which OUTPUT directories are sealed.
type sealBench struct {
	*LayersRunner
	t    *testing.T
	base *tree.Stack
	env  LayersEnv
	warn []diag.Warning
}

func newSealBench(t *testing.T) *sealBench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	s, err := store.Open(t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := &sealBench{LayersRunner: &LayersRunner{Store: s}, t: t}
	b.env.Platform = graph.Platform{OS: "linux", Architecture: "amd64"}
	b.env.Warn = func(w diag.Warning) { b.warn = append(b.warn, w) }
	b.base = b.tree(func(dir string) {
		b.must(os.MkdirAll(filepath.Join(dir, "etc"), 0o755))
		b.must(os.WriteFile(filepath.Join(dir, "etc/passwd"), nil, 0o644))
		b.must(os.Symlink("etc", filepath.Join(dir, "link")))
	})
	t.Cleanup(func() {
		b.base.Release()
		b.must(s.Close())
	})
	return b
}

func (b *sealBench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// tree commits a layer.
func (b *sealBench) tree(fill func(dir string)) *tree.Stack {
	b.t.Helper()
	d, err := b.Store.NewLayer(b.t.Context())
	b.must(err)
	fill(d.Dir)
	b.must(b.Store.Update(b.t.Context(), func(batch *store.Batch) error { batch.Layer(d, store.LayerInfo{}); return nil }))
	st := tree.NewStack(b.Store, []store.LayerID{d.ID})
	b.t.Cleanup(st.Release)
	return st
}

// output is a finished directory with image.json and other files below output/.
func (b *sealBench) output(im any, files map[string][]byte) *tree.Stack {
	return b.tree(func(dir string) {
		b.must(os.MkdirAll(filepath.Join(dir, "output/blobs/sha256"), 0o755))
		if im != nil {
			raw, err := json.Marshal(im)
			b.must(err)
			b.must(os.WriteFile(filepath.Join(dir, "output/image.json"), raw, 0o644))
		}
		for name, data := range files {
			p := filepath.Join(dir, "output", name)
			b.must(os.MkdirAll(filepath.Dir(p), 0o755))
			b.must(os.WriteFile(p, data, 0o644))
		}
	})
}

func (b *sealBench) op(mode graph.LayerMode) *graph.Layers {
	return &graph.Layers{Dir: "/layers", Mode: mode, Max: 127}
}

// seal returns the layers and the record.
func (b *sealBench) seal(mode graph.LayerMode, in *tree.Stack) ([]store.LayerID, *image.Sealed) {
	b.t.Helper()
	out, err := b.Run(b.t.Context(), b.op(mode), []tree.Tree{in, b.base}, b.env)
	b.must(err)
	defer out[0].Release()
	record := out[1].(*tree.Stack)
	sealed, err := Sealed(b.t.Context(), record)
	b.must(err)
	record.Discard()
	return out[0].(*tree.Stack).IDs(), sealed
}

func (b *sealBench) fails(mode graph.LayerMode, in *tree.Stack, want string) error {
	b.t.Helper()
	out, err := b.Run(b.t.Context(), b.op(mode), []tree.Tree{in, b.base}, b.env)
	if err == nil {
		out[0].Release()
		out[1].(*tree.Stack).Discard()
		b.t.Fatalf("no error, want %q", want)
	}
	if !strings.Contains(err.Error(), want) || diag.KindOf(err) == diag.Internal {
		b.t.Errorf("error %q (%v), want %q", err, diag.KindOf(err), want)
	}
	return err
}

func tarball(headers ...tar.Header) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		data := h.Uname
		h.Uname, h.ModTime = "", time.Unix(1, 0)
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(data))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
		io.WriteString(w, data)
	}
	w.Close()
	return b.Bytes()
}

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

type layersOf []image.OutputLayer

func (l layersOf) json() image.OutputImage { return image.OutputImage{Layers: l} }

// TestSealHostile holds the rules for what is in a layer.
func TestSealHostile(t *testing.T) {
	b := newSealBench(t)
	dir := func(name string) tar.Header { return tar.Header{Name: name + "/", Typeflag: tar.TypeDir} }
	file := func(name string) tar.Header { return tar.Header{Name: name, Uname: "x"} }
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
	}
	hard := func(name, to string) tar.Header {
		return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink}
	}
	for _, c := range []struct {
		name string
		tar  []byte
		want string
	}{
		{"twice", tarball(file("a"), file("a")), "the layer has this path twice"},
		{"dir twice", tarball(dir("a"), dir("a")), "the layer has this path twice"},
		{"other spelling", tarball(file("./a"), file("a")), "the layer has this path twice"},
		{"dotdot", tarball(file("x/../../a")), ""},
		{"inner dotdot", tarball(dir("x"), file("x/../a")), "must not hold"},
		{"below a symlink", tarball(link("s", "/etc"), file("s/passwd")), "nothing can be below it"},
		{"below a file", tarball(file("s"), file("s/x")), "nothing can be below it"},
		{"symlink over a directory", tarball(file("s/x"), link("s", "/etc")), "must be a directory"},
		{"hard link out", tarball(hard("h", "/etc/passwd")), "which is no file of this layer"},
		{"hard link to a later file", tarball(hard("h", "f"), file("f")), "which is no file of this layer"},
		{"hard link to a symlink", tarball(link("s", "/etc/passwd"), hard("h", "s")), "which is no file of this layer"},
		{"through a symlink below", tarball(file("link/x")), "nothing can be written through it"},
		{"whiteout of nothing", tarball(file(".wh.none")), "the whiteout hides nothing"},
		{"whiteout device", tarball(tar.Header{Name: "passwd", Typeflag: tar.TypeChar}), "would delete files"},
		{"cut off", tarball(file("a"))[:512], "cut off"},
		{"no tar", []byte(strings.Repeat("no tar at all ", 100)), "not a valid tar"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sub := *b
			sub.t = t
			in := sub.output(layersOf{{Tar: "t.tar"}}.json(), map[string][]byte{"t.tar": c.tar})
			err := sub.fails(graph.LayersAppend, in, c.want)
			if !strings.HasPrefix(err.Error(), "OUTPUT: image.json layers[0]: ") {
				t.Errorf("%q does not say where", err)
			}
		})
	}
}

// TestSealKeepsBytes: a blob stays as it was given, a whiteout is kept over what it hides.
func TestSealKeepsBytes(t *testing.T) {
	b := newSealBench(t)
	plain := tarball(tar.Header{Name: "etc/", Typeflag: tar.TypeDir}, tar.Header{Name: "etc/.wh.passwd"}, tar.Header{Name: "etc/new", Uname: "n"})
	blob := gz(plain)
	d := digest.FromBytes(blob)
	im := layersOf{{Digest: d, Name: "one", Key: "k", MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", DiffID: digest.FromBytes(plain)}}.json()
	in := b.output(im, map[string][]byte{"blobs/sha256/" + d.Encoded(): blob, "blobs/sha256/extra": nil})
	ids, sealed := b.seal(graph.LayersAppend, in)
	if len(ids) != 2 || ids[0] != b.base.IDs()[0] {
		t.Fatalf("the layers are %v", ids)
	}
	l := sealed.Layers[0]
	if l.Digest != d || l.DiffID != digest.FromBytes(plain) || l.Name != "one" || l.Key != "k" || l.History.CreatedBy != "OUTPUT one" {
		t.Errorf("the record is %+v", l)
	}
	info, err := b.Store.Layer(ids[1])
	b.must(err)
	if info.Blob != d || info.DiffID != l.DiffID {
		t.Errorf("the layer is %+v", info)
	}
	kept, err := b.Store.OpenBlob(t.Context(), d)
	b.must(err)
	got, _ := io.ReadAll(kept.Reader())
	kept.Close()
	if !bytes.Equal(got, blob) {
		t.Error("the blob's bytes changed")
	}
	if len(b.warn) != 1 || !strings.Contains(b.warn[0].Msg, "no layer names are dropped: 1") {
		t.Errorf("the warnings are %v", b.warn)
	}
	again, _ := b.seal(graph.LayersAppend, in)
	if !slices.Equal(ids, again) {
		t.Errorf("made %v, and then %v", ids, again)
	}
	b.fails(graph.LayersReplace, in, "the whiteout hides nothing")
}

// TestSealShares: a layer that looks the same everywhere is one layer wherever it lies, however it was given.
func TestSealShares(t *testing.T) {
	b := newSealBench(t)
	x := map[string][]byte{"x/f": []byte("x"), "y/f2": []byte("y")}
	ids, sealed := b.seal(graph.LayersReplace, b.output(layersOf{{Dir: "x"}, {Dir: "y", Prefix: "/opt/y"}}.json(), x))
	if len(ids) != 2 {
		t.Fatalf("the layers are %v", ids)
	}
	if _, err := os.Lstat(filepath.Join(b.Store.LayerDir(ids[1]), "opt/y/f2")); err != nil {
		t.Error(err)
	}
	// Named by what history.json says, nothing has to be there.
	b.env.Known = func(context.Context) ([]Known, error) {
		k := Known{ID: ids[0]}
		k.Name, k.DiffID, k.Digest = "old", sealed.Layers[0].DiffID, sealed.Layers[0].Digest
		return []Known{k}, nil
	}
	reused, again := b.seal(graph.LayersReplace, b.output(layersOf{{Dir: "y", Prefix: "opt"}, {Input: sealed.Layers[0].DiffID}}.json(), x))
	if reused[1] != ids[0] || again.Layers[1].Name != "old" {
		t.Errorf("the layer was not reused: %v, %v, %+v", ids, reused, again.Layers[1])
	}
	// Even when the earlier build's image is not there any more.
	b.env.Known = nil
	if reused, _ = b.seal(graph.LayersReplace, b.output(layersOf{{Input: sealed.Layers[0].DiffID}}.json(), nil)); reused[0] != ids[0] {
		t.Errorf("the layer was not found: %v", reused)
	}
	err := b.fails(graph.LayersReplace, b.output(layersOf{{Input: digest.FromString("none")}}.json(), nil), "is in neither output/blobs nor input (0 blobs present)")
	if !errors.As(err, new(*Gone)) {
		t.Errorf("%v does not say that a layer is gone", err)
	}
}

// TestSealEpoch: a directory's layer is no newer than the epoch, and the step's own files keep their time.
func TestSealEpoch(t *testing.T) {
	b := newSealBench(t)
	in := b.output(layersOf{{Dir: "x"}}.json(), map[string][]byte{"x/a/f": []byte("f"), "x/old": []byte("o")})
	src := filepath.Join(b.Store.LayerDir(in.IDs()[0]), "output/x")
	b.must(os.Link(src+"/a/f", src+"/a/g"))
	long := time.Unix(1000, 0)
	b.must(os.Chtimes(src+"/old", long, long))
	epoch := time.Unix(2000, 0)
	o := b.op(graph.LayersReplace)
	o.Epoch = &epoch
	var ids [2]store.LayerID
	for i := range ids {
		out, err := b.Run(t.Context(), o, []tree.Tree{in, b.base}, b.env)
		b.must(err)
		ids[i] = out[0].(*tree.Stack).IDs()[0]
		out[0].Release()
		out[1].(*tree.Stack).Discard()
	}
	if ids[0] != ids[1] {
		t.Error("the same directory made two layers")
	}
	dir := b.Store.LayerDir(ids[0])
	for name, want := range map[string]int64{"a": 2000, "a/f": 2000, "a/g": 2000, "old": 1000} {
		fi, err := os.Lstat(filepath.Join(dir, name))
		b.must(err)
		if fi.ModTime().Unix() != want {
			t.Errorf("%s is of %d, not %d", name, fi.ModTime().Unix(), want)
		}
	}
	f, _ := os.Stat(dir + "/a/f")
	g, _ := os.Stat(dir + "/a/g")
	if !os.SameFile(f, g) {
		t.Error("two names of one file became two files")
	}
	if fi, _ := os.Stat(src + "/a/f"); fi.ModTime().Unix() == 2000 {
		t.Error("the step's own file was changed")
	}
}

// TestSealLimits bounds what one image may declare.
func TestSealLimits(t *testing.T) {
	b := newSealBench(t)
	var many layersOf
	for range 128 {
		many = append(many, image.OutputLayer{Dir: "x"})
	}
	in := b.output(many.json(), map[string][]byte{"x/f": nil})
	b.fails(graph.LayersReplace, in, "128 layers exceed max-layers=127")
	in = b.output(many[:127].json(), map[string][]byte{"x/f": nil})
	b.fails(graph.LayersAppend, in, "128 layers exceed max-layers=127")
	huge := bytes.Repeat([]byte{0}, 300<<20)
	in = b.output(layersOf{{Tar: "t"}}.json(), map[string][]byte{"t": gz(append(tarball(tar.Header{Name: "f", Uname: "x"}), huge...))})
	b.fails(graph.LayersReplace, in, "200-fold")
}

// TestSealConfig takes the two forms of a configuration, and refuses another platform.
func TestSealConfig(t *testing.T) {
	b := newSealBench(t)
	for _, c := range []struct{ config, want string }{
		{`{"Env":["A=1"]}`, ""},
		{`{"config":{"Env":["A=1"]},"architecture":"amd64"}`, ""},
		{`{"architecture":"arm64"}`, "image.json: config: the architecture is arm64, but this is the build for linux/amd64"},
		{`{"os":"windows"}`, "the os is windows"},
		{`{"env":[]}`, `unknown field "env"`},
		{`{"Envs":[]}`, `unknown field "Envs"`},
		{`[]`, "it must be an object"},
	} {
		im := layersOf{{Dir: "x"}}.json()
		im.Config = json.RawMessage(c.config)
		in := b.output(im, map[string][]byte{"x/f": nil})
		if c.want != "" {
			b.fails(graph.LayersReplace, in, c.want)
			continue
		}
		if _, s := b.seal(graph.LayersReplace, in); fmt.Sprint(s.Config.Config.Env) != "[A=1]" {
			t.Errorf("%s: the configuration is %+v", c.config, s.Config)
		}
	}
}
