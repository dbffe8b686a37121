package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"path"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/outfile"
)

// Blob is content of known digest and size: bytes, or whatever Copy writes.
type Blob struct {
	image.Descriptor
	Data []byte
	Copy func(ctx context.Context, w io.Writer) error // nil: Data is all
}

// Bytes makes a blob of a document.
func Bytes(mediaType string, b []byte) Blob {
	return Blob{Descriptor: image.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}, Data: b}
}

// Write writes the content to w.
func (b Blob) Write(ctx context.Context, w io.Writer) error {
	if b.Copy != nil {
		return b.Copy(ctx, w)
	}
	_, err := w.Write(b.Data)
	return err
}

// Image is one image with all its parts known. The configuration and the manifest have Data.
type Image struct {
	Platform graph.Platform
	Config   Blob
	Layers   []Blob // bottom first
	Manifest Blob
	Proofs   []Blob // blobs of the attestation manifest
	Proof    *Blob  // the attestation manifest
}

// Set is what one entry of an archive holds: an image, or an index of several.
type Set struct {
	Images []Image
	Index  *Blob
	Top    image.Descriptor // of the index or the only manifest
	Names  []string         // full references
}

// Blobs calls f for each blob of the set once, layers first and manifests last, so that whoever stores them in this order
// never holds a manifest without its parts.
func (s *Set) Blobs(f func(Blob) error) error {
	seen := map[graph.Digest]bool{}
	visit := func(blobs ...Blob) error {
		for _, x := range blobs {
			if x.Digest == "" || seen[x.Digest] {
				continue
			}
			seen[x.Digest] = true
			if err := f(x); err != nil {
				return err
			}
		}
		return nil
	}
	for _, im := range s.Images {
		if err := visit(append(append(slices.Clone(im.Layers), im.Config), im.Proofs...)...); err != nil {
			return err
		}
	}
	return visit(s.Manifests()...)
}

// Manifests returns the manifests and, last, the index.
func (s *Set) Manifests() []Blob {
	var out []Blob
	for _, im := range s.Images {
		out = append(out, im.Manifest)
		if im.Proof != nil {
			out = append(out, *im.Proof)
		}
	}
	if s.Index != nil {
		out = append(out, *s.Index)
	}
	return out
}

// Output is one file to be written: a blob, or a symlink.
type Output struct {
	Name string
	Blob
	Link string
}

func textFile(name string, data []byte) Output { return Output{Name: name, Blob: Bytes("", data)} }

// layoutFiles lists the files of an OCI image layout that holds the sets. refs are the entries of index.json.
func layoutFiles(sets []Set, refs []image.Descriptor) ([]Output, error) {
	var files []Output
	seen := map[string]bool{}
	for i := range sets {
		err := sets[i].Blobs(func(x Blob) error {
			if name := blobPath(x.Digest); !seen[name] {
				seen[name] = true
				files = append(files, Output{Name: name, Blob: x})
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

func blobPath(d graph.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// WriteTar writes files as a tar, sorted by name, with nothing in it that depends on the machine or the time. Contents go
// to w as they come, so that a kernel copy is possible and nothing is kept.
func WriteTar(ctx context.Context, w io.Writer, files []Output) error {
	slices.SortFunc(files, func(a, b Output) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	made := map[string]bool{".": true}
	for _, f := range files {
		if err := parents(w, path.Dir(f.Name), made); err != nil {
			return err
		}
		h := &tar.Header{Name: f.Name, Typeflag: tar.TypeReg, Size: f.Size, Mode: 0o644, ModTime: time.Unix(0, 0)}
		if f.Link != "" {
			h.Typeflag, h.Linkname, h.Size, h.Mode = tar.TypeSymlink, f.Link, 0, 0o777
		}
		if err := writeHeader(w, h); err != nil {
			return err
		}
		if f.Link != "" {
			continue
		}
		if err := f.Write(ctx, w); err != nil {
			return diag.Errorf(diag.KindOf(err), "%s: %w", f.Name, err)
		}
		if _, err := w.Write(make([]byte, -f.Size&511)); err != nil {
			return err
		}
	}
	_, err := w.Write(make([]byte, 1024))
	return err
}

// parents writes the directories that a file is in, those that are not there yet.
func parents(w io.Writer, dir string, made map[string]bool) error {
	if made[dir] {
		return nil
	}
	if err := parents(w, path.Dir(dir), made); err != nil {
		return err
	}
	made[dir] = true
	return writeHeader(w, &tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(0, 0)})
}

func writeHeader(w io.Writer, h *tar.Header) error {
	var head bytes.Buffer
	if err := tar.NewWriter(&head).WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(head.Bytes())
	return err
}

// WriteDir writes files below a directory, which is made if need be. A reader sees an old file or a new one. Blobs that are there
// already, with the right size, stay.
func WriteDir(ctx context.Context, dir string, files []Output) error {
	at, err := outfile.OpenDir(dir)
	if err != nil {
		return err
	}
	defer at.Close()
	for _, f := range files {
		isBlob := path.Dir(f.Name) != "." || hexName.MatchString(f.Name)
		if size, err := at.Size(f.Name); err == nil && isBlob && size == f.Size {
			continue
		}
		err := at.MkdirAll(path.Dir(f.Name))
		if err == nil {
			err = at.WriteFrom(f.Name, func(w io.Writer) error { return f.Write(ctx, w) })
		}
		if err != nil {
			return diag.Errorf(diag.KindOf(err), "%s: %w", f.Name, err)
		}
	}
	return nil
}
