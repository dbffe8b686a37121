package export

import (
	"context"

	"github.com/strata-build/strata/archive"
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
	return archived{x.imageOptions, x.tar, x.dest, x.files}.export(ctx, e, set)
}

func (x *Docker) files(sets []archive.Set) ([]archive.Output, error) {
	if x.legacy {
		return archive.LegacyFiles(sets)
	}
	return archive.DockerFiles(sets)
}
