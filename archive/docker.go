package archive

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/strictjson"
)

// DockerImage is one image of docker save. Sources: moby image/tarexport and docker-image-spec v1.0 to v1.2.
type DockerImage struct {
	Config   string // name of the configuration's file; "" for the format without manifest.json
	RepoTags []string
	Layers   []string // names of files, bottom first
	top      string   // id of the top layer, without manifest.json
}

// dockerEntries reads manifest.json, or else what older versions wrote.
func (a *Archive) dockerEntries() ([]Entry, error) {
	if !has(a, "manifest.json") {
		return a.legacyEntries()
	}
	var all []*DockerImage
	if err := decodeJSON(a, "manifest.json", &all); err != nil {
		return nil, err
	}
	var out []Entry
	for _, d := range all {
		if d == nil || d.Config == "" {
			return nil, diag.Errorf(diag.Invalid, "manifest.json: an image without a configuration")
		}
		out = append(out, Entry{Names: d.RepoTags, Docker: d})
	}
	return out, nil
}

// v1 is the json file of one layer in the format without manifest.json.
type v1 struct {
	ID           string          `json:"id"`
	Parent       string          `json:"parent"`
	Created      *time.Time      `json:"created"`
	Author       string          `json:"author"`
	Comment      string          `json:"comment"`
	OS           string          `json:"os"`
	Architecture string          `json:"architecture"`
	Config       json.RawMessage `json:"config"`
	Container    struct {
		Cmd []string `json:"Cmd"`
	} `json:"container_config"`
}

// legacyEntries finds the top layers: those that repositories names, or else those that are no parent.
func (a *Archive) legacyEntries() ([]Entry, error) {
	var repos map[string]map[string]string
	if has(a, "repositories") {
		if err := decodeJSON(a, "repositories", &repos); err != nil {
			return nil, err
		}
	}
	names := map[string][]string{}
	for repo, tags := range repos {
		for tag, id := range tags {
			names[id] = append(names[id], repo+":"+tag)
		}
	}
	parents := map[string]bool{}
	if len(names) == 0 {
		for _, n := range a.Names() {
			id, ok := strings.CutSuffix(n, "/json")
			if !ok || strings.Contains(id, "/") {
				continue
			}
			if len(names) == maxLayers {
				return nil, diag.Errorf(diag.Exhausted, "the archive has more than %d layers", maxLayers)
			}
			var l v1
			if err := decodeJSON(a, n, &l); err != nil {
				return nil, err
			}
			names[id] = nil
			parents[l.Parent] = true
		}
	}
	var out []Entry
	for id, refs := range names {
		if parents[id] {
			continue
		}
		slices.Sort(refs)
		out = append(out, Entry{Names: refs, Tag: id, Docker: &DockerImage{RepoTags: refs, top: id}})
	}
	slices.SortFunc(out, func(x, y Entry) int { return cmp.Compare(x.Tag, y.Tag) })
	if len(out) == 0 {
		return nil, diag.Errorf(diag.Invalid, "the archive holds no image: there is neither manifest.json nor repositories")
	}
	return out, nil
}

// legacyConfig follows the parents of an old image and makes the configuration that a newer Docker would have written.
func (a *Archive) legacyConfig(ctx context.Context, d *DockerImage) ([]byte, error) {
	var chain []v1
	seen := map[string]bool{}
	d.Layers = nil
	for id := d.top; id != ""; {
		if seen[id] {
			return nil, diag.Errorf(diag.Invalid, "the parents of layer %s form a circle", d.top)
		}
		if len(seen) == maxLayers {
			return nil, diag.Errorf(diag.Exhausted, "layer %s has more than %d parents", d.top, maxLayers)
		}
		seen[id] = true
		var l v1
		if err := decodeJSON(a, CleanName(id)+"/json", &l); err != nil {
			return nil, err
		}
		chain = append(chain, l)
		d.Layers = append(d.Layers, CleanName(id)+"/layer.tar")
		id = l.Parent
	}
	slices.Reverse(chain)
	slices.Reverse(d.Layers)
	top := chain[len(chain)-1]
	c := image.Config{Created: top.Created, Author: top.Author, OS: cmp.Or(top.OS, "linux"), Architecture: cmp.Or(top.Architecture, "amd64")}
	c.RootFS.Type = "layers"
	if len(top.Config) > 0 {
		if err := strictjson.Unmarshal(top.Config, &c.Config); err != nil {
			return nil, diag.Errorf(diag.Invalid, "%s/json: %w", d.top, err)
		}
	}
	for i, l := range chain {
		diff, err := a.diffID(ctx, d.Layers[i])
		if err != nil {
			return nil, err
		}
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, diff)
		c.History = append(c.History, image.History{Created: l.Created, Author: l.Author, Comment: l.Comment, CreatedBy: strings.Join(l.Container.Cmd, " ")})
	}
	return json.Marshal(c)
}

