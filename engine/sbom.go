package engine

import (
	"context"
	"maps"
	"path"
	"slices"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/registry"
)

// SBOM asks for a bill of materials of each target, which a scanner makes: an image whose command reads directories and writes
// statements. Source: BuildKit's docs/attestations/sbom-protocol.md.
type SBOM struct {
	Generator string            // the scanner; "" = DefaultScanner
	Params    map[string]string // variables of the scanner, whose names get BUILDKIT_SCAN_ before
	NoCache   bool
	Mode      graph.ResolveMode
}

// DefaultScanner is what BuildKit takes if none is named.
const DefaultScanner = "docker/buildkit-syft-scanner:stable-1"

const (
	spdx       = "https://spdx.dev/Document"
	scanCore   = "sbom" // what is scanned is called so, and so are the files about it
	scanSource = "/run/src"
	scanOutput = "/run/out"
)

// scan adds the steps that make bills of materials to a plan, if they are wanted. A frontend that has made some itself is left alone.
func (b *build) scan(ctx context.Context, plan *image.Plan, s *SBOM) (*image.Plan, error) {
	if s == nil {
		return plan, nil
	}
	for _, t := range plan.Targets {
		if slices.ContainsFunc(t.Attestations, func(a image.Attestation) bool { return a.PredicateType == spdx }) {
			return plan, nil
		}
	}
	name := s.Generator
	if name == "" {
		name = DefaultScanner
	}
	ref, err := registry.ParseRef(name)
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "failed to parse sbom generator %s: %w", name, err)
	}
	img, err := b.Image(ctx, ref.String(), Native(), s.Mode)
	if err != nil {
		return nil, err
	}
	if len(img.Config.Config.Entrypoint)+len(img.Config.Config.Cmd) == 0 {
		return nil, diag.Errorf(diag.Invalid, "scanner %s does not have cmd", name)
	}
	scanner := graph.Edge{V: graph.New(&graph.Image{Ref: ref.String(), Mode: s.Mode}, nil, graph.On(Native()))}
	out := *plan
	out.Targets = slices.Clone(plan.Targets)
	for i := range out.Targets {
		t := &out.Targets[i]
		if t.Root.IsScratch() {
			continue
		}
		t.Attestations = append(slices.Clone(t.Attestations), image.Attestation{
			PredicateType: spdx, Root: scanStep(t, scanner, ref.String(), img.Config, s), Bundle: true, Path: "/", Core: scanCore,
		})
	}
	return &out, nil
}

// scanStep runs the scanner over a target.
func scanStep(t *image.Target, scanner graph.Edge, name string, c *image.Config, s *SBOM) graph.Edge {
	x := &graph.Exec{
		Args: slices.Concat(c.Config.Entrypoint, c.Config.Cmd), Cwd: c.Config.WorkingDir,
		Env: append(slices.Clone(c.Config.Env), "BUILDKIT_SCAN_DESTINATION="+scanOutput, "BUILDKIT_SCAN_SOURCE="+path.Join(scanSource, "core", scanCore)),
	}
	in := []graph.Edge{scanner, t.Root}
	x.Mounts = []graph.Mount{
		{Type: graph.MountBind, Target: "/", Input: 0, Output: graph.None},
		{Type: graph.MountTmpfs, Target: "/tmp", Input: graph.None, Output: graph.None},
		{Type: graph.MountBind, Target: path.Join(scanSource, "core", scanCore), Input: 1, Output: graph.None, ReadOnly: true, ByDef: true},
		{Type: graph.MountBind, Target: scanOutput, Input: graph.None, Output: 0},
	}
	if len(t.Scan) > 0 {
		x.Env = append(x.Env, "BUILDKIT_SCAN_SOURCE_EXTRAS="+path.Join(scanSource, "extras"))
	}
	for _, k := range slices.Sorted(maps.Keys(t.Scan)) {
		if t.Scan[k].IsScratch() {
			continue
		}
		_, client := t.Scan[k].V.Op.(*graph.Local) // how it was made says nothing
		x.Mounts = append(x.Mounts, graph.Mount{
			Type: graph.MountBind, Target: path.Join(scanSource, "extras", scanCore+"-"+k), Input: len(in), Output: graph.None, ReadOnly: true, ByDef: !client,
		})
		in = append(in, t.Scan[k])
	}
	for _, k := range slices.Sorted(maps.Keys(s.Params)) {
		x.Env = append(x.Env, "BUILDKIT_SCAN_"+k+"="+s.Params[k])
	}
	opts := []graph.Option{graph.On(Native()), graph.Named("%s", "["+graph.FormatPlatform(t.Platform)+"] generating sbom using "+name)}
	if s.NoCache {
		opts = append(opts, graph.NoCache)
	}
	return graph.Edge{V: graph.New(x, in, opts...)}
}
