package buildkit

import (
	"context"
	"strings"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/llb"
	"github.com/strata-build/strata/policy"
)

// ResolveImageConfig finds an image's configuration.
func (g bridgeServer) ResolveImageConfig(ctx context.Context, req *gateway.ResolveImageConfigRequest) (*gateway.ResolveImageConfigResponse, error) {
	b, err := g.bridgeOf(ctx)
	if err != nil {
		return nil, err
	}
	scheme := "docker-image://"
	switch req.ResolverType {
	case 0:
	case 1:
		scheme = "oci-layout://"
	default:
		return nil, diag.Errorf(diag.Invalid, "unknown resolver type %d", req.ResolverType)
	}
	src := &pb.SourceOp{Identifier: scheme + req.Ref}
	if req.StoreID != "" || req.SessionID != "" {
		src.Attrs = map[string]string{pb.AttrOCILayoutStoreID: req.StoreID, pb.AttrOCILayoutSessionID: req.SessionID}
	}
	p, err := b.withPolicies(req.SourcePolicies)
	if err != nil {
		return nil, err
	}
	meta, err := b.sourceMeta(ctx, &gateway.ResolveSourceMetaRequest{Source: src, Platform: req.Platform, ResolveMode: req.ResolveMode}, p)
	if err != nil {
		return nil, err
	}
	_, ref, _ := strings.Cut(meta.Source.Identifier, "://")
	return &gateway.ResolveImageConfigResponse{Digest: meta.Image.GetDigest(), Config: meta.Image.GetConfig(), Ref: ref}, nil
}

// ResolveSourceMeta tells what a source stands for now.
func (g bridgeServer) ResolveSourceMeta(ctx context.Context, req *gateway.ResolveSourceMetaRequest) (*gateway.ResolveSourceMetaResponse, error) {
	b, err := g.bridgeOf(ctx)
	if err != nil {
		return nil, err
	}
	p, err := b.withPolicies(req.SourcePolicies)
	if err != nil {
		return nil, err
	}
	return b.sourceMeta(ctx, req, p)
}

// sourceMeta tells what a source stands for, or what the policy puts in its place.
func (b *bridge) sourceMeta(ctx context.Context, req *gateway.ResolveSourceMetaRequest, pol *policy.Policy) (*gateway.ResolveSourceMetaResponse, error) {
	if req.Source == nil || req.Source.Identifier == "" {
		return nil, diag.Errorf(diag.Invalid, "there is no source to resolve")
	}
	src, err := fullReference(req.Source)
	if err != nil {
		return nil, err
	}
	asked, err := llb.DecodeSource(src)
	if err != nil {
		return nil, err
	}
	p := platformOf(req.Platform)
	op, err := pol.Source(ctx, asked, p)
	if err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "could not resolve image due to policy: %w", err)
	}
	out := &gateway.ResolveSourceMetaResponse{Source: src}
	if op != asked {
		if out.Source, err = llb.EncodeSource(op); err != nil {
			return nil, err
		}
	}
	switch o := op.(type) {
	case *graph.Image:
		if o.Mode, err = modeOr(o.Mode, req.ResolveMode); err != nil {
			return nil, err
		}
		out.Image, err = b.imageMeta(ctx, o, p, req.Image)
	case *graph.OCILayout:
		out.Image, err = b.layoutMeta(ctx, o, p, req.Image)
	case *graph.Git:
		out.Git, err = b.gitMeta(ctx, o, req.Git)
	case *graph.HTTP:
		out.HTTP, err = b.httpMeta(ctx, o, req.HTTP)
	case *graph.Local: // only its client knows what it has
	default:
		err = unsupported("sources of the kind %s cannot be resolved", op.Kind())
	}
	if err != nil {
		return nil, err
	}
	if out.Image != nil {
		b.scope(ctx).note(graph.Edge{V: graph.New(op, nil, graph.On(p))})
	}
	return out, nil
}

func (b *bridge) imageMeta(ctx context.Context, o *graph.Image, p graph.Platform, req *gateway.ResolveSourceImageRequest) (*gateway.ResolveSourceImageResponse, error) {
	var img *engine.ImageMeta
	var chain *engine.ImageChain
	var err error
	if req.GetAttestationChain() || len(req.GetResolveAttestations()) > 0 {
		img, chain, err = b.job.ImageChain(ctx, o, p, req.GetResolveAttestations())
	} else {
		img, err = b.job.ImageMeta(ctx, o, p)
	}
	if err != nil {
		return nil, err
	}
	out := &gateway.ResolveSourceImageResponse{Digest: img.Digest.String(), AttestationChain: chainTo(chain)}
	if !req.GetNoConfig() {
		out.Config, err = configOf(img.Config)
	}
	return out, err
}

