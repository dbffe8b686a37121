package dockerfile

import (
	"context"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// Version is that of BuildKit's Dockerfile frontend whose language this is.
const Version = "1.28.0"

// Request is what is to be built. Only Source is needed.
type Request struct {
	Source   *diag.Source // the Dockerfile
	Filename string       // path of the Dockerfile in its directory, for ReadInputs; "" = "Dockerfile"
	Ignore   *diag.Source // .dockerignore, or nil; see ReadInputs

	Target    string            // stage name or index; "" = the last stage
	BuildArgs map[string]string // with BUILDKIT_* and SOURCE_DATE_EPOCH
	Labels    map[string]string // added to the configuration

	Platforms     []graph.Platform // targets; empty = BuildPlatform, or the base image's where that is of another platform that can be run
	BuildPlatform graph.Platform   // of this machine; zero = that of this program
	Runnable      []graph.Platform // what this machine can run besides BuildPlatform
	MultiPlatform bool             // make an index even of one platform
	Squash        bool             // merge all layers above the base image into one
	Relayer       string           // divide the target's root file system into layers by components, with this generator and its options; "" = no
	OutputLayers  []string         // "STAGE:/dir[,mode=…]": an OUTPUT at the beginning of a stage
	Rerun         bool             // run the steps that make layers again, with an empty input

	NoCache       bool     // run everything
	NoCacheFilter []string // run these stages

	Context       *graph.Edge       // the build context, if it is a tree that the caller has; else ContextURL or a directory of the client
	ContextURL    string            // git or http(s) URL
	ContextSubdir string            // directory of a remote context that is the context proper
	ContextName   string            // the session's name of the client's directory; "" = "context"
	DockerfileDir string            // the session's name of the Dockerfile's directory, for ReadInputs; "" = "dockerfile"
	IgnoreSyntax  bool              // `# syntax=` and BUILDKIT_SYNTAX have been obeyed
	LocalDocker   bool              // the Dockerfile is in DockerfileDir even if the context is remote
	SharedKeys    map[string]string // by the session's name of a directory: tells the engine that two builds mean the same directory

	// Contexts replaces images and stages: by a name such as "alpine" or "build", or "alpine::linux/arm64" for one
	// platform. Values are "docker-image://REF", "oci-layout://STORE@sha256:…", "local:NAME", a git or http(s) URL,
	// "input:NAME" or "target:NAME".
	Contexts map[string]string

	Hostname     string
	Network      graph.Network // of RUN without --network
	Proxied      bool          // RUN has a proxy alone, in place of its network
	ExtraHosts   []graph.HostIP
	Devices      []graph.Device // of every RUN
	Limits       graph.Limits   // of every RUN
	ResolveMode  graph.ResolveMode
	CacheMountNS string     // namespace of cache mounts; BUILDKIT_CACHE_MOUNT_NS overrides
	Epoch        *time.Time // created times; SOURCE_DATE_EPOCH overrides
}

// Resolved is an image that a Resolver found.
type Resolved struct {
	Ref    string       // full name; "" = as asked. A resolver may answer with another image than was asked for
	Digest graph.Digest // of the manifest or index, which pins the source; "" = not pinned
	Config *image.Config
	Other  graph.Op // what is to be used instead, and is no image; nil = the image
}

// Resolver answers what a Dockerfile cannot say itself. Its methods are called concurrently.
type Resolver interface {
	// Image finds the configuration of an image for a platform. ref is full: "docker.io/library/alpine:latest".
	Image(ctx context.Context, ref string, p graph.Platform, mode graph.ResolveMode) (Resolved, error)
	// OCILayout finds the configuration of an image in an OCI layout: ref is "STORE@sha256:…" or "STORE:tag".
	OCILayout(ctx context.Context, ref string, p graph.Platform) (Resolved, error)
	// Input returns a tree that the caller passed under a name, with its configuration if it is an image.
	Input(ctx context.Context, name string) (graph.Edge, *image.Config, error)
	// ReadFile reads at most limit bytes of a file of a tree. A missing file is an error with diag.NotFound.
	ReadFile(ctx context.Context, from graph.Edge, path string, limit int64) ([]byte, error)
	// Time is when a git or http source was last changed (the commit's time, Last-Modified or the newest file of an
	// archive); zero if it cannot be told.
	Time(ctx context.Context, source graph.Edge) (time.Time, error)
}
