package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/image"
)

// file is an inode of a tree of a build's result. Times are left out: they are no part of a key.
type file struct {
	typ      byte
	mode     int64
	uid, gid int
	size     int64
	sum      string // of the content
	link     string
	xattrs   string
}

// tree is what a tar, or a stack of layers, holds.
type tree map[string]*file

// apply adds a layer, or a tar of a whole file system.
func (tr tree) apply(r io.Reader) error {
	type entry struct {
		name, hard string
		file       *file
	}
	var entries []entry
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		name := strings.Trim(path.Clean("/"+h.Name), "/")
		if base, ok := strings.CutPrefix(path.Base(name), ".wh."); ok {
			tr.hide(path.Dir(name), base)
			continue
		}
		e := entry{name: name}
		if h.Typeflag == tar.TypeLink {
			e.hard = strings.Trim(path.Clean("/"+h.Linkname), "/")
		} else if e.file, err = readFile(in, h); err != nil {
			return err
		}
		entries = append(entries, e)
	}
	for _, e := range entries {
		f := e.file
		if e.hard != "" {
			if f = tr[e.hard]; f == nil {
				return fmt.Errorf("%s is a hard link of %s, which is not there", e.name, e.hard)
			}
		}
		if f.typ != tar.TypeDir || tr[e.name] != nil && tr[e.name].typ != tar.TypeDir {
			tr.remove(e.name)
		}
		tr[e.name] = f
	}
	return nil
}

// hide does what a whiteout of a directory says: its base is a name, or that of the opaque marker without ".wh.".
func (tr tree) hide(dir, base string) {
	if base != ".wh..opq" {
		tr.remove(path.Join(dir, base))
		return
	}
	if dir == "." {
		clear(tr)
		return
	}
	maps.DeleteFunc(tr, func(name string, _ *file) bool { return strings.HasPrefix(name, dir+"/") })
}

func (tr tree) remove(name string) {
	maps.DeleteFunc(tr, func(n string, _ *file) bool { return n == name || strings.HasPrefix(n, name+"/") })
}

func readFile(in io.Reader, h *tar.Header) (*file, error) {
	hash := sha256.New()
	if _, err := io.Copy(hash, in); err != nil {
		return nil, err
	}
	f := &file{typ: h.Typeflag, mode: h.Mode, uid: h.Uid, gid: h.Gid, size: h.Size, sum: hex.EncodeToString(hash.Sum(nil)[:6]), link: h.Linkname}
	for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			f.xattrs += fmt.Sprintf(" %s=%x", name, h.PAXRecords[k])
		}
	}
	return f, nil
}

// lines describes the tree, the other names of each file with several included.
func (tr tree) lines() []string {
	names := map[*file][]string{}
	for _, name := range slices.Sorted(maps.Keys(tr)) {
		names[tr[name]] = append(names[tr[name]], name)
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(tr)) {
		f := tr[name]
		line := fmt.Sprintf("%c /%s %04o %d:%d size=%d %s%s%s", f.typ, name, f.mode, f.uid, f.gid, f.size, f.sum, f.link, f.xattrs)
		if all := names[f]; len(all) > 1 {
			line += fmt.Sprint(" names=", all)
		}
		out = append(out, line)
	}
	return out
}

// differences lists what two descriptions do not have in common, "" if they are equal.
func differences(what string, warm, cold []string) string {
	var b strings.Builder
	for _, l := range warm {
		if !slices.Contains(cold, l) {
			fmt.Fprintf(&b, "%s, warm only: %s\n", what, l)
		}
	}
	for _, l := range cold {
		if !slices.Contains(warm, l) {
			fmt.Fprintf(&b, "%s, cold only: %s\n", what, l)
		}
	}
	return b.String()
}

// readOCI reads an archive of an OCI layout with one image: its file system and its configuration.
func readOCI(r io.Reader) (tree, *image.Config, error) {
	blobs := map[string][]byte{}
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, nil, err
		}
		if blobs[path.Clean(h.Name)], err = io.ReadAll(in); err != nil {
			return nil, nil, err
		}
	}
	var index ocispec.Index
	var manifest ocispec.Manifest
	var config image.Config
	blob := func(d digest.Digest) []byte { return blobs["blobs/sha256/"+d.Encoded()] }
	err := json.Unmarshal(blobs["index.json"], &index)
	if err == nil && len(index.Manifests) != 1 {
		err = fmt.Errorf("%d manifests", len(index.Manifests))
	}
	if err == nil {
		err = json.Unmarshal(blob(index.Manifests[0].Digest), &manifest)
	}
	if err == nil {
		err = json.Unmarshal(blob(manifest.Config.Digest), &config)
	}
	out := tree{}
	for _, l := range manifest.Layers {
		if err == nil {
			err = out.applyBlob(blob(l.Digest))
		}
	}
	return out, &config, err
}

// applyBlob adds a layer that may be compressed by gzip.
func (tr tree) applyBlob(data []byte) error {
	if !bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		return tr.apply(bytes.NewReader(data))
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return err
	}
	return errors.Join(tr.apply(z), z.Close())
}

// TestTortureTree tells trees apart that differ in one property, layers that hide and replace included.
func TestTortureTree(t *testing.T) {
	layer := func(headers ...tar.Header) io.Reader {
		r, w := io.Pipe()
		go func() {
			tw := tar.NewWriter(w)
			for _, h := range headers {
				_ = tw.WriteHeader(&h)
			}
			_ = tw.Close()
			_ = w.Close()
		}()
		return r
	}
	reg := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
	dir := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755} }
	read := func(layers ...io.Reader) []string {
		tr := tree{}
		for _, l := range layers {
			if err := tr.apply(l); err != nil {
				t.Fatal(err)
			}
		}
		return tr.lines()
	}
	below := func() io.Reader { return layer(dir("d"), reg("d/a"), reg("d/b"), reg("e")) }
	for name, c := range map[string]struct {
		upper io.Reader
		want  []tar.Header
	}{
		"whiteout":  {layer(reg("d/.wh.a")), []tar.Header{dir("d"), reg("d/b"), reg("e")}},
		"opaque":    {layer(reg("d/c"), reg("d/.wh..wh..opq")), []tar.Header{dir("d"), reg("d/c"), reg("e")}},
		"replaced":  {layer(reg("d")), []tar.Header{reg("d"), reg("e")}},
		"directory": {layer(dir("e")), []tar.Header{dir("d"), reg("d/a"), reg("d/b"), dir("e")}},
	} {
		if got, want := read(below(), c.upper), read(layer(c.want...)); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}

	link := tar.Header{Typeflag: tar.TypeLink, Name: "b", Linkname: "a"}
	capable, owned, wide := reg("b"), reg("b"), reg("b")
	capable.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "x"}
	owned.Uid, wide.Mode = 1, 0o666
	plain := read(layer(reg("a"), reg("b")))
	for name, h := range map[string]tar.Header{"hard link": link, "attribute": capable, "owner": owned, "mode": wide} {
		if other := read(layer(reg("a"), h)); differences("tree", plain, other) == "" || differences("tree", plain, plain) != "" {
			t.Errorf("%s makes no difference: %v", name, other)
		}
	}
	if err := (tree{}).apply(layer(link)); err == nil {
		t.Error("a hard link of nothing is accepted")
	}
}