func (b *bridge) layoutMeta(ctx context.Context, o *graph.OCILayout, p graph.Platform, req *gateway.ResolveSourceImageRequest) (*gateway.ResolveSourceImageResponse, error) {
	if o.Store == "" { // its name is where it is
		o.Store, _, _ = strings.Cut(o.Ref, "@")
	}
	img, err := b.job.LayoutMeta(ctx, o, p)
	if err != nil {
		return nil, err
	}
	out := &gateway.ResolveSourceImageResponse{Digest: img.Digest.String()}
	if !req.GetNoConfig() {
		out.Config, err = configOf(img.Config)
	}
	return out, err
}

func chainTo(c *engine.ImageChain) *gateway.AttestationChain {
	if c == nil {
		return nil
	}
	out := &gateway.AttestationChain{
		Root: c.Root.String(), ImageManifest: c.Image.String(), AttestationManifest: c.Attestation.String(), Blobs: map[string]*gateway.Blob{},
	}
	if c.Signature != "" {
		out.SignatureManifests = []string{c.Signature.String()}
	}
	for _, x := range c.Blobs {
		out.Blobs[x.Desc.Digest.String()] = &gateway.Blob{
			Descriptor_: &gateway.Descriptor{MediaType: x.Desc.MediaType, Digest: x.Desc.Digest.String(), Size: x.Desc.Size, Annotations: x.Desc.Annotations},
			Data:        x.Data,
		}
	}
	return out
}

func (b *bridge) gitMeta(ctx context.Context, o *graph.Git, req *gateway.ResolveSourceGitRequest) (*gateway.ResolveSourceGitResponse, error) {
	m, err := b.job.GitMeta(ctx, o, req.GetReturnObject())
	if err != nil {
		return nil, err
	}
	return &gateway.ResolveSourceGitResponse{Checksum: m.ID, Ref: m.Ref, CommitChecksum: m.Commit, CommitObject: m.CommitObject, TagObject: m.TagObject}, nil
}

func (b *bridge) httpMeta(ctx context.Context, o *graph.HTTP, req *gateway.ResolveSourceHTTPRequest) (*gateway.ResolveSourceHTTPResponse, error) {
	out := &gateway.ResolveSourceHTTPResponse{}
	if sum := req.GetChecksumRequest(); sum != nil {
		a := digest.Algorithm(sum.Algo.String())
		switch sum.Algo {
		case gateway.ChecksumRequest_CHECKSUM_ALGO_SHA256:
			a = digest.SHA256
		case gateway.ChecksumRequest_CHECKSUM_ALGO_SHA384:
			a = digest.SHA384
		case gateway.ChecksumRequest_CHECKSUM_ALGO_SHA512:
			a = digest.SHA512
		}
		d, err := b.job.HTTPSum(ctx, o, a, sum.Suffix)
		if err != nil {
			return nil, err
		}
		out.ChecksumResponse = &gateway.ChecksumResponse{Digest: d.String(), Suffix: sum.Suffix}
	}
	m, err := b.job.HTTPMeta(ctx, o)
	if err != nil {
		return nil, err
	}
	out.Checksum, out.Filename = m.Digest.String(), m.Filename
	if m.Modified != nil {
		out.LastModified = timestamppb.New(*m.Modified)
	}
	return out, nil
}

// fullReference is the source with the whole name of its image, which frontends may write as short as users do.
func fullReference(src *pb.SourceOp) (*pb.SourceOp, error) {
	short, ok := strings.CutPrefix(src.Identifier, "docker-image://")
	if !ok {
		return src, nil
	}
	ref, err := engine.FullReference(short)
	if err != nil {
		return nil, err
	}
	if ref == short {
		return src, nil
	}
	out := src.CloneVT()
	out.Identifier = "docker-image://" + ref
	return out, nil
}

// modeOr is the mode of a source, or else that of the request.
func modeOr(m graph.ResolveMode, asked string) (graph.ResolveMode, error) {
	if m != graph.ResolveDefault {
		return m, nil
	}
	return resolveMode(strings.ToLower(asked))
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
