package pack

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/outfile"
)

// Keep closes something with the workspace: a directory that layers are read from.
func (w *Workspace) Keep(f func() error) { w.onClose(f) }

// Layer returns the layer with a digest or diff_id.
func (im *Image) Layer(d graph.Digest) (*Layer, error) {
	for _, l := range im.Layers {
		if l.blob.Digest == d || l.diffID == d {
			return l, nil
		}
	}
	return nil, diag.Errorf(diag.NotFound, "%s has no layer %s", im.Name, d).WithHint("list them with 'strata image layers'")
}

// Description is what is known of a layer.
type Description struct {
	Digest      graph.Digest      `json:"digest"`
	DiffID      graph.Digest      `json:"diffID"`
	MediaType   string            `json:"mediaType"`
	Size        int64             `json:"size"`
	Name        string            `json:"name,omitempty"`
	CreatedBy   string            `json:"createdBy,omitempty"`
	Created     *time.Time        `json:"created,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Files       []File            `json:"files,omitempty"`
}

// File is one entry of a layer.
type File struct {
	Path  string `json:"path"`
	Type  string `json:"type"` // file, dir, symlink, hardlink, char, block, fifo
	Mode  string `json:"mode"` // octal
	UID   uint32 `json:"uid"`
	GID   uint32 `json:"gid"`
	Size  int64  `json:"size"`
	MTime int64  `json:"mtime"`
	Link  string `json:"link,omitempty"`
}

// Describe lists an image's layers, bottom first; with files also what is in them, for which they are read.
func (w *Workspace) Describe(ctx context.Context, im *Image, files bool) ([]Description, error) {
	out := []Description{}
	for _, l := range im.Layers {
		d := Description{
			Digest: l.blob.Digest, DiffID: l.diffID, MediaType: l.blob.MediaType, Size: l.blob.Size, Name: l.Name,
			CreatedBy: l.History.CreatedBy, Created: l.History.Created, Annotations: l.Annotations,
		}
		if files {
			entries, err := w.Entries(ctx, l)
			if err != nil {
				return nil, err
			}
			for _, e := range entries {
				d.Files = append(d.Files, describe(e))
			}
		}
		out = append(out, d)
	}
	return out, nil
}

func describe(e *layer.Entry) File {
	types := map[layer.EntryType]string{
		layer.File: "file", layer.Dir: "dir", layer.Symlink: "symlink", layer.HardLink: "hardlink", layer.Char: "char", layer.Block: "block", layer.Fifo: "fifo",
	}
	return File{Path: e.Path, Type: types[e.Type], Mode: fmt.Sprintf("%04o", e.Mode), UID: e.UID, GID: e.GID, Size: e.Size, MTime: e.ModTime.Unix(), Link: e.Link}
}

// Flatten writes the file system that an image shows as one tar.
func (w *Workspace) Flatten(ctx context.Context, im *Image, out io.Writer) error {
	fs, err := w.FS(ctx, im)
	if err != nil {
		return err
	}
	_, err = layer.WriteEntries(ctx, out, fs.Entries(), layer.TarOptions{AllXattrs: true})
	return err
}

// ExportLayers writes the uncompressed tar of each layer into a directory, as 001-<diff_id's first digits>.tar and so on.
func (w *Workspace) ExportLayers(ctx context.Context, im *Image, dir string) error {
	at, err := outfile.OpenDir(dir)
	if err != nil {
		return err
	}
	defer at.Close()
	p := &packing{w: w, t: Target{Compression: &layer.Compression{}}}
	for i, l := range im.Layers {
		l.mu.Lock()
		b, err := p.blob(ctx, l)
		l.mu.Unlock()
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%03d-%s.tar", i+1, l.diffID.Encoded()[:12])
		if err := at.WriteFrom(name, func(out io.Writer) error { return b.Write(ctx, out) }); err != nil {
			return err
		}
	}
	return nil
}
