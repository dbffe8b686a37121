package op

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/sandbox"
)

// inputMount shows a step of an OUTPUT the layers that it need not make again: history.json, and input/, an OCI layout with
// the blobs that the store has.
func (s *execStep) inputMount(ctx context.Context, m graph.Mount) error {
	var known []Known
	if m.Previous != nil && s.env.Known != nil {
		var err error
		if known, err = s.env.Known(ctx, m.Previous); err != nil {
			return err
		}
	}
	dir, err := s.tempDir()
	if err != nil {
		return err
	}
	rows := make([]image.KnownLayer, len(known))
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	blobs := filepath.Join(dir, "input", "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	hold := s.store.Hold()
	s.later(func() error { hold.Release(); return nil })
	for i, k := range known {
		hold.Blobs(k.Digest)
		k.Present = false
		if _, ok := s.store.HasBlob(k.Digest); ok {
			// The store's file itself, of which the step gets a read-only view.
			from := filepath.Join(s.store.Root(), "blobs", "sha256", k.Digest.Encoded())
			if err := os.Link(from, filepath.Join(blobs, k.Digest.Encoded())); err != nil && !os.IsExist(err) {
				return err
			}
			k.Present = true
			index.Manifests = append(index.Manifests, ocispec.Descriptor{MediaType: k.MediaType, Digest: k.Digest, Size: k.Size})
		}
		rows[i] = k.KnownLayer
	}
	for name, v := range map[string]any{"history.json": rows, "input/index.json": index, "input/oci-layout": ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}} {
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	for _, name := range []string{"input", "history.json"} {
		s.spec.Mounts = append(s.spec.Mounts, sandbox.Mount{Type: sandbox.Bind, Source: filepath.Join(dir, name), Target: m.Target + "/" + name, ReadOnly: true})
	}
	return nil
}
