package registry

import (
	"bytes"
	"cmp"
	"encoding/json"
	"mime"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/strictjson"
)

// Limits of documents, in bytes. The distribution specification names 4 MiB for manifests.
const (
	MaxManifest = 4 << 20
	MaxConfig   = 8 << 20
)

// Document is a decoded manifest or index: exactly one of the two is set.
type Document struct {
	MediaType string
	Manifest  *ocispec.Manifest
	Index     *ocispec.Index
}

var (
	manifestTypes = map[string]bool{ocispec.MediaTypeImageManifest: true, image.DockerManifest: true}
	indexTypes    = map[string]bool{ocispec.MediaTypeImageIndex: true, image.DockerManifestList: true}
)

// IsManifest and IsIndex classify a media type.
func IsManifest(mediaType string) bool { return manifestTypes[mediaType] }

// IsIndex reports whether a media type is that of an index or of Docker's manifest list.
func IsIndex(mediaType string) bool { return indexTypes[mediaType] }

// Decode parses a manifest or an index. mediaType is what the descriptor or the server said, "" if nothing; the document's
// own mediaType, if there is one, must agree; without either, its fields decide. A document that two readers could understand in two ways is refused: one
// with the fields of both kinds, with a key twice, or with a known key in other letters (which Go's decoder would take).
func Decode(data []byte, mediaType string) (*Document, error) {
	if len(data) > MaxManifest {
		return nil, diag.Errorf(diag.Exhausted, "the manifest has more than %d bytes", MaxManifest)
	}
	if err := isObject(data); err != nil {
		return nil, err
	}
	var head struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Layers        json.RawMessage `json:"layers"`
		Config        json.RawMessage `json:"config"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := manifestLimits.Unmarshal(data, &head); err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "invalid manifest: %w", err)
	}
	mediaType = plainType(mediaType)
	if head.SchemaVersion == 1 || strings.HasPrefix(mediaType, "application/vnd.docker.distribution.manifest.v1") || head.FSLayers != nil {
		return nil, diag.Errorf(diag.Unsupported, "the image has a manifest of schema 1, which was given up in 2019").
			WithHint("copy it with a tool that converts it, such as skopeo copy --format v2s2, or build it again")
	}
	switch {
	case mediaType == "" && head.MediaType == "":
		if mediaType = typeByFields(head.Manifests != nil, head.Config != nil); mediaType == "" {
			return nil, diag.Errorf(diag.Invalid, "the document is neither a manifest nor an index: it has no mediaType, config or manifests")
		}
	case mediaType == "":
		mediaType = head.MediaType
	case head.MediaType != "" && head.MediaType != mediaType:
		return nil, diag.Errorf(diag.Invalid, "the manifest says that it is %q, but was announced as %q", head.MediaType, mediaType)
	}
	if head.Manifests != nil && (head.Layers != nil || head.Config != nil) {
		return nil, diag.Errorf(diag.Invalid, "the document is both a manifest and an index")
	}
	doc := &Document{MediaType: mediaType}
	switch {
	case IsIndex(mediaType):
		if head.Manifests == nil {
			return nil, diag.Errorf(diag.Invalid, "the index has no manifests, although its type is %q", mediaType)
		}
		doc.Index = &ocispec.Index{}
		return doc, decodeInto(data, doc.Index)
	case IsManifest(mediaType):
		if head.Config == nil {
			return nil, diag.Errorf(diag.Invalid, "the manifest has no config, although its type is %q", mediaType)
		}
		doc.Manifest = &ocispec.Manifest{}
		return doc, decodeInto(data, doc.Manifest)
	}
	return nil, diag.Errorf(diag.Unsupported, "%q is no image manifest", mediaType)
}

// typeByFields returns the OCI type of a document that nobody gave one: the specification only recommends the field, and
// umoci and older versions of skopeo and buildah leave it out. "" is a document that is neither.
func typeByFields(manifests, config bool) string {
	switch {
	case manifests:
		return ocispec.MediaTypeImageIndex
	case config:
		return ocispec.MediaTypeImageManifest
	}
	return ""
}

// IsConfig reports whether a media type is that of an image's configuration, or says nothing: old builders wrote
// application/octet-stream, and then the content decides.
func IsConfig(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageConfig || mediaType == image.DockerConfig || plainType(mediaType) == ""
}

// decodeInto decodes and checks every descriptor that will be used as a name.
func decodeInto(data []byte, v any) error {
	if err := manifestLimits.Unmarshal(data, v); err != nil {
		return diag.Errorf(diag.KindOf(err), "invalid manifest: %w", err)
	}
	var all []ocispec.Descriptor
	switch v := v.(type) {
	case *ocispec.Index:
		all = v.Manifests
	case *ocispec.Manifest:
		all = append(append(all, v.Config), v.Layers...)
	}
	for _, d := range all {
		if err := d.Digest.Validate(); err != nil {
			return diag.Errorf(diag.Invalid, "the manifest names an invalid digest %q: %w", d.Digest, err)
		}
		if d.Size < 0 {
			return diag.Errorf(diag.Invalid, "the manifest gives %s a negative size", d.Digest)
		}
		if d.MediaType == "" {
			return diag.Errorf(diag.Invalid, "the manifest gives %s no mediaType", d.Digest)
		}
	}
	return nil
}

// DecodeConfig parses an image configuration with the same care for its keys, and keeps the bytes in Extra.
func DecodeConfig(data []byte) (*image.Config, error) {
	if len(data) > MaxConfig {
		return nil, diag.Errorf(diag.Exhausted, "the image configuration has more than %d bytes", MaxConfig)
	}
	if err := isObject(data); err != nil {
		return nil, err
	}
	var c image.Config
	if err := configLimits.Unmarshal(data, &c); err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "invalid image configuration: %w", err)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return nil, diag.Errorf(diag.Invalid, "the image configuration names an invalid diff_id %q: %w", d, err)
		}
	}
	c.Extra = bytes.Clone(data)
	return &c, nil
}

// isObject refuses null and lists, of which a decoder would make an empty document or a confusing error.
func isObject(data []byte) error {
	if start := bytes.TrimLeft(data, " \t\r\n"); len(start) == 0 || start[0] != '{' {
		return diag.Errorf(diag.Invalid, "not a JSON object")
	}
	return nil
}

// plainType drops parameters and the types that say nothing.
func plainType(s string) string {
	t, _, err := mime.ParseMediaType(s)
	if err != nil {
		t = strings.TrimSpace(s)
	}
	switch t {
	case "application/json", "application/octet-stream", "text/plain", "binary/octet-stream":
		return ""
	}
	return t
}

// Limits of the two documents. A manifest with a value in twenty bytes has the most that MaxManifest has room for.
var (
	manifestLimits = strictjson.Limits{Bytes: MaxManifest, Keys: strictjson.NewKeys(
		"schemaVersion mediaType artifactType config layers manifests subject digest size urls data platform annotations architecture os os.version os.features variant",
		"annotations",
	)}
	configLimits = strictjson.Limits{Bytes: MaxConfig, Keys: strictjson.NewKeys(
		"architecture os os.version os.features variant rootfs diff_ids history created_by empty_layer",
		"Labels Volumes ExposedPorts annotations config container_config",
	)}
)

// ArtifactType is the type of a manifest that is not an image's: a chart, a signature, a module. "" is an image.
// Source: image-spec, "Guidelines for Artifact Usage".
func ArtifactType(m *ocispec.Manifest) string {
	if IsConfig(m.Config.MediaType) {
		return ""
	}
	return cmp.Or(m.ArtifactType, m.Config.MediaType)
}
