package buildkit

import (
	"context"
	"encoding/base64"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/session/remote"
	"github.com/strata-build/strata/strictjson"
	"github.com/strata-build/strata/tracing"
)

// Solve builds what a client asks for and exports it.
func (s *Server) Solve(ctx context.Context, req *control.SolveRequest) (*control.SolveResponse, error) {
	translateOld(req)
	asBuiltin(req)
	allow, err := s.allow(req.Entitlements)
	if err != nil {
		return nil, err
	}
	t := s.of(ctx)
	b := &build{ref: req.Ref, journal: newJournal(t.history.files.Scratch()), ready: make(chan struct{}), owner: peerOf(ctx).Conn}
	if err := t.builds.add(b); err != nil {
		return nil, err
	}
	b.recorded = !req.Internal && !s.opt.History.Disabled
	md, _ := metadata.FromIncomingContext(ctx)
	ctx, end := s.opt.Tracer.Begin(tracing.From(ctx, func(name string) string { return strings.Join(md.Get(name), ",") }), "build", "ref", req.Ref)
	if b.recorded {
		t.history.begin(req, b.journal)
		b.trace = s.opt.Tracer.Record(ctx)
	}
	resp, err := s.run(ctx, req, b, allow)
	end(err)
	if err != nil && ctx.Err() != nil {
		err = diag.Errorf(diag.Canceled, "the build was canceled: %w", context.Cause(ctx))
	}
	_, told := status.FromError(err) // by a frontend, with all details
	if failed := b.journal.failure(); !told && failed != "" && diag.KindOf(err) != diag.Canceled {
		err = vertexError{err, failed}
	}
	b.journal.close()
	if b.recorded {
		s.endRecord(context.WithoutCancel(ctx), b, resp, err)
	}
	t.builds.remove(b)
	s.Built()
	if err != nil {
		return nil, err
	}
	return &control.SolveResponse{ExporterResponse: resp}, nil
}

// translateOld turns the fields of earlier clients into today's.
func translateOld(req *control.SolveRequest) {
	if req.ExporterDeprecated != "" && len(req.Exporters) == 0 {
		req.Exporters = []*control.Exporter{{Type: req.ExporterDeprecated, Attrs: req.ExporterAttrsDeprecated}}
	}
	req.Exporters = slices.DeleteFunc(req.Exporters, func(x *control.Exporter) bool { return x == nil })
	req.ExporterDeprecated, req.ExporterAttrsDeprecated = "", nil
	oldCaches(req.Cache)
}

// allow returns what a build may do: what it asks for, if this daemon allows it.
func (s *Server) allow(asked []string) ([]string, error) {
	var allow []string
	for _, e := range asked {
		name, _, _ := strings.Cut(e, "=")
		switch name {
		case "network.host", "security.insecure", "device":
		default:
			return nil, diag.Errorf(diag.Invalid, "invalid entitlement: %s", e)
		}
		if !slices.Contains(s.opt.Entitlements, name) {
			return nil, diag.Errorf(diag.Denied, "granting entitlement %s is not allowed by build daemon configuration", e)
		}
		allow = append(allow, e)
	}
	return allow, nil
}

// run is a build from its session to its exports.
func (s *Server) run(ctx context.Context, req *control.SolveRequest, b *build, allow []string) (map[string]string, error) {
	ready := false
	defer func() {
		if !ready {
			close(b.ready)
		}
	}()
	outs, err := outputs(req.Exporters, epochOf(req.FrontendAttrs))
	if err != nil {
		return nil, err
	}
	use := engine.JobOptions{Client: s.client(ctx), Sink: event.Sink(b.journal.take), Allow: allow, KeepFailed: true}
	wanted, err := attests(req)
	if err != nil {
		return nil, err
	}
	var local *remote.Session
	if req.Session != "" {
		if local, err = s.of(ctx).sessions.Open(ctx, req.Session, peerOf(ctx)); err != nil {
			return nil, err
		}
		defer local.Close()
		use.Session = local
	}
	var br *bridge
	pol, closePolicy, err := s.policyOf(ctx, req, func() *bridge { return br })
	if err != nil {
		return nil, err
	}
	defer closePolicy()
	use.Policy = asPolicy(pol)
	use.Proxied = req.ProxyNetwork || s.opt.ProxyNetwork
	nested := s.quota.charger(peerOf(ctx).Identity)
	defer nested.end()
	use.Charge = nested.add
	job := s.e.NewJob(ctx, use)
	defer job.Close()
	to, err := cacheExports(job, req.GetCache().GetExports())
	if err != nil {
		return nil, err
	}
	br = newBridge(ctx, s, job, b.journal, local)
	defer br.end()
	br.inputs, br.policy, br.proxied = req.FrontendInputs, pol, use.Proxied
	if err := br.importCaches(controlSpecs(req.GetCache().GetImports())...); err != nil {
		return nil, err
	}
	br.root = br.of.producers.asked(req.Frontend, req.FrontendAttrs, req.FrontendInputs)
	b.bridge, ready = br, true
	close(b.ready)
	res, err := s.result(ctx, req, br)
	if err != nil {
		return nil, err
	}
	plan, opt, err := br.plan(res)
	if err != nil {
		return nil, err
	}
	if w := platformsWarning(req.FrontendAttrs["platform"], plan, res.many != nil); w != "" && !res.answer() {
		b.journal.take(event.Event{Kind: event.Warn, Time: time.Now(), Warning: &diag.Warning{Msg: w}})
	}
	opt.Caches = to
	if req.EnableSessionExporter && local != nil {
		if outs, err = s.sessionOutputs(ctx, req, br, res); err != nil {
			return nil, err
		}
	}
	opt.Provenance, opt.SBOM, opt.Compatibility = wanted.Provenance, wanted.SBOM, wanted.Compatibility
	resp, err := b.export(ctx, plan, outs, opt)
	if err != nil {
		return nil, err
	}
	for k, v := range res.meta {
		if strings.HasPrefix(k, "frontend.") || strings.HasPrefix(k, "result.") {
			resp[k] = string(v)
		}
	}
	if req.EnableSessionExporter && local != nil {
		return resp, local.FinalizeExport(ctx, resp)
	}
	return resp, nil
}

