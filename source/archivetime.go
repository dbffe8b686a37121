package source

import (
	"archive/tar"
	"io"
	"time"

	"github.com/strata-build/strata/layer"
)

// NewestInArchive returns the latest time of a regular file in a tar archive, plain or compressed; zero if it has none or if r
// is no such archive.
func NewestInArchive(r io.Reader) time.Time {
	z, _, err := layer.Decompress(r)
	if err != nil {
		return time.Time{}
	}
	defer z.Close()
	var newest time.Time
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		switch {
		case err == io.EOF:
			return newest
		case err != nil:
			return time.Time{}
		case h.Typeflag == tar.TypeReg && h.ModTime.After(newest):
			newest = h.ModTime
		}
	}
}
