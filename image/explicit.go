package image

import (
	"encoding/json"
	"time"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/strictjson"
)

// The files of an OUTPUT directory, by which a build makes its own layers (docs/explicit-layers.md).

// OutputAPI is api.json: what the build may know of the image that it makes.
type OutputAPI struct {
	APIVersion      int             `json:"apiVersion"` // 1
	Platform        OutputPlatform  `json:"platform"`
	SourceDateEpoch *int64          `json:"sourceDateEpoch,omitempty"` // seconds
	MaxLayers       int             `json:"maxLayers"`
	Mode            graph.LayerMode `json:"mode"`
	Base            *OutputBase     `json:"base,omitempty"` // absent for scratch and for a stage
}

// OutputPlatform has OCI's names.
type OutputPlatform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

// OutputBase is the image that the stage began with.
type OutputBase struct {
	Name   string       `json:"name"`
	Digest graph.Digest `json:"digest,omitempty"`
}

// KnownLayer is a row of history.json: a layer that need not be made again.
type KnownLayer struct {
	Name      string       `json:"name,omitempty"`
	Key       string       `json:"key,omitempty"`
	Digest    graph.Digest `json:"digest"`  // of the blob; the diff_id if there is no blob
	DiffID    graph.Digest `json:"diff_id"` // of the uncompressed tar
	Size      int64        `json:"size"`    // of the blob; 0 if it is not known
	MediaType string       `json:"mediaType"`
	From      string       `json:"from"`    // "previous" or "base"
	Present   bool         `json:"present"` // the blob is below input/blobs
}

// OutputImage is image.json: the layers of the image, bottom first.
type OutputImage struct {
	Layers      []OutputLayer     `json:"layers"`
	Config      json.RawMessage   `json:"config,omitempty"` // an OCI configuration, or only its "config" object
	Annotations map[string]string `json:"annotations,omitempty"`
}

// OutputLayer is one layer: exactly one of Digest, Input, Tar and Dir is set.
type OutputLayer struct {
	Digest graph.Digest `json:"digest,omitempty"` // a file of output/blobs
	Input  graph.Digest `json:"input,omitempty"`  // digest or diff_id of a known layer
	Tar    string       `json:"tar,omitempty"`    // path of a tar, compressed or not
	Dir    string       `json:"dir,omitempty"`    // path of a directory

	Prefix      string            `json:"prefix,omitempty"` // where the files of Dir go
	DiffID      graph.Digest      `json:"diff_id,omitempty"`
	MediaType   string            `json:"mediaType,omitempty"`
	Name        string            `json:"name,omitempty"`
	Key         string            `json:"key,omitempty"` // the build's own mark, such as a hash of what the layer is made from
	History     *History          `json:"history,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"` // of the layer's descriptor
}

