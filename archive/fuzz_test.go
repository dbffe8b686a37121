package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/registry"
)

// canary is the content of a file beside the image, which nothing in the image may lead to.
const canary = `{"marker":"7d4e2c"}`

// FuzzArchive reads any bytes as an image: as a stream, as a file, and, if they are a tar, as the directory that it makes.
// Every refusal has a kind that blames the input; nothing outside is read or changed; no temporary file stays.
func FuzzArchive(f *testing.F) {
	for _, seed := range seeds(f) {
		for form := range uint8(3) {
			f.Add(seed, form)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, form uint8) {
		if len(data) > 64<<10 || grows(data) {
			return
		}
		c := newCage(t)
		defer c.check(t)
		var location string
		var in io.Reader
		switch form % 3 {
		case 0:
			in = bytes.NewReader(data)
		case 1:
			location = filepath.Join(c.dir, "image.tar")
			if err := os.WriteFile(location, data, 0o600); err != nil {
				t.Fatal(err)
			}
		case 2:
			location = filepath.Join(c.dir, "image")
			spread(t, location, data)
		}
		a, err := Open(t.Context(), location, in, c.temp)
		if err != nil {
			blames(t, err)
			return
		}
		defer a.Close()
		explore(t, a)
	})
}

// grows reports whether data is compressed and holds more than a few megabytes: limits are the business of package layer.
func grows(data []byte) bool {
	r, typ, err := layer.DecompressLimited(bytes.NewReader(data), layer.Limits{MaxBytes: 4 << 20})
	if err != nil {
		return false
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return typ != layer.Uncompressed && diag.KindOf(err) == diag.Exhausted
}

// blames fails unless an error says what is wrong with the image.
func blames(t *testing.T, err error) {
	t.Helper()
	switch diag.KindOf(err) {
	case diag.Invalid, diag.NotFound, diag.Exhausted, diag.Unsupported:
	default:
		t.Fatalf("%s: %v", diag.KindOf(err), err)
	}
	if strings.Contains(err.Error(), "7d4e2c") {
		t.Fatalf("the error tells of another file: %v", err)
	}
}

// explore reads all that an archive has.
func explore(t *testing.T, a *Archive) {
	for _, n := range a.Names() {
		if hexName.MatchString(n) {
			continue // a blob may be anywhere: it is known by its digest
		}
		if b, err := ReadFile(a, n, registry.MaxManifest); err == nil && bytes.Contains(b, []byte(canary)) {
			t.Fatalf("%s is a file outside of the image", n)
		}
	}
	all, err := a.Entries()
	if err != nil {
		blames(t, err)
		return
	}
	for _, ref := range []string{"", "app", "app:1", "docker.io/library/app:1", "1", "app@sha256:" + strings.Repeat("0", 64)} {
		if _, err := Pick(all, ref); err != nil && diag.KindOf(err) != diag.NotFound {
			t.Fatalf("pick %q: %v", ref, err)
		}
	}
	for _, e := range all {
		if (e.Desc == nil) == (e.Docker == nil) {
			t.Fatalf("an entry is of one form: %+v", e)
		}
		if e.Desc != nil {
			document(t, a, *e.Desc, 0)
			continue
		}
		d, err := a.ReadDocker(t.Context(), e)
		if err != nil {
			blames(t, err)
			continue
		}
		if len(d.Blobs) != len(d.Config.RootFS.DiffIDs) {
			t.Fatalf("%d blobs for %d layers", len(d.Blobs), len(d.Config.RootFS.DiffIDs))
		}
		for _, b := range d.Blobs {
			r, err := d.Blob(t.Context(), b, 0)
			if err != nil {
				t.Fatalf("a layer that was described cannot be read: %v", err)
			}
			whole(t, r, b)
		}
	}
}

// document follows the documents of a layout.
func document(t *testing.T, a *Archive, d image.Descriptor, depth int) {
	raw, err := a.Document(d)
	if err != nil {
		blames(t, err)
		return
	}
	if d.Digest.Algorithm().FromBytes(raw) != d.Digest {
		t.Fatalf("the document is not %s", d.Digest)
	}
	doc, err := registry.Decode(raw, d.MediaType)
	if err != nil {
		blames(t, err)
		return
	}
	if doc.Index != nil && depth < 3 {
		for _, m := range doc.Index.Manifests[:min(8, len(doc.Index.Manifests))] {
			document(t, a, image.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size}, depth+1)
		}
	}
	if doc.Manifest == nil {
		return
	}
	for _, l := range append(doc.Manifest.Layers, doc.Manifest.Config) {
		r, err := a.Blob(t.Context(), image.Descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size}, 0)
		if err != nil {
			blames(t, err)
			continue
		}
		n, err := io.Copy(io.Discard, r)
		r.Close()
		if err != nil || l.Size > 0 && n > l.Size {
			t.Fatalf("%d of %d bytes, %v", n, l.Size, err)
		}
	}
}

