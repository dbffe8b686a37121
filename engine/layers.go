package engine

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/op"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/solve"
	"github.com/strata-build/strata/source"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// seal runs a graph.Layers vertex, and remembers it as the latest of its kind.
func (b *build) seal(ctx context.Context, s *solve.Step[tree.Tree, *build], o *graph.Layers) ([]tree.Tree, error) {
	out, err := b.e.seals.Run(ctx, o, s.In, op.LayersEnv{
		Hold:     b.hold,
		Platform: s.V.Platform, Tenant: b.client.Tenant,
		Known: func(ctx context.Context) ([]op.Known, error) { return b.known(ctx, o.Previous, s.V.Platform) },
		Warn:  func(w diag.Warning) { w.At = s.V.At; s.Emit(event.Event{Kind: event.Warn, Warning: &w}) },
	})
	if err != nil || o.Previous == nil {
		return out, err
	}
	return out, b.e.store.Update(ctx, func(batch *store.Batch) error {
		batch.Memo(b.lastSeal(ctx, o.Previous, s.V.Platform), s.Key)
		return nil
	})
}

// lastSeal names what a step made last time: a step of the same name, in the same context.
func (b *build) lastSeal(ctx context.Context, p *graph.Previous, pf graph.Platform) graph.Digest {
	where := b.request.Context
	if b.session != nil {
		if dir, err := b.session.Dir(ctx, "context"); err == nil && where == "" {
			where = dir.Key + "\x00" + dir.Path
		}
	}
	return digest.FromString(strings.Join([]string{"layers", b.client.Tenant, where, b.request.Dockerfile, p.Name, string(graph.Canonical(pf))}, "\x00"))
}

// known finds the layers that a step need not make again: those of the image that it names or that the build is about to
// replace, else of its own last result, and those of the base image. What cannot be found is left out.
func (b *build) known(ctx context.Context, p *graph.Previous, pf graph.Platform) ([]op.Known, error) {
	if p == nil {
		return nil, nil
	}
	all, err := b.earlier(ctx, p, pf)
	if err != nil {
		return nil, err
	}
	if p.Base != "" {
		base, err := b.imageLayers(ctx, p.Base, pf, "base")
		if err != nil && ctx.Err() != nil {
			return nil, err
		}
		all = append(all, base...)
	}
	seen := map[graph.Digest]bool{}
	return slices.DeleteFunc(all, func(k op.Known) bool {
		was := seen[k.Digest]
		seen[k.Digest] = true
		return was
	}), nil
}

func (b *build) earlier(ctx context.Context, p *graph.Previous, pf graph.Platform) ([]op.Known, error) {
	if p.Ref != "" {
		known, err := b.imageLayers(ctx, p.Ref, pf, "previous")
		if err == nil || ctx.Err() != nil {
			return known, err
		}
		b.sink.Emit(event.Event{Kind: event.Message, Text: "OUTPUT: the previous image is not used: " + err.Error()})
		return nil, nil
	}
	for _, t := range b.request.Tags {
		if known, err := b.imageLayers(ctx, t, pf, "previous"); err == nil {
			return known, nil
		}
	}
	key, err := b.e.store.Memo(b.lastSeal(ctx, p, pf))
	if err != nil {
		return nil, nil
	}
	r, err := b.hold.Result(key)
	if err != nil || len(r.Outputs) != 2 {
		return nil, nil
	}
	record := tree.NewStack(b.e.store, r.Outputs[1])
	defer record.Release()
	sealed, err := op.Sealed(ctx, record)
	if err != nil {
		return nil, nil
	}
	t := image.Target{}
	t.Seal(sealed)
	return b.stackLayers(r.Outputs[0], t.Annotations, "previous"), nil
}