// Sealed is what a build that made its own layers says of the image: the file image.json of the second output of a
// graph.Layers vertex.
type Sealed struct {
	Layers      []SealedLayer     `json:"layers"` // those of the build, bottom first
	Config      *Config           `json:"config,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// SealedLayer is a layer that was verified. Digest is the diff_id if the layer has no blob of its own.
type SealedLayer struct {
	Name        string            `json:"name,omitempty"`
	Key         string            `json:"key,omitempty"`
	Digest      graph.Digest      `json:"digest"`
	DiffID      graph.Digest      `json:"diff_id"`
	MediaType   string            `json:"mediaType,omitempty"`
	Size        int64             `json:"size"`
	History     History           `json:"history"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// SealedPath is where the record is in its tree; it has at most MaxSealed bytes.
const (
	SealedPath = "/image.json"
	MaxSealed  = 8 << 20
)

// LayersAnnotation is the annotation of a manifest that keeps the names, keys and annotations that a build gave to layers:
// JSON, a list of LayerName, bottom first.
const LayersAnnotation = "dev.strata.layers"

// LayerName is what a build calls a layer.
type LayerName struct {
	DiffID      graph.Digest      `json:"diff_id"`
	Name        string            `json:"name,omitempty"`
	Key         string            `json:"key,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Names describes the layers that have a name, a key or annotations, as LayersAnnotation keeps them.
func (s *Sealed) Names() []LayerName {
	var out []LayerName
	for _, l := range s.Layers {
		if l.Name != "" || l.Key != "" || len(l.Annotations) > 0 {
			out = append(out, LayerName{l.DiffID, l.Name, l.Key, l.Annotations})
		}
	}
	return out
}

// ParseLayerNames reads LayersAnnotation. What cannot be read is nothing: annotations are anybody's.
func ParseLayerNames(annotations map[string]string) map[graph.Digest]LayerName {
	var list []LayerName
	if strictjson.Unmarshal([]byte(annotations[LayersAnnotation]), &list) != nil {
		return nil
	}
	out := map[graph.Digest]LayerName{}
	for _, n := range list {
		out[n.DiffID] = n
	}
	return out
}

// Apply puts a configuration that a build gave over c: variables, labels, ports and volumes one by one, everything else as a
// whole where it is set.
func (c *Config) Apply(over *Config) {
	if over == nil {
		return
	}
	set := func(to *string, v string) {
		if v != "" {
			*to = v
		}
	}
	set(&c.Author, over.Author)
	if over.Created != nil {
		c.Created = over.Created
	}
	r, o := &c.Config, &over.Config
	set(&r.User, o.User)
	set(&r.WorkingDir, o.WorkingDir)
	set(&r.StopSignal, o.StopSignal)
	r.Env = MergeEnv(r.Env, o.Env)
	r.ExposedPorts = mergeMap(r.ExposedPorts, o.ExposedPorts)
	r.Volumes = mergeMap(r.Volumes, o.Volumes)
	r.Labels = mergeMap(r.Labels, o.Labels)
	if o.Entrypoint != nil {
		r.Entrypoint, r.Cmd = o.Entrypoint, nil
	}
	for _, l := range []struct {
		to *[]string
		v  []string
	}{{&r.Cmd, o.Cmd}, {&r.OnBuild, o.OnBuild}, {&r.Shell, o.Shell}} {
		if l.v != nil {
			*l.to = l.v
		}
	}
	if o.Healthcheck != nil {
		r.Healthcheck = o.Healthcheck
	}
	r.ArgsEscaped = r.ArgsEscaped || o.ArgsEscaped
}

func mergeMap[V any](a, b map[string]V) map[string]V {
	if len(b) == 0 {
		return a
	}
	out := make(map[string]V, len(a)+len(b))
	for _, m := range []map[string]V{a, b} {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

// MergeEnv adds variables, NAME=VALUE, to others; a later value takes the place of an earlier one of the name.
func MergeEnv(a, b []string) []string {
	out := append([]string(nil), a...)
	for _, kv := range b {
		out = setEnv(out, kv)
	}
	return out
}

func setEnv(env []string, kv string) []string {
	for i, old := range env {
		if name(old) == name(kv) {
			env[i] = kv
			return env
		}
	}
	return append(env, kv)
}

func name(kv string) string {
	for i := range len(kv) {
		if kv[i] == '=' {
			return kv[:i]
		}
	}
	return kv
}

// NewHistory returns the row of a layer: what the build gave, with a text if it gave none.
func NewHistory(h *History, text string, created *time.Time) History {
	var out History
	if h != nil {
		out = *h
	}
	if out.CreatedBy == "" {
		out.CreatedBy = text
	}
	if out.Created == nil {
		out.Created = created
	}
	out.EmptyLayer = false
	return out
}

// Seal gives a target what a build that made its own layers says of the image; s may be nil.
func (t *Target) Seal(s *Sealed) {
	if s == nil {
		return
	}
	t.Annotations = mergeMap(t.Annotations, s.Annotations)
	if names := s.Names(); len(names) > 0 {
		t.Annotations = mergeMap(t.Annotations, map[string]string{LayersAnnotation: string(graph.Canonical(names))})
	}
}