// whole reads a blob, which is what its descriptor says.
func whole(t *testing.T, r io.ReadCloser, d image.Descriptor) {
	defer r.Close()
	h := d.Digest.Algorithm().Hash()
	n, err := io.Copy(h, r)
	if err != nil || n != d.Size || digest.NewDigest(d.Digest.Algorithm(), h) != d.Digest {
		t.Fatalf("%d of %d bytes, %v", n, d.Size, err)
	}
}

// cage is a directory with the image in it, beside files that must stay as they are.
type cage struct {
	top, dir string
	temps    int
}

func newCage(t *testing.T) *cage {
	c := &cage{top: t.TempDir()}
	c.dir = filepath.Join(c.top, "in")
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(canary)))
	if err := errors.Join(os.Mkdir(c.dir, 0o700), os.Mkdir(filepath.Join(c.top, "temp"), 0o700),
		os.WriteFile(filepath.Join(c.top, "canary"), []byte(canary), 0o600), os.WriteFile(filepath.Join(c.top, sum), []byte(canary), 0o600)); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *cage) temp(string) (string, func(), error) {
	c.temps++
	dir := filepath.Join(c.top, "temp", fmt.Sprint(c.temps))
	return dir, func() { os.RemoveAll(dir) }, os.Mkdir(dir, 0o700)
}

func (c *cage) check(t *testing.T) {
	t.Helper()
	var got []string
	for _, dir := range []string{c.top, filepath.Join(c.top, "temp")} {
		all, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			got = append(got, e.Name())
		}
	}
	b, err := os.ReadFile(filepath.Join(c.top, "canary"))
	if want := []string{fmt.Sprintf("%x", sha256.Sum256([]byte(canary))), "canary", "in", "temp"}; len(got) != len(want) || string(b) != canary || err != nil {
		t.Fatalf("%q stand beside the image, %q, %v", got, b, err)
	}
}

// spread makes a directory of what a tar holds, its links as they are.
func spread(t *testing.T, dir string, data []byte) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	r := tar.NewReader(bytes.NewReader(data))
	for range 100 {
		h, err := r.Next()
		if err != nil {
			return
		}
		name := CleanName(h.Name)
		if name == "" || len(name) > 200 {
			continue
		}
		_ = root.MkdirAll(filepath.Dir(name), 0o700) // what a file system refuses is left out
		if h.Typeflag == tar.TypeSymlink {
			_ = root.Symlink(h.Linkname, name)
			continue
		}
		if f, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600); err == nil {
			_, _ = io.Copy(f, io.LimitReader(r, 1<<20))
			f.Close()
		}
	}
}

