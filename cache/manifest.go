package cache

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/image"
)

// manifestForm says how a cache is written down: as an image manifest whose configuration it is, or as an index that lists it
// beside the layers.
type manifestForm struct{ oci, image bool }

func newManifestForm(s Spec) (manifestForm, error) {
	f := manifestForm{oci: true, image: true}
	var err error
	if f.oci, err = flag(s, "oci-mediatypes", true); err == nil {
		f.image, err = flag(s, "image-manifest", f.oci)
	}
	if err == nil && f.image && !f.oci {
		err = diag.Errorf(diag.Invalid, "invalid configuration for remote cache, OCI mediatypes are required for image-manifest cache format")
	}
	return f, err
}

// flag reads a truth value.
func flag(s Spec, key string, def bool) (bool, error) {
	v, ok := s.Attrs[key]
	if !ok {
		return def, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return def, diag.Errorf(diag.Invalid, "cache of type %s: failed to parse %s: %s is neither true nor false", s.Type, key, v)
	}
	return b, nil
}

// manifest is a cache's documents.
type manifest struct {
	form      manifestForm
	config    image.Descriptor
	configRaw []byte
	desc      image.Descriptor
	raw       []byte
}

// make writes the documents.
func (f manifestForm) make(c *Config, layers []Layer) (*manifest, error) {
	m := &manifest{form: f}
	var err error
	if m.configRaw, err = json.Marshal(c); err != nil {
		return nil, err
	}
	m.config = image.Descriptor{MediaType: ConfigType, Digest: digest.FromBytes(m.configRaw), Size: int64(len(m.configRaw))}
	descs := make([]image.Descriptor, len(layers))
	for i := range layers {
		descs[i] = layers[i].described()
		if !f.oci {
			descs[i].MediaType = dockerType(descs[i].MediaType)
		}
	}
	var doc any
	v := specs.Versioned{SchemaVersion: 2}
	switch {
	case f.image:
		m.desc.MediaType = ocispec.MediaTypeImageManifest
		doc = ocispec.Manifest{Versioned: v, MediaType: m.desc.MediaType, Config: m.config, Layers: descs}
	case f.oci:
		m.desc.MediaType = ocispec.MediaTypeImageIndex
		doc = ocispec.Index{Versioned: v, MediaType: m.desc.MediaType, Manifests: append(descs, m.config)}
	default:
		m.desc.MediaType = image.DockerManifestList
		doc = ocispec.Index{Versioned: v, MediaType: m.desc.MediaType, Manifests: append(descs, m.config)}
	}
	if m.raw, err = json.Marshal(doc); err != nil {
		return nil, err
	}
	m.desc.Digest, m.desc.Size = digest.FromBytes(m.raw), int64(len(m.raw))
	return m, nil
}

func dockerType(t string) string {
	switch t {
	case ocispec.MediaTypeImageLayer:
		return image.DockerLayer
	case ocispec.MediaTypeImageLayerGzip:
		return image.DockerLayerGzip
	case ocispec.MediaTypeImageLayerZstd:
		return image.DockerLayerZstd
	}
	return t
}

// title is how progress names the writing of the manifest.
func (m *manifest) title() string {
	if m.form.image {
		return fmt.Sprintf("writing cache image manifest %s", m.desc.Digest)
	}
	return fmt.Sprintf("writing cache manifest %s", m.desc.Digest)
}

// said is the answer to the client, with BuildKit's key.
func (m *manifest) said() (map[string]string, error) {
	raw, err := json.Marshal(m.desc)
	return map[string]string{"cache.manifest": string(raw)}, err
}
