package engine

import (
	"io"
	"time"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/provenance"
	"github.com/strata-build/strata/sandbox"
)

// Request is a build of a Dockerfile.
type Request struct {
	Dockerfile    string            // name in the session's directory "dockerfile", or in a remote context
	Context       string            // "" = the session's directory "context", else a git or http(s) URL
	LocalFile     bool              // the Dockerfile is in the session's directory even if the context is remote
	BuildArgs     map[string]string // --build-arg
	BuildContexts map[string]string // named contexts: docker-image://REF, oci-layout://DIR@DIGEST, local:DIR, target:STAGE, a URL
	Target        string            // "" = the last stage
	Platforms     []graph.Platform  // empty = this machine's
	NoCache       bool
	NoCacheFilter []string // stages
	Pull          bool     // ask the registry for base images that the store has
	Labels        map[string]string
	Network       graph.Network // of RUN without --network
	Allow         []string      // network.host, security.insecure, device
	ExtraHosts    []graph.HostIP
	Limits        graph.Limits // of every RUN
	Tags          []string     // names for the outputs that name images
	Outputs       []Output     // empty = the result stays in the cache
	Epoch         *time.Time   // SOURCE_DATE_EPOCH
	Squash        bool         // merge all layers above the base image into one
	Relayer       string       // divide the image into layers by components: a generator, with its options
	OutputLayers  []string     // STAGE:/dir: the stage makes its own layers there, as with OUTPUT
	VerifyOutput  bool         // run the steps that make layers again, without input, and compare
	Check         bool         // lint only
	Call          string       // build, check, outline or targets; "" = build
	Annotations   []string     // [TYPE:]NAME=VALUE
	CacheFrom     []CacheSpec  // caches elsewhere where results are looked for
	CacheTo       []CacheSpec  // caches that are written
	Provenance    *provenance.Options
	SBOM          *SBOM

	SourcePolicies []string // rules for sources: JSON, as policy.Read takes it
}

// Output asks for one export. Dest is the session's name of the destination.
type Output struct {
	Type  string // image, registry, oci, docker, local, tar, cacheonly
	Attrs map[string]string
	Dest  string
}

// Response is what a build made.
type Response struct {
	Metadata map[string]any // with BuildKit's keys
	ID       string         // the image's ID: the digest of its configuration, or of the index of several platforms
	Text     string         // what Check and Call print
	Findings int            // how many warnings Check found
}

// ImageInfo describes an image of the store.
type ImageInfo struct {
	Name      string
	ID        string // digest of the configuration of the first platform
	Digest    string // of the manifest or index, "" if none was made yet
	Updated   time.Time
	Size      int64 // bytes of the layers, uncompressed
	Platforms []ImagePlatform
}

// ImagePlatform is an image for one platform.
type ImagePlatform struct {
	Platform graph.Platform
	ID       string
	Size     int64
	Layers   []graph.Digest // diff_ids, bottom first
	Config   *image.Config

	Attestations []Attestation `json:",omitempty"`
}

// Attestation is a statement about an image.
type Attestation struct {
	PredicateType string
	Digest        graph.Digest // of the statement, a blob of the store
}

// ImportOptions say what an imported root file system becomes. Archives that are images bring all of it themselves.
type ImportOptions struct {
	Name     string
	Platform graph.Platform
	Changes  []string // Dockerfile instructions that change the configuration: `CMD ["sh"]`
	Message  string   // comment of the history row
}

// RunRequest runs a command in a container of an image; what it writes is thrown away.
type RunRequest struct {
	Image      string
	Platform   graph.Platform
	Args       []string // replace CMD
	Entrypoint []string // replaces ENTRYPOINT if it is not nil
	Env        []string
	User       string
	Cwd        string
	Hostname   string
	Network    graph.Network
	ExtraHosts []graph.HostIP
	Binds      []Bind
	Limits     graph.Limits
	ReadOnly   bool
	TTY        bool
	Stdin      io.Reader      `json:"-"`
	Stdout     io.Writer      `json:"-"`
	Stderr     io.Writer      `json:"-"`
	Resize     <-chan WinSize `json:"-"`
}

// WinSize is the size of a terminal in characters.
type WinSize = sandbox.WinSize

// Bind mounts a directory or file of the host.
type Bind struct {
	Source, Target string
	ReadOnly       bool
}

// PrunePolicy says what to remove. The zero policy removes cached results that no image needs.
type PrunePolicy struct {
	All       bool  // all cached results, images that no person has named, and cache mounts
	Mounts    bool  // cache mounts, too
	KeepBytes int64 // stop when the state is this small
	Until     time.Duration
	Filters   []string
	Match     func(UsageItem) bool `json:"-"` // only what it accepts; nil = all
	DryRun    bool
}

// Pruned is something that was removed, and why.
type Pruned struct {
	ID, Label, Reason string
	Size              int64
}

// Retained is what was not removed for one reason.
type Retained struct {
	Reason string // "needed by image docker.io/library/debian:12"
	Count  int
	Size   int64
}

// PruneReport says what Prune did.
type PruneReport struct {
	Removed []Pruned
	Kept    []Retained // largest first
}

// UsageItem is something that takes space.
type UsageItem struct {
	ID, Kind, Label string
	Owner           string // the tenant whose builds made it; "" = the engine's own user, or nobody in particular
	Size            int64
	Created, Used   time.Time
	InUse           bool
	Why             string // it is in use: "image docker.io/library/debian:12"
}

// Problem is something that Check found.
type Problem struct {
	What, Where, Err string
	Repaired         bool
}