// stackLayers describes layers of the store whose diff_ids are known.
func (b *build) stackLayers(ids []store.LayerID, annotations map[string]string, from string) []op.Known {
	names := image.ParseLayerNames(annotations)
	var out []op.Known
	for i, id := range ids {
		info, err := b.e.store.Layer(id)
		if err != nil || info.DiffID == "" {
			continue
		}
		k := op.Known{ID: id, Below: ids[:i]}
		k.DiffID, k.Digest, k.From, k.Size = info.DiffID, info.DiffID, from, info.TarSize
		k.MediaType, _ = layer.MediaType(layer.Uncompressed, false)
		for _, v := range b.e.store.Variants(info.DiffID) {
			if v.Digest == info.Blob {
				k.Digest, k.Size, k.MediaType = v.Digest, v.Size, v.MediaType
			}
		}
		n := names[k.DiffID]
		k.Name, k.Key, k.Annotations = n.Name, n.Key, n.Annotations
		out = append(out, k)
	}
	return out
}

// imageLayers describes the layers of an image of the store, or else of a registry.
func (b *build) imageLayers(ctx context.Context, name string, pf graph.Platform, from string) ([]op.Known, error) {
	ref, err := registry.ParseRef(name)
	if err != nil {
		return nil, err
	}
	local := &graph.Image{Ref: ref.String(), Mode: graph.ResolveLocal}
	if img, err := b.images.Resolve(ctx, local, pf); err == nil && img.Unpacked() != nil {
		return b.stackLayers(img.Unpacked(), img.Annotations, from), nil
	}
	mode := graph.ResolveDefault
	if from == "previous" && !b.pushes() && b.previousIsTag(name) {
		mode = graph.ResolveLocal // a name that is only given here is in no registry
	}
	img, err := b.images.Resolve(ctx, &graph.Image{Ref: ref.String(), Mode: mode}, pf)
	if err != nil {
		return nil, err
	}
	return b.pulledLayers(ref, img, from), nil
}

func (b *build) previousIsTag(name string) bool { return slices.Contains(b.request.Tags, name) }

// pushes reports whether the build's image goes to a registry.
func (b *build) pushes() bool {
	return slices.ContainsFunc(b.request.Outputs, func(o Output) bool { return o.Type == "registry" || o.Attrs["push"] == "true" })
}

// pulledLayers describes the layers of an image of which the manifest is known.
func (b *build) pulledLayers(ref registry.Ref, img *source.Image, from string) []op.Known {
	names := image.ParseLayerNames(img.Annotations)
	var below []store.LayerID
	var out []op.Known
	chains := img.ChainIDs()
	for i, diff := range img.Config.RootFS.DiffIDs {
		if i >= len(img.Blobs) {
			break
		}
		d := img.Blobs[i]
		k := op.Known{Fetch: func(ctx context.Context) (io.ReadCloser, error) { return b.web.Fetch(ctx, ref, d, 0) }}
		k.DiffID, k.Digest, k.Size, k.MediaType, k.From = diff, d.Digest, d.Size, d.MediaType, from
		k.Name, k.Key, k.Annotations = names[diff].Name, names[diff].Key, names[diff].Annotations
		if id, err := b.hold.Chain(chains[i]); err == nil && len(below) == i && b.images.Proven(img, i) {
			k.ID, k.Below = id, slices.Clone(below)
			below = append(below, id)
		}
		out = append(out, k)
	}
	return out
}

// planSealed plans a build, and makes what its stages with an OUTPUT declare. If a step's kept result names a layer of an earlier
// build that is nowhere any more, the steps that make layers run once more, in a job of their own.
func (e *Engine) planSealed(ctx context.Context, j *Job, d dockerfile.Request) (*Job, *image.Plan, error) {
	try := func() (*image.Plan, error) {
		plan, err := j.Plan(ctx, d, nil)
		if err == nil {
			_, err = j.b.records(ctx, plan)
		}
		return plan, err
	}
	plan, err := try()
	if err == nil || !errors.As(err, new(*op.Gone)) {
		return j, plan, err
	}
	j.b.user.Emit(event.Event{Kind: event.Message, Text: "OUTPUT: a layer of an earlier build is gone: the steps that make layers run again"})
	next := e.NewJob(ctx, JobOptions{Client: j.b.client, Session: j.b.session, Sink: anew(j.b.user), Allow: j.b.allow, Policy: j.b.policy})
	next.b.request = j.b.request
	j.Close()
	j, d.Rerun = next, true
	if err := j.ImportCaches(j.b.request.CacheFrom...); err != nil {
		return j, nil, err
	}
	plan, err = try()
	return j, plan, err
}

