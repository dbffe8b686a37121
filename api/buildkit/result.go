package buildkit

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/llb"
	"github.com/strata-build/strata/strictjson"
)

// Keys of a result's metadata.
const (
	metaConfig     = "containerimage.config"      // the image's configuration; also with /PLATFORM
	metaBaseConfig = "containerimage.base.config" // that of the base image; also with /PLATFORM
	metaPlatforms  = "refs.platforms"
	metaEpoch      = "source.date.epoch" // seconds; also with /PLATFORM
	metaName       = "image.name"
)

// result is what a frontend makes: one reference, or several by platform, and what it says of them.
type result struct {
	single *ref
	many   map[string]*ref
	meta   map[string][]byte
	proofs map[string][]proof // attestations, by the platform's ID
}

// answer reports whether the result is no tree but the answer to a question, which is for no platform.
func (r *result) answer() bool {
	_, ok := r.meta[metaPlatforms]
	return !ok && r.many == nil && (r.single == nil || r.single.id == "")
}

func (r *result) all() []*ref {
	if r.single != nil {
		return []*ref{r.single}
	}
	return slices.Collect(maps.Values(r.many))
}

// platforms is the value of metaPlatforms.
type platforms struct{ Platforms []platform }

type platform struct {
	ID       string
	Platform ocispec.Platform
}

func ociPlatform(p graph.Platform) ocispec.Platform {
	return ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
}

func graphPlatform(p ocispec.Platform) graph.Platform {
	return graph.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
}

// encode is a result on the wire. References of an image carry a definition, so that a client may build on them.
func (b *bridge) encode(r *result) (*gateway.Result, error) {
	out := &gateway.Result{Metadata: r.meta}
	switch {
	case r.single != nil:
		x, err := b.wireRef(r.single)
		if err != nil {
			return nil, err
		}
		out.Result = &gateway.Result_Ref{Ref: x}
	case r.many != nil:
		refs := map[string]*gateway.Ref{}
		for k, v := range r.many {
			x, err := b.wireRef(v)
			if err != nil {
				return nil, err
			}
			refs[k] = x
		}
		out.Result = &gateway.Result_Refs{Refs: &gateway.RefMap{Refs: refs}}
	}
	var err error
	out.Attestations, err = b.encodeProofs(r)
	return out, err
}

func (b *bridge) wireRef(r *ref) (*gateway.Ref, error) {
	if r.target.Root.IsScratch() {
		return &gateway.Ref{Id: r.id}, nil
	}
	def, err := llb.Encode(r.target.Root)
	if diag.KindOf(err) == diag.Unsupported {
		return &gateway.Ref{Id: r.id}, nil // a step of Strata's own: it can be used here only
	}
	if err != nil {
		return nil, err
	}
	if forget := b.of.producers.add(r, def); forget != nil {
		b.mu.Lock()
		b.forget = append(b.forget, forget)
		b.mu.Unlock()
	}
	return &gateway.Ref{Id: r.id, Def: def}, nil
}

// decode is a result from the wire.
func (b *bridge) decode(in *gateway.Result) (*result, error) {
	if in == nil {
		return nil, diag.Errorf(diag.Invalid, "the frontend returned no result")
	}
	out := &result{meta: in.Metadata}
	if out.meta == nil {
		out.meta = map[string][]byte{}
	}
	var err error
	if out.proofs, err = b.decodeProofs(in.Attestations); err != nil {
		return nil, err
	}
	switch x := in.Result.(type) {
	case *gateway.Result_RefDeprecated:
		r, err := b.get(x.RefDeprecated)
		out.single = r
		return out, err
	case *gateway.Result_Ref:
		r, err := b.fromWire(x.Ref)
		out.single = r
		return out, err
	case *gateway.Result_RefsDeprecated:
		out.many = map[string]*ref{}
		for k, id := range x.RefsDeprecated.GetRefs() {
			r, err := b.get(id)
			if err != nil {
				return nil, err
			}
			out.many[k] = r
		}
	case *gateway.Result_Refs:
		out.many = map[string]*ref{}
		for k, w := range x.Refs.GetRefs() {
			r, err := b.fromWire(w)
			if err != nil {
				return nil, err
			}
			out.many[k] = r
		}
	}
	return out, nil
}

// fromWire finds a reference; one without a name may bring its definition.
func (b *bridge) fromWire(w *gateway.Ref) (*ref, error) {
	if w.GetId() == "" && w.GetDef() != nil {
		e, err := b.plainEdge(w.GetDef())
		if err != nil {
			return nil, err
		}
		return b.add(image.Target{Root: e})
	}
	return b.get(w.GetId())
}