// export writes what was built to the outputs. It returns what the client is told, and leaves in the build what the history keeps.
func (b *build) export(ctx context.Context, plan *image.Plan, outs engine.Outputs, opt engine.ExportOptions) (map[string]string, error) {
	said, err := b.bridge.job.Export(ctx, plan, outs, opt)
	if err != nil {
		return nil, err
	}
	if b.recorded {
		if b.origins, err = origins(ctx, b.bridge.job, plan, opt); err != nil {
			b.bridge.s.opt.Log.Warn("the record of a build will not say what it was made from", "build", b.ref, "err", err)
		}
	}
	resp := map[string]string{}
	for _, m := range said {
		maps.Copy(resp, m) // of two values clients expect the last exporter's
		if d := descriptorOf(m); d != nil {
			b.results = append(b.results, d)
		}
	}
	return resp, nil
}

// sessionOutputs adds to the exporters of a request those that the client chooses when it sees what was built.
func (s *Server) sessionOutputs(ctx context.Context, req *control.SolveRequest, br *bridge, res *result) (engine.Outputs, error) {
	epoch := epochOf(req.FrontendAttrs)
	var ids []string
	for _, r := range res.all() {
		if r == nil || r.id == "" {
			continue
		}
		if err := br.job.Solve(ctx, r.target.Root); err != nil {
			return engine.Outputs{}, err
		}
		ids = append(ids, r.id)
	}
	more, err := br.session.FindExporters(ctx, res.meta, ids)
	if err != nil {
		return engine.Outputs{}, err
	}
	all := slices.Clone(req.Exporters)
	for _, x := range more {
		all = append(all, &control.Exporter{Type: x.Type, Attrs: x.Attrs})
	}
	return outputs(all, epoch)
}

// result is what the build's frontend makes: a definition, a Dockerfile, or what the client's own code returns.
func (s *Server) result(ctx context.Context, req *control.SolveRequest, br *bridge) (*result, error) {
	switch {
	case req.Frontend != "":
		if req.Definition != nil && len(req.Definition.Def) > 0 {
			return nil, diag.Errorf(diag.Invalid, "cannot solve with both Definition and Frontend specified")
		}
		return br.frontend(ctx, req.Frontend, req.FrontendAttrs, req.FrontendInputs)
	case req.Definition != nil:
		return br.definition(ctx, req.Definition, br.policy)
	}
	return br.wait(ctx)
}

// epochOf is the SOURCE_DATE_EPOCH of a request, nil if there is none or if only the frontend can tell what it stands for.
func epochOf(attrs map[string]string) *time.Time {
	n, err := strconv.ParseInt(attrs["build-arg:SOURCE_DATE_EPOCH"], 10, 64)
	if err != nil {
		return nil
	}
	t := time.Unix(n, 0).UTC()
	return &t
}

// outputs are the exporters of a request; the client knows its destinations by their numbers.
func outputs(exporters []*control.Exporter, epoch *time.Time) (engine.Outputs, error) {
	var outs []engine.Output
	for i, x := range exporters {
		o := engine.Output{Type: x.Type, Attrs: maps.Clone(x.Attrs)}
		// Some clients give exporters what is the frontend's.
		maps.DeleteFunc(o.Attrs, func(k, _ string) bool { return strings.HasPrefix(k, "attest:") })
		switch x.Type {
		case "local":
			o.Dest = remote.ToDir + strconv.Itoa(i)
		case "image", "moby":
			// Clients expect the digest of the manifest in the answer.
			if o.Attrs == nil {
				o.Attrs = map[string]string{}
			}
			o.Attrs["manifest"] = "true"
		case "oci", "docker", "tar":
			if x.Type == "docker" && x.Attrs["compression"] == "" {
				if o.Attrs == nil {
					o.Attrs = map[string]string{}
				}
				o.Attrs["compression"] = "gzip" // BuildKit's default
			}
			o.Dest = remote.ToFile + strconv.Itoa(i)
			if asTar, err := strconv.ParseBool(x.Attrs["tar"]); err == nil && !asTar {
				o.Dest = remote.ToStore + strconv.Itoa(i)
			}
		}
		outs = append(outs, o)
	}
	return engine.NewOutputs(outs, epoch)
}

// descriptorOf is what an exporter says that it has made, nil if that is no image.
func descriptorOf(said map[string]string) *control.Descriptor {
	raw, err := base64.StdEncoding.DecodeString(said["containerimage.descriptor"])
	var d ocispec.Descriptor
	if err != nil || strictjson.Unmarshal(raw, &d) != nil || d.Digest == "" {
		return nil
	}
	return &control.Descriptor{MediaType: d.MediaType, Digest: d.Digest.String(), Size: d.Size, Annotations: d.Annotations}
}

var errEnded = errors.New("the build has ended")
