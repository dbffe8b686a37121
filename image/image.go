// Package image holds image configurations, manifests and what a build hands to an exporter. Values only, no I/O.
//
// A [Config] is the OCI image configuration with Docker's additions (health check, ONBUILD triggers, shell). A [Set] is
// a built result: one [Image] per platform, each with its layers bottom first.
package image

import (
	"encoding/json"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// Media types that the OCI package does not name.
const (
	DockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig       = "application/vnd.docker.container.image.v1+json"
	DockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	DockerLayerGzip    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	DockerLayerZstd    = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	DockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	DockerForeignGzip  = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	NondistLayer       = "application/vnd.oci.image.layer.nondistributable.v1.tar"
	NondistLayerGzip   = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
	NondistLayerZstd   = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
	DockerSchema1      = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// Descriptor is the OCI content descriptor.
type Descriptor = ocispec.Descriptor

// Config is the image configuration, in the JSON form of the OCI image specification and Docker's additions to it.
// Source: image-spec config.md; moby docker-image-spec v1.3.
type Config struct {
	Created      *time.Time      `json:"created,omitempty"`
	Author       string          `json:"author,omitempty"`
	Architecture string          `json:"architecture"`
	OS           string          `json:"os"`
	OSVersion    string          `json:"os.version,omitempty"`
	OSFeatures   []string        `json:"os.features,omitempty"`
	Variant      string          `json:"variant,omitempty"`
	Config       RunConfig       `json:"config"`
	RootFS       RootFS          `json:"rootfs"`
	History      []History       `json:"history,omitempty"`
	Extra        json.RawMessage `json:"-"` // the document as it was read, kept so that unknown fields survive a copy
}

// MaxLayers is how many layers an image may have so that every runtime can load it: dockerd refuses 126 with "max depth
// exceeded".
const MaxLayers = 125

// RunConfig is how a container of the image runs.
type RunConfig struct {
	User         string              `json:"User,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	Volumes      map[string]struct{} `json:"Volumes,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	Labels       map[string]string   `json:"Labels,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
	ArgsEscaped  bool                `json:"ArgsEscaped,omitempty"`
	Healthcheck  *Healthcheck        `json:"Healthcheck,omitempty"`
	OnBuild      []string            `json:"OnBuild,omitempty"`
	Shell        []string            `json:"Shell,omitempty"`
}

// Healthcheck is Docker's health check. Test is {"NONE"}, {"CMD", args…} or {"CMD-SHELL", line}; durations are in
// nanoseconds.
type Healthcheck struct {
	Test          []string      `json:"Test,omitempty"`
	Interval      time.Duration `json:"Interval,omitempty"`
	Timeout       time.Duration `json:"Timeout,omitempty"`
	StartPeriod   time.Duration `json:"StartPeriod,omitempty"`
	StartInterval time.Duration `json:"StartInterval,omitempty"`
	Retries       int           `json:"Retries,omitempty"`
}

// RootFS lists the diff_ids, bottom first.
type RootFS struct {
	Type    string          `json:"type"`
	DiffIDs []digest.Digest `json:"diff_ids"`
}

// History is one row of an image's history.
type History struct {
	Created    *time.Time `json:"created,omitempty"`
	CreatedBy  string     `json:"created_by,omitempty"`
	Author     string     `json:"author,omitempty"`
	Comment    string     `json:"comment,omitempty"`
	EmptyLayer bool       `json:"empty_layer,omitempty"`
}

// Platform returns the platform that the configuration names.
func (c *Config) Platform() graph.Platform {
	return graph.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant, OSVersion: c.OSVersion, OSFeatures: c.OSFeatures}
}

// Clone returns a deep copy.
func (c *Config) Clone() *Config {
	b, err := json.Marshal(c)
	if err != nil {
		panic("image: a configuration has no JSON: " + err.Error())
	}
	var d Config
	if err := json.Unmarshal(b, &d); err != nil {
		panic("image: a configuration does not survive JSON: " + err.Error())
	}
	return &d
}

// Target is what a build makes for one platform: a tree and the configuration of the image around it. The history has a
// row for every instruction; those that are not empty stand in the order of the tree's layers.
type Target struct {
	ID       string // "linux/amd64"
	Root     graph.Edge
	Platform graph.Platform
	Config   *Config // RootFS is filled in when the layers are known
	Base     *Base
	Epoch    *time.Time        // SOURCE_DATE_EPOCH; an exporter's own goes before it
	Metadata map[string]string // for exporters and clients, such as the base image's name

	Annotations  map[string]string     // of the manifest; LayersAnnotation describes the layers
	Attestations []Attestation         // that the frontend made
	Scan         map[string]graph.Edge // trees that a bill of materials lists besides Root, by name
}

// Base names the image that a target is built on, for provenance and annotations.
type Base struct {
	Name   string
	Digest digest.Digest
}

// Plan is what a frontend makes of a request: one target per platform.
type Plan struct {
	Targets  []Target
	Read     []graph.Edge // what was read to make it: the Dockerfile, images that were looked at
	Warnings []diag.Warning
}
