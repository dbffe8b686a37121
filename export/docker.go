package export

import (
	"context"
	"encoding/json"
	"runtime"

	"github.com/distribution/reference"

	"github.com/strata-build/strata/layer"
)

// Docker writes an archive for docker load. The default form is that of Docker 25 and later: an OCI layout with
// uncompressed layers and a manifest.json that names the same files. The legacy form loads everywhere since Docker 1.0.
type Docker struct {
	imageOptions
	legacy bool
	tar    bool
	dest   string
}

// NewDocker reads the attributes of type=docker.
func NewDocker(o Output) (*Docker, error) {
	a := newAttrs(o)
	x := &Docker{imageOptions: a.image(), legacy: a.flag("legacy", false), tar: a.flag("tar", true), dest: o.Dest}
	x.uncompress()
	return x, a.done()
}

// Loaders unpack the archive at once: compressed layers only cost time, so they have to be asked for.
func (x *Docker) uncompress() {
	if !x.Chosen || x.legacy {
		x.Compression, x.Force = layer.Compression{Type: layer.Uncompressed}, true
	}
}

// Name implements Exporter.
func (x *Docker) Name() string { return "exporting to docker image format" }

// Export implements Exporter.
func (x *Docker) Export(ctx context.Context, e *Env, set *Set) (*Receipt, error) {
	x2 := *x
	if err := x2.nameFrom(set); err != nil {
		return nil, err
	}
	p, err := e.pack(ctx, set, x2.packing())
	if err != nil {
		return nil, err
	}
	files, err := x2.files([]named{{p, x2.Names}})
	if err != nil {
		return nil, err
	}
	if err := e.deliver(ctx, x.dest, x.tar, files); err != nil {
		return nil, err
	}
	return receipt(x2.Names, p)
}

func (x *Docker) packing() packing {
	return packing{imageOptions: x.imageOptions, oci: x.OCI == nil || *x.OCI}
}

// named is a packed set and the names that an archive gives it.
type named struct {
	*packed
	names []string
}

// archived is an entry of manifest.json.
type archived struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (x *Docker) files(sets []named) ([]file, error) {
	if x.legacy {
		return legacyFiles(sets)
	}
	var entries []archived
	for _, s := range sets {
		im := s.local()
		a := archived{Config: blobPath(im.config), RepoTags: familiar(s.names), Layers: []string{}}
		for _, l := range im.layers {
			a.Layers = append(a.Layers, blobPath(l))
		}
		entries = append(entries, a)
	}
	files, err := ociFiles(sets)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(entries)
	return append(files, textFile("manifest.json", raw)), err
}

// local picks the image that manifest.json, which knows no platforms, names: this machine's, or the first.
func (p *packed) local() *packedImage {
	for i := range p.images {
		if pl := p.images[i].platform; pl.OS == "linux" && pl.Architecture == runtime.GOARCH {
			return &p.images[i]
		}
	}
	return &p.images[0]
}

// familiar shortens names as Docker does: app:1 for docker.io/library/app:1.
func familiar(names []string) []string {
	out := []string{}
	for _, n := range names {
		if r, err := reference.ParseNormalizedNamed(n); err == nil {
			n = reference.FamiliarString(r)
		}
		out = append(out, n)
	}
	return out
}
