package export

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path"
	"slices"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/image"
)

// file is one member of an archive or a layout: bytes or a piece, or a symlink.
type file struct {
	name string
	piece
	link string
}

func textFile(name string, data []byte) file { return file{name: name, piece: bytesPiece("", data)} }

// layoutFiles lists the files of an OCI image layout that holds the sets. refs are the entries of index.json.
func layoutFiles(sets []*packed, refs []image.Descriptor) ([]file, error) {
	var files []file
	seen := map[string]bool{}
	for _, p := range sets {
		err := p.blobs(func(x piece) error {
			if name := blobPath(x); !seen[name] {
				seen[name] = true
				files = append(files, file{name: name, piece: x})
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	idx := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: refs}
	idx.SchemaVersion = 2
	raw, err := json.Marshal(idx)
	if err != nil {
		return nil, err
	}
	return append(files, textFile(ocispec.ImageIndexFile, raw), textFile(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"`+ocispec.ImageLayoutVersion+`"}`))), nil
}

func blobPath(x piece) string {
	return path.Join(ocispec.ImageBlobsDir, x.Digest.Algorithm().String(), x.Digest.Encoded())
}

// writeTar writes files as a tar, sorted by name, with nothing in it that depends on the machine or the time. Contents
// go to w as they come, so that a kernel copy is possible and nothing is kept.
func (e *Env) writeTar(ctx context.Context, w io.Writer, files []file) error {
	slices.SortFunc(files, func(a, b file) int { return bytes.Compare([]byte(a.name), []byte(b.name)) })
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: tar.TypeReg, Size: f.Size, Mode: 0o644, ModTime: time.Unix(0, 0)}
		if f.link != "" {
			h.Typeflag, h.Linkname, h.Size, h.Mode = tar.TypeSymlink, f.link, 0, 0o777
		}
		var head bytes.Buffer
		if err := tar.NewWriter(&head).WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(head.Bytes()); err != nil {
			return err
		}
		if f.link != "" {
			continue
		}
		if err := e.write(ctx, w, f.piece); err != nil {
			return diag.Errorf(diag.KindOf(err), "%s: %w", f.name, err)
		}
		if _, err := w.Write(make([]byte, -f.Size&511)); err != nil {
			return err
		}
	}
	_, err := w.Write(make([]byte, 1024))
	return err
}

// writeDir writes files below a directory. Blobs that are there already, with the right size, stay.
func (e *Env) writeDir(ctx context.Context, dir string, files []file) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, f := range files {
		if st, err := root.Lstat(f.name); err == nil && path.Dir(f.name) != "." && st.Mode().IsRegular() && st.Size() == f.Size {
			continue
		}
		if err := root.MkdirAll(path.Dir(f.name), 0o755); err != nil {
			return err
		}
		if err := e.writeFile(ctx, root, f); err != nil {
			return diag.Errorf(diag.KindOf(err), "%s: %w", f.name, err)
		}
	}
	return nil
}

// writeFile replaces a file: a reader sees the old one or the new one.
func (e *Env) writeFile(ctx context.Context, root *os.Root, f file) error {
	part := f.name + ".part"
	w, err := root.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	err = e.write(ctx, w, f.piece)
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = root.Rename(part, f.name)
	}
	if err != nil {
		_ = root.Remove(part) // the first error matters
	}
	return err
}
