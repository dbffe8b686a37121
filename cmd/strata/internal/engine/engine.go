// Package engine stands in for the engine until it is committed.
package engine

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/session"
)

type Options struct {
	Root           string
	Log            *slog.Logger
	Tenant         string
	MaxParallel    int
	GCBytes        int64
	RegistryConfig string
	Runtime        string
}

type Engine struct{}

func Open(ctx context.Context, opt Options) (*Engine, error) {
	return nil, diag.Errorf(diag.Unsupported, "there is no engine yet")
}
func (e *Engine) Close() error { return nil }

type Request struct {
	Dockerfile    string
	Context       string
	BuildArgs     map[string]string
	BuildContexts map[string]string
	Target        string
	Platforms     []graph.Platform
	NoCache       bool
	NoCacheFilter []string
	Pull          bool
	Labels        map[string]string
	Network       graph.Network
	Allow         []string
	ExtraHosts    []graph.HostIP
	Limits        graph.Limits
	Tags          []string
	Outputs       []Output
	Epoch         *time.Time
	Check         bool
	Call          string
	Annotations   []string
}

type Output struct {
	Type  string
	Attrs map[string]string
	Dest  string
}

type Response struct {
	Metadata map[string]any
	ID       string
	Text     string
}

func (e *Engine) Build(ctx context.Context, req Request, s session.Session, sink event.Sink) (*Response, error) {
	return nil, nil
}

type ImageInfo struct {
	Name      string
	ID        string
	Digest    string
	Updated   time.Time
	Size      int64
	Platforms []ImagePlatform
}
type ImagePlatform struct {
	Platform graph.Platform
	ID       string
	Size     int64
	Layers   []graph.Digest
	Config   *image.Config
}

func (e *Engine) Images(ctx context.Context) ([]ImageInfo, error)                   { return nil, nil }
func (e *Engine) InspectImage(ctx context.Context, name string) (*ImageInfo, error) { return nil, nil }
func (e *Engine) RemoveImage(ctx context.Context, name string) error                { return nil }
func (e *Engine) TagImage(ctx context.Context, src, dst string) error               { return nil }
func (e *Engine) SaveImages(ctx context.Context, w io.Writer, names []string, format string) error {
	return nil
}
func (e *Engine) LoadImages(ctx context.Context, r io.Reader) ([]string, error) { return nil, nil }

type ImportOptions struct {
	Name     string
	Platform graph.Platform
	Changes  []string
	Message  string
}

func (e *Engine) ImportImage(ctx context.Context, r io.Reader, opt ImportOptions) (*ImageInfo, error) {
	return nil, nil
}
func (e *Engine) PushImage(ctx context.Context, name string, s session.Session, sink event.Sink) (string, error) {
	return "", nil
}
func (e *Engine) PullImage(ctx context.Context, name string, p []graph.Platform, s session.Session, sink event.Sink) (*ImageInfo, error) {
	return nil, nil
}

type RunRequest struct {
	Image      string
	Platform   graph.Platform
	Args       []string
	Entrypoint []string
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
	Stdin      io.Reader
	Stdout     io.Writer
	Stderr     io.Writer
	Resize     <-chan [2]uint16
}
type Bind struct {
	Source, Target string
	ReadOnly       bool
}

func (e *Engine) Run(ctx context.Context, r RunRequest, s session.Session, sink event.Sink) (int, error) {
	return 0, nil
}

type PrunePolicy struct {
	All       bool
	KeepBytes int64
	Until     time.Duration
	Filters   []string
	DryRun    bool
}
type Pruned struct {
	ID, Label, Reason string
	Size              int64
}

func (e *Engine) Prune(ctx context.Context, p PrunePolicy) ([]Pruned, error) { return nil, nil }

type UsageItem struct {
	ID, Kind, Label string
	Size            int64
	Created, Used   time.Time
	InUse           bool
}

func (e *Engine) Usage(ctx context.Context) ([]UsageItem, error) { return nil, nil }

type Problem struct {
	What, Where, Err string
	Repaired         bool
}

func (e *Engine) Check(ctx context.Context, full, repair bool) ([]Problem, error) { return nil, nil }
