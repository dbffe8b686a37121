package buildkit

import (
	"context"
	"strings"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
)

// ResolveImageConfig finds an image's configuration.
func (g bridgeServer) ResolveImageConfig(ctx context.Context, req *gateway.ResolveImageConfigRequest) (*gateway.ResolveImageConfigResponse, error) {
	b, err := g.s.bridgeOf(ctx)
	if err != nil {
		return nil, err
	}
	if err := noPolicies(len(req.SourcePolicies)); err != nil {
		return nil, err
	}
	const layout = 1
	var img dockerfile.Resolved
	switch req.ResolverType {
	case 0:
		img, err = b.image(ctx, req.Ref, platformOf(req.Platform), req.ResolveMode)
	case layout:
		img, err = b.job.OCILayout(ctx, req.Ref, platformOf(req.Platform))
	default:
		err = diag.Errorf(diag.Invalid, "unknown resolver type %d", req.ResolverType)
	}
	if err != nil {
		return nil, err
	}
	conf, err := configOf(img.Config)
	return &gateway.ResolveImageConfigResponse{Digest: img.Digest.String(), Config: conf, Ref: first(img.Ref, req.Ref)}, err
}

// ResolveSourceMeta tells what a source stands for now.
func (g bridgeServer) ResolveSourceMeta(ctx context.Context, req *gateway.ResolveSourceMetaRequest) (*gateway.ResolveSourceMetaResponse, error) {
	b, err := g.s.bridgeOf(ctx)
	if err != nil {
		return nil, err
	}
	if err := noPolicies(len(req.SourcePolicies)); err != nil {
		return nil, err
	}
	if req.Source == nil || req.Source.Identifier == "" {
		return nil, diag.Errorf(diag.Invalid, "there is no source to resolve")
	}
	v, err := b.sourceVertex(req.Source, req.Platform)
	if err != nil {
		return nil, err
	}
	out := &gateway.ResolveSourceMetaResponse{Source: req.Source}
	switch o := v.Op.(type) {
	case *graph.Image:
		img, err := b.job.Image(ctx, o.Ref, v.Platform, modeOr(o.Mode, req.ResolveMode))
		if err != nil {
			return nil, err
		}
		return out, b.imageMeta(out, req.GetImage(), img)
	case *graph.OCILayout:
		img, err := b.job.OCILayout(ctx, o.Ref, v.Platform)
		if err != nil {
			return nil, err
		}
		return out, b.imageMeta(out, req.GetImage(), img)
	case *graph.Git:
		if req.GetGit().GetReturnObject() {
			return nil, unsupported("git objects are not returned")
		}
		pin, err := b.job.Pin(ctx, v)
		out.Git = &gateway.ResolveSourceGitResponse{Checksum: pin, Ref: o.Ref}
		return out, err
	case *graph.HTTP:
		return nil, unsupported("metadata of downloads is not resolved")
	case *graph.Local:
		return out, nil // only its client knows what it has
	}
	return nil, unsupported("sources of the kind %s cannot be resolved", v.Op.Kind())
}

func (b *bridge) imageMeta(out *gateway.ResolveSourceMetaResponse, req *gateway.ResolveSourceImageRequest, img dockerfile.Resolved) error {
	if req.GetAttestationChain() || len(req.GetResolveAttestations()) > 0 {
		return unsupported("attestations of images are not resolved")
	}
	out.Image = &gateway.ResolveSourceImageResponse{Digest: img.Digest.String()}
	var err error
	if !req.GetNoConfig() {
		out.Image.Config, err = configOf(img.Config)
	}
	return err
}

func (b *bridge) image(ctx context.Context, ref string, p graph.Platform, mode string) (dockerfile.Resolved, error) {
	m, err := resolveMode(mode)
	if err != nil {
		return dockerfile.Resolved{}, err
	}
	return b.job.Image(ctx, ref, p, m)
}

// sourceVertex reads a source as a definition of its own.
func (b *bridge) sourceVertex(src *pb.SourceOp, p *pb.Platform) (*graph.Vertex, error) {
	op, err := (&pb.Op{Op: &pb.Op_Source{Source: src}, Platform: p}).MarshalVT()
	if err != nil {
		return nil, err
	}
	last, err := (&pb.Op{Inputs: []*pb.Input{{Digest: digest.FromBytes(op).String()}}}).MarshalVT()
	if err != nil {
		return nil, err
	}
	e, err := b.edge(&pb.Definition{Def: [][]byte{op, last}})
	if err != nil {
		return nil, err
	}
	if e.V == nil {
		return nil, diag.Errorf(diag.Invalid, "there is no source to resolve")
	}
	return e.V, nil
}

func modeOr(m graph.ResolveMode, asked string) graph.ResolveMode {
	if x, err := resolveMode(strings.ToLower(asked)); err == nil && m == graph.ResolveDefault {
		return x
	}
	return m
}

func platformOf(p *pb.Platform) graph.Platform {
	if p == nil || p.OS == "" {
		return engine.Native()
	}
	return graph.NormalizePlatform(graph.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures})
}

func configOf(c *image.Config) ([]byte, error) {
	if c == nil {
		return nil, nil
	}
	return c.Encode()
}

func noPolicies(n int) error {
	if n > 0 {
		return unsupported("source policies are not supported")
	}
	return nil
}
