package archive

import (
	"bytes"
	"encoding/json"
	"path"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/strictjson"
)

// v1Image is the json of one layer in the first form of docker save. Source: docker image-spec v1.0.
type v1Image struct {
	ID           string           `json:"id"`
	Parent       string           `json:"parent,omitempty"`
	Created      time.Time        `json:"created"`
	Config       *image.RunConfig `json:"config,omitempty"`
	Architecture string           `json:"architecture,omitempty"`
	OS           string           `json:"os,omitempty"`
}

// LegacyFiles lists an archive of both old forms: a linked list of <id>/{VERSION,json,layer.tar} with repositories, for
// Docker up to 1.9, and manifest.json with the configurations, for all others. A repeated layer is a symlink.
func LegacyFiles(sets []Set) ([]Output, error) {
	l := &legacy{seen: map[string]bool{}, tars: map[graph.Digest]string{}, repos: map[string]map[string]string{}}
	for _, s := range sets {
		if len(s.Images) > 1 {
			return nil, diag.Errorf(diag.Unsupported, "a legacy docker archive holds one platform only").WithHint("drop legacy=1, or use type=oci")
		}
		if err := l.image(&s.Images[0], s.Names); err != nil {
			return nil, err
		}
	}
	for name, v := range map[string]any{"manifest.json": l.entries, "repositories": l.repos} {
		raw, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		l.add(textFile(name, raw))
	}
	return l.files, nil
}

type legacy struct {
	files   []Output
	seen    map[string]bool
	tars    map[graph.Digest]string // the path of each tar
	entries []archived
	repos   map[string]map[string]string
}

func (l *legacy) add(f Output) {
	if !l.seen[f.Name] {
		l.seen[f.Name] = true
		l.files = append(l.files, f)
	}
}

func (l *legacy) image(im *Image, names []string) error {
	conf := im.Config.Digest.Encoded() + ".json"
	l.add(Output{Name: conf, Blob: im.Config})
	entry := archived{Config: conf, RepoTags: familiar(names), Layers: []string{}}
	layers := im.Layers
	if len(layers) == 0 { // the old form has no image without a layer
		layers = []Blob{Bytes(image.DockerLayer, bytes.Repeat([]byte{0}, 1024))}
	}
	var c image.Config
	if err := strictjson.Unmarshal(im.Config.Data, &c); err != nil {
		return err
	}
	top := ""
	for i, x := range layers {
		v := v1Image{Parent: top, Architecture: c.Architecture, OS: c.OS, Created: time.Unix(0, 0).UTC()}
		seed := top + "\n" + x.Digest.String()
		if i == len(layers)-1 {
			v.Config = &c.Config
			if c.Created != nil {
				v.Created = *c.Created
			}
			seed += "\n" + im.Config.Digest.String()
		}
		v.ID = digest.FromString(seed).Encoded()
		top = v.ID
		if err := l.layer(v, x); err != nil {
			return err
		}
		if len(im.Layers) > 0 {
			entry.Layers = append(entry.Layers, path.Join(v.ID, "layer.tar"))
		}
	}
	l.entries = append(l.entries, entry)
	for _, n := range entry.RepoTags {
		at := strings.LastIndexByte(n, ':')
		if at < 0 {
			continue
		}
		if l.repos[n[:at]] == nil {
			l.repos[n[:at]] = map[string]string{}
		}
		l.repos[n[:at]][n[at+1:]] = top
	}
	return nil
}

func (l *legacy) layer(v v1Image, x Blob) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	l.add(textFile(path.Join(v.ID, "VERSION"), []byte("1.0")))
	l.add(textFile(path.Join(v.ID, "json"), raw))
	f := Output{Name: path.Join(v.ID, "layer.tar"), Blob: x}
	if first := l.tars[x.Digest]; first == "" {
		l.tars[x.Digest] = f.Name
	} else if first != f.Name {
		f.Link = path.Join("..", first)
	}
	l.add(f)
	return nil
}
