package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func tarOf(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		data := h.Name
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(data))
		}
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(data)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unpack(data []byte, dir string) error {
	return unpackContext(bufio.NewReader(bytes.NewReader(data)), dir)
}

func TestUnpackContext(t *testing.T) {
	when := time.Unix(1e9, 0)
	data := tarOf(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "./sub/", Mode: 0o750, ModTime: when},
		tar.Header{Typeflag: tar.TypeReg, Name: "./sub/run.sh", Mode: 0o755, ModTime: when},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "sub/run.sh"},
		tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "sub/run.sh"},
		tar.Header{Typeflag: tar.TypeReg, Name: "no/parent/x", Mode: 0o644, ModTime: when},
		tar.Header{Typeflag: tar.TypeFifo, Name: "pipe"},
	)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"plain": data, "gzip": zipped.Bytes()} {
		dir := t.TempDir()
		if err := unpack(b, dir); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{"sub/run.sh", "link", "hard"} {
			got, err := os.ReadFile(filepath.Join(dir, f))
			if err != nil || string(got) != "./sub/run.sh" {
				t.Errorf("%s: %s holds %q, %v", name, f, got, err)
			}
		}
		for f, mode := range map[string]os.FileMode{"sub": 0o750 | os.ModeDir, "sub/run.sh": 0o755} {
			st, err := os.Stat(filepath.Join(dir, f))
			if err != nil || st.Mode() != mode || !st.ModTime().Equal(when) {
				t.Errorf("%s: %s is %v of %v, %v", name, f, st.Mode(), st.ModTime(), err)
			}
		}
		if _, err := os.Lstat(filepath.Join(dir, "pipe")); err == nil {
			t.Errorf("%s: a pipe was made", name)
		}
	}
}

// Nothing lands outside the directory, whatever an archive says.
func TestUnpackContextEscapes(t *testing.T) {
	outside := t.TempDir()
	for name, entries := range map[string][]tar.Header{
		"dot dot":         {{Typeflag: tar.TypeReg, Name: "../../../x", Mode: 0o644}},
		"absolute":        {{Typeflag: tar.TypeReg, Name: outside + "/x", Mode: 0o644}},
		"through symlink": {{Typeflag: tar.TypeSymlink, Name: "l", Linkname: outside}, {Typeflag: tar.TypeReg, Name: "l/x", Mode: 0o644}},
		"hard link":       {{Typeflag: tar.TypeSymlink, Name: "l", Linkname: outside + "/canary"}, {Typeflag: tar.TypeLink, Name: "h", Linkname: "l"}, {Typeflag: tar.TypeReg, Name: "h", Mode: 0o644}},
		"over symlink":    {{Typeflag: tar.TypeSymlink, Name: "x", Linkname: outside + "/x"}, {Typeflag: tar.TypeReg, Name: "x", Mode: 0o644}},
		"dir over link":   {{Typeflag: tar.TypeSymlink, Name: "x", Linkname: outside}, {Typeflag: tar.TypeDir, Name: "x", Mode: 0o700}},
	} {
		if err := os.WriteFile(filepath.Join(outside, "canary"), []byte("ok"), 0o600); err != nil {
			t.Fatal(err)
		}
		before, err := os.Stat(outside)
		if err != nil {
			t.Fatal(err)
		}
		_ = unpack(tarOf(t, entries...), t.TempDir()) // an error is as good as leaving the entry out
		if b, err := os.ReadFile(filepath.Join(outside, "canary")); err != nil || string(b) != "ok" {
			t.Errorf("%s: the canary holds %q, %v", name, b, err)
		}
		if list, err := os.ReadDir(outside); err != nil || len(list) != 1 {
			t.Errorf("%s: %v was made outside, %v", name, list, err)
		}
		if after, err := os.Stat(outside); err != nil || after.Mode() != before.Mode() {
			t.Errorf("%s: the mode outside was changed, %v", name, err)
		}
	}
}

func TestUnpackDockerfile(t *testing.T) {
	dir := t.TempDir()
	if err := unpack([]byte("FROM scratch\n"), dir); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "Dockerfile")); err != nil || string(b) != "FROM scratch\n" {
		t.Errorf("the Dockerfile holds %q, %v", b, err)
	}
	wantError(t, "empty", unpack(nil, t.TempDir()), "no build context on standard input")
	wantError(t, "binary", unpack([]byte{1, 0, 2}, t.TempDir()), "neither a tar archive nor a Dockerfile")
	cut := tarOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "x", Mode: 0o644})
	wantError(t, "cut", unpack(cut[:512], t.TempDir()), "standard input")
}