// diffID hashes a layer's plain tar.
func (a *Archive) diffID(ctx context.Context, name string) (graph.Digest, error) {
	r, size, err := a.Open(name)
	if err != nil {
		return "", err
	}
	defer r.Close()
	plain, _, err := layer.Decompress(&Cancelable{ctx, io.NewSectionReader(r, 0, size)})
	if err != nil {
		return "", err
	}
	defer plain.Close()
	h := digest.SHA256.Digester()
	if _, err := io.Copy(h.Hash(), plain); err != nil {
		return "", diag.Errorf(diag.KindOf(err), "%s: %w", name, err)
	}
	return h.Digest(), nil
}

// ReadDocker reads an image of docker save: the bytes of its configuration, the layers as blobs, bottom first, and what
// opens them. The layers are in the order of the configuration, whatever the archive says.
func (a *Archive) ReadDocker(ctx context.Context, e Entry) (*DockerContent, error) {
	d := *e.Docker
	var raw []byte
	var err error
	if d.top != "" {
		raw, err = a.legacyConfig(ctx, &d)
	} else {
		raw, err = ReadFile(a, CleanName(d.Config), registry.MaxConfig)
	}
	if err != nil {
		return nil, err
	}
	cfg, err := registry.DecodeConfig(raw)
	if err != nil {
		return nil, err
	}
	out := &DockerContent{Name: cmp.Or(e.Tag, digest.FromBytes(raw).String()), Config: cfg, Raw: raw, a: a, names: slices.Clone(d.Layers)}
	if len(e.Names) > 0 {
		out.Name = e.Names[0]
	}
	if len(d.Layers) != len(cfg.RootFS.DiffIDs) {
		return nil, diag.Errorf(diag.Invalid, "%s: the archive lists %d layers, the configuration %d", out.Name, len(d.Layers), len(cfg.RootFS.DiffIDs))
	}
	if len(d.Layers) > maxLayers {
		return nil, diag.Errorf(diag.Exhausted, "%s has %d layers, the limit is %d", out.Name, len(d.Layers), maxLayers)
	}
	out.Blobs, err = a.dockerLayers(ctx, out.names, cfg.RootFS.DiffIDs)
	return out, err
}

// DockerContent is an image of docker save with its layers found.
type DockerContent struct {
	Name   string
	Config *image.Config
	Raw    []byte             // the configuration's bytes
	Blobs  []image.Descriptor // bottom first
	a      *Archive
	names  []string // files of Blobs
}

// Blob opens a layer, from offset.
func (c *DockerContent) Blob(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error) {
	return readFrom(ctx, c.BlobFile, d, offset)
}

// BlobFile is Blob for those who want to read at any place.
func (c *DockerContent) BlobFile(d image.Descriptor) (File, error) {
	for i, b := range c.Blobs {
		if b.Digest == d.Digest {
			return blobFile(c.a, c.names[i], d)
		}
	}
	return nil, diag.Errorf(diag.NotFound, "the archive has no blob %s", d.Digest)
}

// dockerLayers describes the layers as blobs and checks that they stand in the order of the configuration. Names are
// changed to that order if not.
func (a *Archive) dockerLayers(ctx context.Context, names []string, diffs []graph.Digest) ([]image.Descriptor, error) {
	at := map[graph.Digest]string{}
	found := map[string]graph.Digest{}
	for i, n := range names {
		n = CleanName(n)
		names[i] = n
		diff, ok := found[n]
		if !ok {
			var err error
			if diff, err = a.diffID(ctx, n); err != nil {
				return nil, err
			}
			found[n] = diff
		}
		at[diff] = n
	}
	out := make([]image.Descriptor, len(names))
	for i, diff := range diffs {
		n, ok := at[diff]
		if !ok {
			return nil, diag.Errorf(diag.Invalid, "the archive has no layer with the diff_id %s", diff).WithHint("the archive is damaged")
		}
		names[i] = n
		d, err := a.describeFile(ctx, n, diff)
		if err != nil {
			return nil, err
		}
		out[i] = d
	}
	return out, nil
}

// describeFile returns the descriptor of a layer's file. That of an uncompressed one is its diff_id.
func (a *Archive) describeFile(ctx context.Context, name string, diff graph.Digest) (image.Descriptor, error) {
	r, size, err := a.Open(name)
	if err != nil {
		return image.Descriptor{}, err
	}
	defer r.Close()
	head := make([]byte, 128)
	n, _ := r.ReadAt(head, 0)
	plain, t, err := layer.Decompress(bytes.NewReader(head[:n]))
	if err == nil {
		plain.Close()
		if t == layer.Uncompressed {
			return image.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: diff, Size: size}, nil
		}
	}
	mediaType := ocispec.MediaTypeImageLayerGzip
	if t == layer.Zstd {
		mediaType = ocispec.MediaTypeImageLayerZstd
	}
	h := digest.SHA256.Digester()
	if _, err := io.Copy(h.Hash(), &Cancelable{ctx, io.NewSectionReader(r, 0, size)}); err != nil {
		return image.Descriptor{}, err
	}
	return image.Descriptor{MediaType: mediaType, Digest: h.Digest(), Size: size}, nil
}
