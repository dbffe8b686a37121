package source

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
)

// dockerImage is one image of docker save. Sources: moby image/tarexport and docker-image-spec v1.0 to v1.2.
type dockerImage struct {
	Config   string // name of the configuration's file; "" for the format without manifest.json
	RepoTags []string
	Layers   []string // names of files, bottom first
	top      string   // id of the top layer, without manifest.json
}

// dockerEntries reads manifest.json, or else what older versions wrote.
func (a *archive) dockerEntries() ([]entry, error) {
	if !has(a, "manifest.json") {
		return a.legacyEntries()
	}
	var all []*dockerImage
	if err := decodeJSON(a, "manifest.json", &all); err != nil {
		return nil, err
	}
	var out []entry
	for _, d := range all {
		if d == nil || d.Config == "" {
			return nil, diag.Errorf(diag.Invalid, "manifest.json: an image without a configuration")
		}
		out = append(out, entry{names: d.RepoTags, docker: d})
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
func (a *archive) legacyEntries() ([]entry, error) {
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
		for _, n := range a.names() {
			id, ok := strings.CutSuffix(n, "/json")
			if !ok || strings.Contains(id, "/") {
				continue
			}
			var l v1
			if err := decodeJSON(a, n, &l); err != nil {
				return nil, err
			}
			names[id] = nil
			parents[l.Parent] = true
		}
	}
	var out []entry
	for id, refs := range names {
		if parents[id] {
			continue
		}
		slices.Sort(refs)
		out = append(out, entry{names: refs, tag: id, docker: &dockerImage{RepoTags: refs, top: id}})
	}
	slices.SortFunc(out, func(x, y entry) int { return cmp.Compare(x.tag, y.tag) })
	if len(out) == 0 {
		return nil, diag.Errorf(diag.Invalid, "the archive holds no image: there is neither manifest.json nor repositories")
	}
	return out, nil
}

// legacyConfig follows the parents of an old image and makes the configuration that a newer Docker would have written.
func (a *archive) legacyConfig(ctx context.Context, d *dockerImage) ([]byte, error) {
	var chain []v1
	seen := map[string]bool{}
	d.Layers = nil
	for id := d.top; id != ""; {
		if seen[id] || len(seen) > 4096 {
			return nil, diag.Errorf(diag.Invalid, "the parents of layer %s form a circle", d.top)
		}
		seen[id] = true
		var l v1
		if err := decodeJSON(a, cleanName(id)+"/json", &l); err != nil {
			return nil, err
		}
		chain = append(chain, l)
		d.Layers = append(d.Layers, cleanName(id)+"/layer.tar")
		id = l.Parent
	}
	slices.Reverse(chain)
	slices.Reverse(d.Layers)
	top := chain[len(chain)-1]
	c := image.Config{Created: top.Created, Author: top.Author, OS: cmp.Or(top.OS, "linux"), Architecture: cmp.Or(top.Architecture, "amd64")}
	c.RootFS.Type = "layers"
	if len(top.Config) > 0 {
		if err := json.Unmarshal(top.Config, &c.Config); err != nil {
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
func (a *archive) diffID(ctx context.Context, name string) (graph.Digest, error) {
	r, size, err := a.open(name)
	if err != nil {
		return "", err
	}
	defer r.Close()
	plain, _, err := layer.Decompress(&cancelable{ctx, io.NewSectionReader(r, 0, size)})
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

// dockerImage reads an image of docker save. Its platform is the configuration's.
func (im *Images) dockerImage(ctx context.Context, a *archive, e entry) (*Image, error) {
	d := *e.docker
	var raw []byte
	var err error
	if d.top != "" {
		raw, err = a.legacyConfig(ctx, &d)
	} else {
		raw, err = readFile(a, cleanName(d.Config), registry.MaxConfig)
	}
	if err != nil {
		return nil, err
	}
	cfg, err := registry.DecodeConfig(raw)
	if err != nil {
		return nil, err
	}
	name := e.tag
	if len(e.names) > 0 {
		name = e.names[0]
	}
	img := &Image{Name: cmp.Or(name, digest.FromBytes(raw).String()), Config: cfg, ConfigDigest: digest.FromBytes(raw), Platform: cfg.Platform()}
	if len(d.Layers) != len(cfg.RootFS.DiffIDs) {
		return nil, diag.Errorf(diag.Invalid, "%s: the archive lists %d layers, the configuration %d", img.Name, len(d.Layers), len(cfg.RootFS.DiffIDs))
	}
	if err := im.keep(ctx, img.ConfigDigest, raw); err != nil {
		return nil, err
	}
	if img.Blobs, err = a.dockerLayers(ctx, d.Layers, cfg.RootFS.DiffIDs); err != nil {
		return nil, err
	}
	img.from = named{a, d.Layers, img.Blobs}
	return img, nil
}

// dockerLayers describes the layers as blobs and checks that they stand in the order of the configuration. Names are
// changed to that order if not.
func (a *archive) dockerLayers(ctx context.Context, names []string, diffs []graph.Digest) ([]image.Descriptor, error) {
	at := map[graph.Digest]string{}
	found := map[string]graph.Digest{}
	for i, n := range names {
		n = cleanName(n)
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
func (a *archive) describeFile(ctx context.Context, name string, diff graph.Digest) (image.Descriptor, error) {
	r, size, err := a.open(name)
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
	if _, err := io.Copy(h.Hash(), &cancelable{ctx, io.NewSectionReader(r, 0, size)}); err != nil {
		return image.Descriptor{}, err
	}
	return image.Descriptor{MediaType: mediaType, Digest: h.Digest(), Size: size}, nil
}

// named provides blobs from files of other names.
type named struct {
	a     *archive
	names []string
	blobs []image.Descriptor
}

func (n named) open(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error) {
	for i, b := range n.blobs {
		if b.Digest == d.Digest {
			return openAt(ctx, n.a, n.names[i], d, offset)
		}
	}
	return nil, diag.Errorf(diag.NotFound, "the archive has no blob %s", d.Digest)
}