// seeds are images of every form, whole and wrong.
func seeds(f *testing.F) [][]byte {
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "file", Typeflag: tar.TypeReg, Size: 4, Mode: 0o644}), second(w.Write([]byte("data"))), w.Close()); err != nil {
		f.Fatal(err)
	}
	blob := Bytes(ocispec.MediaTypeImageLayer, plain.Bytes())
	conf, err := json.Marshal(image.Config{OS: "linux", Architecture: "amd64", RootFS: image.RootFS{Type: "layers", DiffIDs: []digest.Digest{blob.Digest}}})
	if err != nil {
		f.Fatal(err)
	}
	im := Image{Config: Bytes(ocispec.MediaTypeImageConfig, conf), Layers: []Blob{blob}}
	raw := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, im.Config.Digest, im.Config.Size, ocispec.MediaTypeImageLayer, blob.Digest, blob.Size)
	im.Manifest = Bytes(ocispec.MediaTypeImageManifest, []byte(raw))
	set := Set{Names: []string{"docker.io/library/app:1"}, Images: []Image{im}, Top: im.Manifest.Descriptor}
	var out [][]byte
	write := func(files []Output, err error) {
		var b bytes.Buffer
		if err = errors.Join(err, WriteTar(context.Background(), &b, files)); err != nil {
			f.Fatal(err)
		}
		out = append(out, b.Bytes())
	}
	write(OCIFiles([]Set{set}))
	write(DockerFiles([]Set{set}))
	write(LegacyFiles([]Set{set}))
	write(DirFiles(&set))
	legacy, err := LegacyFiles([]Set{set})
	write(slices.DeleteFunc(legacy, func(o Output) bool { return o.Name == "manifest.json" }), err)
	for _, links := range [][2]string{
		{"manifest.json", "../../canary"},
		{"index.json", "/proc/self/environ"},
		{"manifest.json", "manifest.json"},
		{"a", "b/a"},
		{"repositories", "x/../repositories/y"},
		{strings.Repeat("0", 64) + "/json", "../../../canary"},
		{"manifest.json", strings.Repeat("a/", 2000) + "b"},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: links[0], Linkname: links[1], Typeflag: tar.TypeSymlink}), w.Close()); err != nil {
			f.Fatal(err)
		}
		out = append(out, b.Bytes())
	}
	var z bytes.Buffer
	c, err := layer.NewCompressor(&z, layer.Compression{Type: layer.Gzip})
	if err == nil {
		err = errors.Join(second(c.Write(out[1])), c.Close())
	}
	if err != nil {
		f.Fatal(err)
	}
	return append(out, z.Bytes(), []byte("no archive"), nil)
}

func second[T any](_ T, err error) error { return err }

// Reading takes no longer than the archive's size explains: neither long names nor many small layers multiply.
func TestArchiveBounds(t *testing.T) {
	for name, headers := range map[string][]tar.Header{
		"name":   {{Name: strings.Repeat("a/", maxName) + "b", Typeflag: tar.TypeReg}},
		"link":   {{Name: "manifest.json", Linkname: strings.Repeat("a/", maxName), Typeflag: tar.TypeSymlink}},
		"grows":  {{Name: "manifest.json", Linkname: "a/x", Typeflag: tar.TypeSymlink}, {Name: "a", Linkname: "a/" + strings.Repeat("b/", 1000), Typeflag: tar.TypeSymlink}},
		"layers": many(),
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if h.Size > 0 {
				io.WriteString(w, "{}")
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		a, err := Open(t.Context(), "", &b, newCage(t).temp)
		if err == nil {
			_, err = a.Entries()
			a.Close()
		}
		if k := diag.KindOf(err); err == nil || k != diag.Invalid && k != diag.Exhausted {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// many is an archive of the oldest form with more layers than an image may have, all links to one file.
func many() []tar.Header {
	id := strings.Repeat("0", 64)
	out := []tar.Header{{Name: id + "/json", Typeflag: tar.TypeReg, Size: 2}, {Name: id + "/layer.tar", Typeflag: tar.TypeReg}}
	for i := range maxLayers {
		out = append(out, tar.Header{Name: fmt.Sprintf("%064x/json", i+1), Linkname: id + "/json", Typeflag: tar.TypeLink})
	}
	return out
}
