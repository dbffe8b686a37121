package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Media types of Docker's second image format, in which the stand-in images are written, as the public ones were.
const (
	typeManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeConfig   = "application/vnd.docker.container.image.v1+json"
	typeLayer    = "application/vnd.docker.image.rootfs.diff.tar"
	typeForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	typeIndex    = "application/vnd.oci.image.index.v1+json"
)

// imageTime is the time of everything in the stand-in images: the same packages give the same bytes.
var imageTime = time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC)

// entry is one file of a layer. A path without a leading slash; a directory's ends in a slash.
type entry struct {
	path    string
	mode    int64
	content []byte // of a regular file
	symlink string // target of a symbolic link
	link    string // path of a hard link's other name
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	URLs        []string          `json:"urls,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type history struct {
	Created    time.Time `json:"created"`
	CreatedBy  string    `json:"created_by"`
	EmptyLayer bool      `json:"empty_layer,omitempty"`
}

type containerConfig struct {
	Env        []string
	Entrypoint []string          `json:",omitempty"`
	Cmd        []string          `json:",omitempty"`
	WorkingDir string            `json:",omitempty"`
	Labels     map[string]string `json:",omitempty"`
}

// imageSpec says what a stand-in image is made of.
type imageSpec struct {
	layers  [][]entry
	config  containerConfig
	history []history         // of all layers; made up if it is nil
	foreign map[int]string    // layers that are foreign, and where they are fetched from
	plain   bool              // layers are not compressed
	blobs   map[string][]byte // filled by build: digest to bytes
	layer   []descriptor      // filled by build
	desc    descriptor        // filled by build: the manifest
}

func digestOf(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

// build makes the image's blobs.
func (s *imageSpec) build() error {
	s.blobs = map[string][]byte{}
	var diffIDs []string
	for i, entries := range s.layers {
		raw, err := layerTar(entries)
		if err != nil {
			return err
		}
		diffIDs = append(diffIDs, digestOf(raw))
		suffix := ".gzip"
		blob := compress(raw)
		if s.plain {
			suffix, blob = "", raw
		}
		d := s.add(typeLayer+suffix, blob)
		if url, ok := s.foreign[i]; ok {
			d.MediaType, d.URLs = typeForeign+suffix, []string{url + d.Digest}
		}
		s.layer = append(s.layer, d)
	}
	hist := s.history
	for i := len(hist); i < len(s.layers); i++ {
		hist = append(hist, history{Created: imageTime, CreatedBy: "stand-in"})
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": imageTime, "config": s.config, "history": hist,
		"rootfs": map[string]any{"type": "layers", "diff_ids": append([]string{}, diffIDs...)},
	})
	if err != nil {
		return err
	}
	m := manifest{SchemaVersion: 2, MediaType: typeManifest, Config: s.add(typeConfig, config), Layers: append([]descriptor{}, s.layer...)}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	s.desc = s.add(typeManifest, b)
	return nil
}

func (s *imageSpec) add(mediaType string, b []byte) descriptor {
	d := descriptor{MediaType: mediaType, Digest: digestOf(b), Size: int64(len(b))}
	s.blobs[d.Digest] = b
	return d
}

func layerTar(entries []entry) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.path, Mode: e.mode, ModTime: imageTime, Typeflag: tar.TypeReg, Size: int64(len(e.content))}
		switch {
		case strings.HasSuffix(e.path, "/"):
			h.Typeflag = tar.TypeDir
		case e.symlink != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.symlink, 0o777
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeLink, e.link
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("layer: %s: %w", e.path, err)
		}
		if _, err := w.Write(e.content); err != nil {
			return nil, fmt.Errorf("layer: %s: %w", e.path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func compress(b []byte) []byte {
	var buf bytes.Buffer
	w, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed) // writing to memory cannot fail
	_, _ = w.Write(b)
	_ = w.Close()
	return buf.Bytes()
}

// storeInRegistry writes the image into a data directory of the Docker registry, in the layout that its filesystem driver
// reads (github.com/distribution/distribution, registry/storage/paths.go).
func (s *imageSpec) storeInRegistry(dir, name string) error {
	repo, tag, ok := strings.Cut(name, ":")
	if !ok {
		tag = "latest"
	}
	v2 := filepath.Join(dir, "data/docker/registry/v2")
	files := map[string][]byte{}
	for d, b := range s.blobs {
		alg, hash, _ := strings.Cut(d, ":")
		files[filepath.Join("blobs", alg, hash[:2], hash, "data")] = b
		if d != s.desc.Digest {
			files[filepath.Join("repositories", repo, "_layers", alg, hash, "link")] = []byte(d)
		}
	}
	alg, hash, _ := strings.Cut(s.desc.Digest, ":")
	manifests := filepath.Join("repositories", repo, "_manifests")
	for _, link := range []string{
		filepath.Join("revisions", alg, hash), filepath.Join("tags", tag, "current"), filepath.Join("tags", tag, "index", alg, hash),
	} {
		files[filepath.Join(manifests, link, "link")] = []byte(s.desc.Digest)
	}
	for name, b := range files {
		if err := writeFile(filepath.Join(v2, name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// storeAsLayout writes the image as a tar of an OCI layout.
func (s *imageSpec) storeAsLayout(file string) error {
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []descriptor{s.desc}})
	if err != nil {
		return err
	}
	entries := []entry{
		{path: "oci-layout", mode: 0o644, content: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{path: "index.json", mode: 0o644, content: index},
	}
	for d, b := range s.blobs {
		entries = append(entries, entry{path: "blobs/" + strings.Replace(d, ":", "/", 1), mode: 0o644, content: b})
	}
	b, err := layerTar(entries)
	if err != nil {
		return err
	}
	return writeFile(file, b, 0o644)
}

// writeFile writes a file and makes its directory.
func writeFile(name string, b []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, b, mode)
}

// copyFile copies a file with its mode.
func copyFile(dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}
