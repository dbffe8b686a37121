package pack

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/strictjson"
)

// isSchema1 reports whether a manifest is of the form that Docker gave up in 2019.
func isSchema1(raw []byte) bool {
	var m struct {
		SchemaVersion int
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	return strictjson.Unmarshal(raw, &m) == nil && m.SchemaVersion == 1 && m.FSLayers != nil
}

// history1 is what a layer's v1Compatibility holds.
type history1 struct {
	ID           string          `json:"id"`
	Created      *time.Time      `json:"created"`
	Author       string          `json:"author"`
	Comment      string          `json:"comment"`
	OS           string          `json:"os"`
	Architecture string          `json:"architecture"`
	Config       json.RawMessage `json:"config"`
	Throwaway    bool            `json:"throwaway"`
	Container    struct {
		Cmd []string
	} `json:"container_config"`
}

// schema1 reads such a manifest, newest layer first, and makes the configuration that a newer one would have had. The
// diff_ids are those of the layers as they are: nothing says what they should be. Source: distribution spec
// manifest-v2-1.md.
func (w *Workspace) schema1(ctx context.Context, ref registry.Ref, raw []byte) (*Image, error) {
	var m struct {
		FSLayers []struct {
			BlobSum graph.Digest `json:"blobSum"`
		} `json:"fsLayers"`
		History []struct {
			V1 string `json:"v1Compatibility"`
		} `json:"history"`
	}
	if err := strictjson.Unmarshal(raw, &m); err != nil || len(m.FSLayers) != len(m.History) || len(m.History) == 0 {
		return nil, diag.Errorf(diag.Invalid, "%s: the manifest of schema 1 is damaged", ref)
	}
	im := &Image{Name: ref.String()}
	var c image.Config
	var last string
	for i, h := range m.History {
		var v history1
		if err := strictjson.Unmarshal([]byte(h.V1), &v); err != nil {
			return nil, diag.Errorf(diag.Invalid, "%s: history %d: %w", ref, i, err)
		}
		if i == 0 {
			c = image.Config{Created: v.Created, Author: v.Author, OS: cmp.Or(v.OS, "linux"), Architecture: cmp.Or(v.Architecture, "amd64")}
			if len(v.Config) > 0 && !bytes.Equal(v.Config, []byte("null")) {
				if err := strictjson.Unmarshal(v.Config, &c.Config); err != nil {
					return nil, diag.Errorf(diag.Invalid, "%s: history 0: %w", ref, err)
				}
			}
		}
		if v.ID != "" && v.ID == last {
			continue // some builders wrote an entry twice
		}
		last = v.ID
		c.History = append(c.History, image.History{
			Created: v.Created, CreatedBy: strings.Join(v.Container.Cmd, " "), Author: v.Author, Comment: v.Comment, EmptyLayer: v.Throwaway,
		})
		if v.Throwaway {
			continue
		}
		l, err := w.layer1(ctx, ref, m.FSLayers[i].BlobSum)
		if err != nil {
			return nil, err
		}
		l.History = c.History[len(c.History)-1]
		im.Layers = append(im.Layers, l)
	}
	slices.Reverse(c.History)
	slices.Reverse(im.Layers)
	im.Config, im.Platform = &c, c.Platform()
	return im, nil
}

func (w *Workspace) layer1(ctx context.Context, ref registry.Ref, d digest.Digest) (*Layer, error) {
	if err := d.Validate(); err != nil {
		return nil, diag.Errorf(diag.Invalid, "%s: invalid digest %q", ref, d)
	}
	desc, err := w.opt.Registry.Stat(ctx, ref, d)
	if err != nil {
		return nil, err
	}
	desc.MediaType = image.DockerLayerGzip
	l := &Layer{blob: desc, at: &place{registry: w.opt.Registry, ref: ref}}
	_, err = w.Entries(ctx, l)
	return l, err
}
