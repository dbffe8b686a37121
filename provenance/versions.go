package provenance

import (
	"maps"
	"strconv"
	"time"

	"github.com/strata-build/strata/graph"
)

func output(id string, n int) string { return id + ":" + strconv.Itoa(n) }

// predicateV1 is https://slsa.dev/provenance/v1.
type predicateV1 struct {
	BuildDefinition struct {
		BuildType            string         `json:"buildType"`
		ExternalParameters   *request       `json:"externalParameters"`
		InternalParameters   map[string]any `json:"internalParameters"`
		ResolvedDependencies []material     `json:"resolvedDependencies,omitempty"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder  builder    `json:"builder"`
		Metadata metadataV1 `json:"metadata"`
	} `json:"runDetails"`
}

type builder struct {
	ID string `json:"id"`
}

type metadataV1 struct {
	InvocationID string    `json:"invocationId,omitempty"`
	StartedOn    time.Time `json:"startedOn"`
	FinishedOn   time.Time `json:"finishedOn"`
	BuildKit     metadata  `json:"buildkit_metadata"`
	Hermetic     bool      `json:"buildkit_hermetic,omitempty"`
	Completeness struct {
		Request      bool `json:"request"`
		Dependencies bool `json:"resolvedDependencies"`
	} `json:"buildkit_completeness"`
	Reproducible bool `json:"buildkit_reproducible,omitempty"`
}

func (b *Build) v1(f *facts, ended time.Time) *predicateV1 {
	p := &predicateV1{}
	d := &p.BuildDefinition
	d.BuildType, d.ExternalParameters, d.ResolvedDependencies = buildTypeV1, f.request, f.materials
	d.InternalParameters = maps.Clone(b.Env)
	if d.InternalParameters == nil {
		d.InternalParameters = map[string]any{}
	}
	if f.config != nil {
		d.InternalParameters["buildConfig"] = f.config
	}
	d.InternalParameters["builderPlatform"] = plain(b.Builder)
	d.InternalParameters["targetPlatform"] = graph.FormatPlatform(b.Target)
	if b.Language != "" {
		d.InternalParameters["dockerfileVersion"] = b.Language
	}
	p.RunDetails.Builder.ID = b.BuilderID
	m := &p.RunDetails.Metadata
	m.InvocationID, m.StartedOn, m.FinishedOn = b.ID, b.Started.UTC(), ended.UTC()
	m.BuildKit, m.Hermetic, m.Reproducible = f.metadata, f.hermetic, b.Reproducible
	m.Completeness.Request, m.Completeness.Dependencies = f.whole, f.complete
	return p
}

// plain names a platform without the version of its system.
func plain(p graph.Platform) string {
	p.OSVersion, p.OSFeatures = "", nil
	return graph.FormatPlatform(graph.NormalizePlatform(p))
}

// predicateV02 is https://slsa.dev/provenance/v0.2.
type predicateV02 struct {
	Builder    builder `json:"builder"`
	BuildType  string  `json:"buildType"`
	Invocation struct {
		ConfigSource struct {
			URI        string            `json:"uri,omitempty"`
			Digest     map[string]string `json:"digest,omitempty"`
			EntryPoint string            `json:"entryPoint,omitempty"`
		} `json:"configSource"`
		Parameters  *parameters    `json:"parameters"`
		Environment map[string]any `json:"environment"`
	} `json:"invocation"`
	BuildConfig *buildConfig `json:"buildConfig,omitempty"`
	Metadata    metadataV02  `json:"metadata"`
	Materials   []material   `json:"materials,omitempty"`
}

type metadataV02 struct {
	ID           string    `json:"buildInvocationID,omitempty"`
	StartedOn    time.Time `json:"buildStartedOn"`
	FinishedOn   time.Time `json:"buildFinishedOn"`
	Completeness struct {
		Parameters  bool `json:"parameters"`
		Environment bool `json:"environment"`
		Materials   bool `json:"materials"`
	} `json:"completeness"`
	Reproducible bool     `json:"reproducible"`
	BuildKit     metadata `json:"https://mobyproject.org/buildkit@v1#metadata"`
	Hermetic     bool     `json:"https://mobyproject.org/buildkit@v1#hermetic,omitempty"`
}

func (b *Build) v02(f *facts, ended time.Time) *predicateV02 {
	p := &predicateV02{BuildType: buildTypeV02, BuildConfig: f.config, Materials: f.materials}
	p.Builder.ID = b.BuilderID
	c := &p.Invocation.ConfigSource
	c.URI, c.Digest, c.EntryPoint = f.request.ConfigSource.URI, f.request.ConfigSource.Digest, f.request.ConfigSource.Path
	p.Invocation.Parameters = f.request.Request
	env := maps.Clone(b.Env)
	if env == nil {
		env = map[string]any{}
	}
	env["platform"] = plain(b.Builder)
	if b.Language != "" {
		env["dockerfileVersion"] = b.Language
	}
	p.Invocation.Environment = env
	m := &p.Metadata
	m.ID, m.StartedOn, m.FinishedOn, m.Reproducible, m.Hermetic, m.BuildKit = b.ID, b.Started.UTC(), ended.UTC(), b.Reproducible, f.hermetic, f.metadata
	m.Completeness.Parameters, m.Completeness.Environment, m.Completeness.Materials = f.whole, true, f.complete
	return p
}