// plan makes of a result what is exported.
func (b *bridge) plan(r *result) (*image.Plan, engine.ExportOptions, error) {
	opt := engine.ExportOptions{Multi: r.many != nil, Name: string(r.meta[metaName]), Metadata: map[string]string{}}
	for k, v := range r.meta {
		opt.Metadata[k] = string(v)
	}
	ps, err := platformsOf(r.meta)
	if err != nil {
		return nil, opt, err
	}
	if r.many == nil {
		single := r.single
		if single == nil {
			single = &ref{}
		}
		p := platform{}
		if len(ps.Platforms) == 1 {
			p = ps.Platforms[0]
		}
		t, err := target(single, p, r)
		if err != nil {
			return nil, opt, err
		}
		opt.Told = append(opt.Told, b.told(single, r))
		return &image.Plan{Targets: []image.Target{t}}, opt, nil
	}
	if len(ps.Platforms) == 0 && len(r.many) > 0 {
		return nil, opt, diag.Errorf(diag.Invalid, "unable to export multiple refs, missing platforms mapping")
	}
	plan := &image.Plan{}
	for _, p := range ps.Platforms {
		x := r.many[p.ID]
		if x == nil {
			return nil, opt, diag.Errorf(diag.Invalid, "failed to find ref for ID %.80s", p.ID)
		}
		t, err := target(x, p, r)
		if err != nil {
			return nil, opt, err
		}
		plan.Targets = append(plan.Targets, t)
		opt.Told = append(opt.Told, b.told(x, r))
	}
	return plan, opt, nil
}

// platformsOf reads the platforms of a result, none if it does not say.
func platformsOf(meta map[string][]byte) (ps platforms, err error) {
	raw, ok := meta[metaPlatforms]
	if !ok {
		return ps, nil
	}
	if err := strictjson.Unmarshal(raw, &ps); err != nil {
		return ps, diag.Errorf(diag.Invalid, "the result's platforms cannot be read: %w", err)
	}
	if len(ps.Platforms) == 0 {
		return ps, diag.Errorf(diag.Invalid, "invalid empty platforms index for exporter")
	}
	for _, p := range ps.Platforms {
		switch {
		case p.ID == "":
			return ps, diag.Errorf(diag.Invalid, "invalid empty platform key for exporter")
		case p.Platform.OS == "" || p.Platform.Architecture == "":
			return ps, diag.Errorf(diag.Invalid, "invalid platform value %v for exporter", p.Platform)
		}
	}
	return ps, nil
}

// platformsWarning says, in BuildKit's words, that a frontend has made other platforms than the client asked for.
func platformsWarning(asked string, plan *image.Plan, multi bool) string {
	if asked == "" {
		asked = graph.FormatPlatform(engine.Native())
	}
	var want, have []string
	for s := range strings.SplitSeq(asked, ",") {
		p, err := graph.ParsePlatform(s)
		if err != nil {
			return fmt.Sprintf("Invalid platform result requested %q: %s", s, err)
		}
		want = append(want, graph.FormatPlatform(p))
	}
	for _, t := range plan.Targets {
		p := t.Platform
		if name := graph.FormatPlatform(p); !slices.Contains(want, name) {
			p.OSVersion = "" // that of the base image is nobody's wish
		}
		have = append(have, graph.FormatPlatform(p))
	}
	slices.Sort(want)
	slices.Sort(have)
	switch {
	case slices.Equal(want, have):
		return ""
	case !multi && len(want) > 1:
		return "Multiple platforms requested but result is not multi-platform"
	case len(want) == 1 && len(have) == 1:
		return fmt.Sprintf("Requested platform %q does not match result platform %q", want[0], have[0])
	}
	return fmt.Sprintf("Requested platforms %s do not match result platforms %s", strings.Join(want, ","), strings.Join(have, ","))
}

// target is one reference as an image. The metadata says what the configuration is; what is known of the base stays.
func target(made *ref, p platform, r *result) (image.Target, error) {
	t, meta := made.target, r.meta
	t.ID, t.Platform = p.ID, graphPlatform(p.Platform)
	raw, ok := meta[metaConfig+"/"+p.ID]
	if !ok || p.ID == "" {
		raw, ok = meta[metaConfig]
	}
	if ok && len(raw) > 0 {
		var c *image.Config
		if err := strictjson.Unmarshal(raw, &c); err != nil {
			return t, diag.Errorf(diag.Invalid, "failed to parse image config: %w", err)
		}
		switch {
		case c == nil:
			return t, diag.Errorf(diag.Invalid, "invalid null image config for export")
		case (c.OS == "") != (c.Architecture == ""):
			return t, diag.Errorf(diag.Invalid, "invalid image config: os and architecture must be specified together")
		}
		c.Extra = raw
		t.Config = c
		if t.Platform.OS == "" {
			t.Platform = c.Platform()
		}
	}
	if t.Platform.OS == "" {
		t.Platform = engine.Native()
	}
	id := p.ID
	if id == "" {
		id = graph.FormatPlatform(t.Platform)
	}
	for _, x := range r.proofs[id] {
		x.Root = x.ref.target.Root
		t.Attestations = append(t.Attestations, x.Attestation)
	}
	var err error
	t.Epoch, err = epochIn(r.meta, p.ID)
	return t, err
}

// epochIn is the SOURCE_DATE_EPOCH that a frontend has found for a platform, or for all.
func epochIn(meta map[string][]byte, id string) (*time.Time, error) {
	v, ok := meta[metaEpoch+"/"+id]
	if !ok || id == "" {
		v = meta[metaEpoch]
	}
	if len(v) == 0 {
		return nil, nil
	}
	n, err := strconv.ParseInt(string(v), 10, 64)
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "invalid SOURCE_DATE_EPOCH from frontend: %q: it must be seconds since 1970", v)
	}
	t := time.Unix(n, 0).UTC()
	return &t, nil
}
