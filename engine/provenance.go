package engine

import (
	"context"
	"slices"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile"
	"github.com/strata-build/strata/export"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/llb"
	"github.com/strata-build/strata/provenance"
	"github.com/strata-build/strata/tree"
)

// Told is what a frontend tells of a target for its provenance.
type Told struct {
	Request *provenance.Request
	Read    []graph.Edge // what was read besides what the target is made of
}

// attesting says what is told of the targets of a plan.
func (r *Request) attesting(plan *image.Plan) ExportOptions {
	o := ExportOptions{Provenance: r.Provenance, SBOM: r.scanning()}
	if r.Provenance == nil {
		return o
	}
	told := Told{Request: provenance.NewRequest("dockerfile.v0", r.attributes()), Read: plan.Read}
	for range plan.Targets {
		o.Told = append(o.Told, told)
	}
	return o
}

// scanning is the request for a list of contents, nil if there is none.
func (r *Request) scanning() *SBOM {
	if r.SBOM == nil {
		return nil
	}
	s := *r.SBOM
	s.NoCache = r.NoCache
	if r.Pull {
		s.Mode = graph.ResolvePull
	}
	return &s
}

// addProvenance adds to each image of a set what it was made from. It is written when an exporter asks for it.
func (b *build) addProvenance(ctx context.Context, set *export.Set, plan *image.Plan, opt *ExportOptions) error {
	for i, t := range plan.Targets {
		if t.Root.IsScratch() {
			continue
		}
		p, err := b.provenance(ctx, i, plan, opt)
		if err != nil {
			return err
		}
		names, err := define(p, t.Root)
		if err != nil {
			return err
		}
		p.Options = *opt.Provenance
		set.Images[i].Attestation = append(set.Images[i].Attestation, export.Attestation{
			Attestation: image.Attestation{PredicateType: p.Type(), Path: p.Filename, InlineOnly: p.InlineOnly},
			Make: func(ctx context.Context, layers []image.Descriptor) ([]byte, error) {
				var of []provenance.Layers
				if p.Max {
					of = b.layersOf(ctx, t, names, layers)
				}
				return p.Predicate(time.Now(), of)
			},
		})
	}
	return nil
}

// Origins tells what the targets of a plan that was exported were made from: each function writes it for one target, as provenance
// of version 1 with all that is known but the layers. It is nil for a target without files. What takes long is left to the
// functions, which outlive the job.
func (j *Job) Origins(ctx context.Context, plan *image.Plan, opt ExportOptions) ([]func() ([]byte, error), error) {
	plan, err := j.b.policedPlan(ctx, plan)
	if err != nil {
		return nil, err
	}
	out, ended := make([]func() ([]byte, error), len(plan.Targets)), time.Now()
	for i, t := range plan.Targets {
		if t.Root.IsScratch() {
			continue
		}
		p, err := j.b.provenance(ctx, i, plan, &opt)
		if err != nil {
			return nil, err
		}
		p.Max = true
		if opt.Provenance != nil {
			p.BuilderID = opt.Provenance.BuilderID
		}
		out[i] = func() ([]byte, error) {
			if _, err := define(p, t.Root); err != nil {
				return nil, err
			}
			return p.Predicate(ended, nil)
		}
	}
	return out, nil
}

// provenance collects what a target of a plan is made from.
func (b *build) provenance(ctx context.Context, i int, plan *image.Plan, opt *ExportOptions) (*provenance.Build, error) {
	t, told := plan.Targets[i], Told{}
	if i < len(opt.Told) {
		told = opt.Told[i]
	}
	src, err := provenance.Collect(slices.Concat([]graph.Edge{t.Root}, told.Read), func(v *graph.Vertex) (string, error) { return b.stoodFor(ctx, v) })
	if err != nil {
		return nil, err
	}
	b.addFetched(src, t.Root)
	var all []graph.Platform
	for _, x := range plan.Targets {
		all = append(all, x.Platform)
	}
	p := &provenance.Build{
		Request: told.Request, Sources: src.For(t.Platform, all), ID: b.id, Started: b.started, Builder: Native(), Target: t.Platform, Env: b.e.opt.ProvenanceEnv,
		Compatibility: opt.Compatibility,
	}
	if told.Request != nil && told.Request.Frontend == "dockerfile.v0" {
		p.Language = dockerfile.Version
	}
	return p, nil
}

// define adds the steps of a target, and tells how their definition names the vertices.
func define(p *provenance.Build, root graph.Edge) (map[*graph.Vertex]graph.Digest, error) {
	def, names, err := llb.EncodeNamed(root)
	if err != nil && diag.KindOf(err) != diag.Unsupported {
		return nil, err
	}
	p.Definition = def // none for a step that BuildKit does not have
	return names, nil
}

// stoodFor says what a source stands for in this build, which has looked that up before.
func (b *build) stoodFor(ctx context.Context, v *graph.Vertex) (string, error) {
	switch o := v.Op.(type) {
	case *graph.Image:
		img, err := b.images.Resolve(ctx, o, v.Platform)
		if err != nil {
			return "", err
		}
		return string(img.Digest), nil
	case *graph.OCILayout:
		img, err := b.images.ResolveLayout(ctx, o, v.Platform)
		if err != nil {
			return "", err
		}
		return string(img.Digest), nil
	case *graph.Git:
		return b.git.Commit(ctx, o)
	case *graph.HTTP:
		d, err := b.http.Digest(ctx, o, v.ID)
		return string(d), err
	}
	return "", diag.Errorf(diag.Internal, "%s stands for nothing", v.Op.Kind())
}

// maxChain bounds how many layers a result may have to be listed with them: the lists grow with the square of it.
const maxChain = 200

// layersOf says which of an image's layers the results have that it is stacked on. Nothing is made for it.
func (b *build) layersOf(ctx context.Context, t image.Target, names map[*graph.Vertex]graph.Digest, layers []image.Descriptor) []provenance.Layers {
	var out []provenance.Layers
	all := 0
	for e := t.Root; e.V != nil; {
		n := -1
		if made, ok := b.work.Known(e); ok {
			n = count(made)
		}
		below := graph.Below(e)
		if len(below) == 0 && n < 0 {
			img := b.baseImage(ctx, t.Root)
			if n = 0; img != nil {
				n = len(img.Config.RootFS.DiffIDs)
			}
		}
		if e == t.Root {
			if all = n; all != len(layers) {
				return nil // squashed, or divided anew
			}
		}
		if n > 0 && n <= all && (n <= maxChain || e == t.Root) {
			out = append(out, provenance.Layers{Step: names[e.V], Output: e.Out, Layers: bare(layers[:n])})
		}
		if len(below) == 0 {
			return out
		}
		e = below[0]
	}
	return out
}

func count(t tree.Tree) int {
	if t == nil {
		return 0
	}
	ids, ok := t.Layers()
	if !ok {
		return -1
	}
	return len(ids)
}

// bare leaves out what only the image says of its layers.
func bare(layers []image.Descriptor) []image.Descriptor {
	out := make([]image.Descriptor, len(layers))
	for i, l := range layers {
		out[i] = image.Descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size}
	}
	return out
}
