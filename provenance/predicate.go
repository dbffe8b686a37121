package provenance

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// Build is a build of which the provenance is told.
type Build struct {
	Options
	Request       *Request // nil: the client made the steps itself
	Sources       *Sources
	Definition    *pb.Definition // the steps, for Max; nil if BuildKit has no form for them
	ID            string         // of this build, unlike any other's
	Started       time.Time
	Builder       graph.Platform // of this machine
	Target        graph.Platform
	Language      string         // version of the Dockerfile language, if it was a Dockerfile
	Env           map[string]any // what the operator tells about the builder
	Compatibility int
}

// Layers are the layers of a step's result, as blobs.
type Layers struct {
	Step   graph.Digest // what the definition calls it
	Output int
	Layers []image.Descriptor
}

const (
	buildTypeV1  = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
	buildTypeV02 = "https://mobyproject.org/buildkit@v1"
)

// metadata is what BuildKit adds.
// network is how steps reached the network.
type network struct {
	Mode  string   `json:"mode,omitempty"`
	Proxy *proxied `json:"proxy,omitempty"`
}

type proxied struct {
	Incomplete []Missed `json:"incomplete,omitempty"`
}

type metadata struct {
	Network *network                        `json:"network,omitempty"`
	VCS     map[string]string               `json:"vcs,omitempty"`
	Source  *source                         `json:"source,omitempty"`
	Layers  map[string][][]image.Descriptor `json:"layers,omitempty"`
}

// facts are what both versions tell.
type facts struct {
	request   *request
	whole     bool // all of the request is told
	materials []material
	complete  bool // all materials are
	hermetic  bool
	config    *buildConfig
	metadata  metadata
}

// Predicate writes the provenance of a build that ended at a time.
func (b *Build) Predicate(ended time.Time, layers []Layers) ([]byte, error) {
	f, err := b.facts(layers)
	if err != nil {
		return nil, err
	}
	if b.V02 {
		return json.MarshalIndent(b.v02(f, ended), "", "  ")
	}
	return json.MarshalIndent(b.v1(f, ended), "", "  ")
}

func (b *Build) facts(layers []Layers) (*facts, error) {
	f := &facts{materials: b.Sources.materials()}
	f.complete = !b.Sources.Incomplete && len(b.Sources.Locals) == 0 && len(b.Sources.Missed) == 0
	if b.Sources.Proxied {
		f.metadata.Network = &network{Mode: "proxy"}
		if len(b.Sources.Missed) > 0 {
			f.metadata.Network.Proxy = &proxied{b.Sources.Missed}
		}
	}
	f.hermetic = f.complete && !b.Sources.Network
	if b.Complete && !f.complete {
		return nil, incomplete(b.Sources)
	}
	req := b.Request
	if req == nil {
		req = &Request{}
	}
	f.request, f.whole = req.document(b.Sources, b.Max)
	f.whole = f.whole && req.Frontend != ""
	p := f.request.Request
	for k, v := range p.Args {
		if name, ok := strings.CutPrefix(k, "vcs:"); ok {
			delete(p.Args, k)
			if f.metadata.VCS == nil {
				f.metadata.VCS = map[string]string{}
			}
			if v != "" {
				f.metadata.VCS[name] = v
			}
		}
	}
	p.Compatibility = b.Compatibility
	for _, l := range b.Sources.Locals {
		p.Locals = append(p.Locals, local{l})
	}
	if !b.Max {
		return f, nil
	}
	for _, n := range b.Sources.Secrets {
		p.Secrets = append(p.Secrets, need(n))
	}
	for _, n := range b.Sources.SSH {
		p.SSH = append(p.SSH, need(n))
	}
	return f, b.addSteps(f, layers)
}

func (b *Build) addSteps(f *facts, layers []Layers) error {
	if b.Definition == nil {
		return nil
	}
	c, err := steps(b.Definition)
	if err != nil {
		return err
	}
	f.config = &c
	if f.metadata.Source, err = places(b.Definition, c); err != nil {
		return err
	}
	for _, l := range layers {
		if id := c.DigestMapping[l.Step]; id != "" && len(l.Layers) > 0 {
			if f.metadata.Layers == nil {
				f.metadata.Layers = map[string][][]image.Descriptor{}
			}
			key := output(id, l.Output)
			f.metadata.Layers[key] = append(f.metadata.Layers[key], l.Layers)
		}
	}
	return nil
}

func incomplete(s *Sources) error {
	text := "provenance materials are incomplete"
	for _, l := range s.Locals {
		text += "\n  - " + l + ": a directory of the client"
	}
	for _, m := range s.Missed {
		text += "\n  - " + m.Step + ": " + m.Method + " " + m.URL + ": " + m.Reason
	}
	err := diag.Errorf(diag.Invalid, "%s", text).WithHint("build from a git repository or an archive, or drop complete-materials")
	return &IncompleteError{Locals: s.Locals, Missed: s.Missed, err: err}
}
