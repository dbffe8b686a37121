package source

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/archive"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/session"
)

// Format is a way to keep images in files.
type Format = archive.Format

// The formats that Import knows.
const (
	FormatAuto   = archive.FormatAuto
	FormatOCI    = archive.FormatOCI
	FormatDocker = archive.FormatDocker
	FormatDir    = archive.FormatDir
	FormatRootFS = archive.FormatRootFS
)

// blobs is an archive, or a docker image of it, as a provider.
type blobs struct {
	from interface {
		Blob(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error)
	}
	client session.Client // whose file it is
}

func (b blobs) place() string { return clientPlace(b.client) }

func (b blobs) open(ctx context.Context, d image.Descriptor, offset int64) (io.ReadCloser, error) {
	return b.from.Blob(ctx, d, offset)
}

// archived reads one image of an archive for a platform.
func (im *Images) archived(ctx context.Context, a *archive.Archive, e archive.Entry, p graph.Platform) (*Image, error) {
	if e.Docker != nil {
		return im.dockerImage(ctx, a, e)
	}
	name := e.Tag
	if len(e.Names) > 0 {
		name = e.Names[0]
	}
	if name == "" {
		name = e.Desc.Digest.String()
	}
	b := blobs{a, im.env.Client}
	read := func(d image.Descriptor) ([]byte, error) {
		raw, err := a.Document(d)
		if err != nil {
			return nil, err
		}
		return raw, im.keep(ctx, d.Digest, raw)
	}
	img, err := im.describe(ctx, &Image{Name: name, Digest: e.Desc.Digest, from: b}, *e.Desc, describing{p, read})
	if err == nil {
		unshuffle(img)
	}
	return img, err
}

// dockerImage reads an image of docker save. Its platform is the configuration's.
func (im *Images) dockerImage(ctx context.Context, a *archive.Archive, e archive.Entry) (*Image, error) {
	c, err := a.ReadDocker(ctx, e)
	if err != nil {
		return nil, err
	}
	img := &Image{Name: c.Name, Config: c.Config, ConfigDigest: digest.FromBytes(c.Raw), Platform: c.Config.Platform(), Blobs: c.Blobs, from: blobs{c, im.env.Client}}
	return img, im.keep(ctx, img.ConfigDigest, c.Raw)
}

// unshuffle puts layers that docker 25.0.0 wrote in a random order into that of the configuration. The manifest is then no longer that of the image.
func unshuffle(img *Image) {
	if sorted := archive.Unshuffle(img.Blobs, img.Config.RootFS.DiffIDs); sorted != nil {
		img.Blobs, img.Manifest, img.Index, img.Digest = sorted, nil, nil, ""
	}
}
