package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"strings"
	"testing"
	"time"
)

func TestNewestInArchive(t *testing.T) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for i, h := range []tar.Header{{Name: "d", Typeflag: tar.TypeDir}, {Name: "a", Typeflag: tar.TypeReg}, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: "a"}} {
		h.ModTime = time.Unix(int64(300-100*i), 0)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	z.Close()
	if got := NewestInArchive(&b); got.Unix() != 200 {
		t.Errorf("%v", got)
	}
	if got := NewestInArchive(strings.NewReader("no archive")); !got.IsZero() {
		t.Errorf("%v", got)
	}
}
