package export

import (
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
)

// Layers that are not distributable: a registry holds their descriptors only, which say where the maker keeps the bytes.
// Source: image-spec layer.md, "Non-Distributable Layers"; distribution's manifest v2 schema 2, foreign layers.

// nondist reports whether a layer's media type forbids its distribution.
func nondist(mediaType string) bool {
	switch mediaType {
	case image.NondistLayer, image.NondistLayerGzip, image.NondistLayerZstd, image.DockerForeignLayer, image.DockerForeignGzip:
		return true
	}
	return false
}

// nondistType returns the OCI media type of such a layer.
func nondistType(mediaType string) string {
	switch typeOf(mediaType) {
	case layer.Uncompressed:
		return image.NondistLayer
	case layer.Zstd:
		return image.NondistLayerZstd
	}
	return image.NondistLayerGzip
}

// distributed returns the descriptor of a layer as an output's manifest has it. Docker knows no foreign layer in zstd.
func (o *packing) distributed(d image.Descriptor) image.Descriptor {
	if !nondist(d.MediaType) {
		d.MediaType = layerType(o.oci, d.MediaType)
		return d
	}
	if o.oci || d.MediaType == image.NondistLayerZstd {
		return d
	}
	d.MediaType = pick(d.MediaType == image.NondistLayer, image.DockerForeignLayer, image.DockerForeignGzip)
	return d
}