// anew shows the vertices of a second job apart from those of the first, which may be the same.
func anew(sink event.Sink) event.Sink {
	other := func(v graph.Digest) graph.Digest {
		if v == "" {
			return ""
		}
		return digest.FromString("again " + string(v))
	}
	return func(e event.Event) {
		e.Vertex = other(e.Vertex)
		in := make([]graph.Digest, len(e.Inputs))
		for i, v := range e.Inputs {
			in[i] = other(v)
		}
		e.Inputs = in
		sink.Emit(e)
	}
}

// verifyOutput runs the steps that make layers again, with an empty input, and compares what they make.
func (e *Engine) verifyOutput(ctx context.Context, b *build, d dockerfile.Request, plan *image.Plan) error {
	b.user.Emit(event.Event{Kind: event.Message, Text: "verifying the output: the steps that make layers run again, without input"})
	again := e.NewJob(ctx, JobOptions{Client: b.client, Session: b.session, Sink: anew(b.user), Allow: b.allow, Policy: b.policy})
	defer again.Close()
	again.b.request, again.b.repeats = b.request, true
	d.Rerun = true
	second, err := again.Plan(ctx, d, nil)
	if err != nil {
		return err
	}
	first, err := b.records(ctx, plan)
	if err != nil {
		return err
	}
	other, err := again.b.records(ctx, second)
	if err != nil {
		return err
	}
	if len(first) == 0 {
		return diag.Errorf(diag.Invalid, "--verify-output: no stage of this build has an OUTPUT")
	}
	for i, f := range first {
		if i >= len(other) {
			return diag.Errorf(diag.Internal, "--verify-output: the two builds have different stages")
		}
		if err := f.differs(&other[i]); err != nil {
			return err.WithSpan(f.at...)
		}
	}
	return nil
}

// sealedStage is what a stage made, and where it says so.
type sealedStage struct {
	at []diag.Span
	*image.Sealed
}

// records reads what the stages of a plan have sealed.
func (b *build) records(ctx context.Context, plan *image.Plan) ([]sealedStage, error) {
	var all []*graph.Vertex
	var roots []graph.Edge
	for _, t := range plan.Targets {
		roots = append(roots, t.Root)
	}
	graph.Walk(roots, func(v *graph.Vertex) {
		if _, ok := v.Op.(*graph.Layers); ok {
			all = append(all, v)
		}
	})
	var out []sealedStage
	for _, v := range all {
		trees, err := b.trees(ctx, graph.Edge{V: v, Out: 1})
		if err != nil {
			return nil, err
		}
		s, err := op.Sealed(ctx, trees[0])
		if err != nil {
			return nil, err
		}
		out = append(out, sealedStage{v.At, s})
	}
	return out, nil
}

func (s *sealedStage) differs(o *sealedStage) *diag.Error {
	hint := "the output must not depend on input/ and history.json, nor on the time: set --source-date-epoch, and sort what is listed"
	if len(s.Layers) != len(o.Layers) {
		return diag.Errorf(diag.Failed, "OUTPUT: made again without input it has %d layers, not %d", len(o.Layers), len(s.Layers)).WithHint("%s", hint)
	}
	for i, l := range s.Layers {
		// A layer that was taken from the input may be another compression of the same tar.
		if l.DiffID != o.Layers[i].DiffID {
			return diag.Errorf(diag.Failed, "OUTPUT: layers[%d] is %s, but made again without input %s", i, l.DiffID, o.Layers[i].DiffID).WithHint("%s", hint)
		}
	}
	return nil
}
