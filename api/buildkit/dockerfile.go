package buildkit

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"strconv"
	"strings"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc/status"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/strictjson"
)

// frontendCaps are the capabilities of the Dockerfile frontend that a request may insist on.
var frontendCaps = []string{
	"moby.buildkit.frontend.inputs", "moby.buildkit.frontend.subrequests", "moby.buildkit.frontend.contexts", "moby.buildkit.frontend.gitquerystring",
}

// dockerfile builds a Dockerfile, or answers a question about it.
func (b *bridge) dockerfile(ctx context.Context, attrs map[string]string, defs map[string]*pb.Definition) (*result, error) {
	if err := checkCaps(attrs["frontend.caps"]); err != nil {
		return nil, err
	}
	req, err := request(attrs)
	if err != nil {
		return nil, err
	}
	from, err := frontendCaches(attrs)
	if err != nil {
		return nil, err
	}
	if err := b.importCaches(from...); err != nil {
		return nil, err
	}
	req.Proxied = b.proxied
	if b.session != nil {
		b.session.Bind(localSessions(attrs))
	}
	inputs, err := b.decodeInputs(ctx, attrs, defs)
	if err != nil {
		return nil, err
	}
	if err := b.fromInputs(ctx, &req, inputs); err != nil {
		return nil, err
	}
	req.IgnoreSyntax = attrs["cmdline"] != "" // the frontend has been chosen
	res, err := b.ofDockerfile(ctx, req, attrs, inputs)
	if f, ok := errors.AsType[*dockerfile.ForeignSyntax](err); ok {
		forward := map[string]string{}
		maps.Copy(forward, attrs)
		forward["source"], forward["cmdline"] = f.Ref, f.Cmdline
		res, err := b.frontend(ctx, gatewayFrontend, forward, defs)
		if _, told := status.FromError(err); err != nil && !told { // by the frontend, which knows better where
			err = diag.At(err, f.At...)
		}
		return res, err
	}
	return res, err
}

// ofDockerfile makes a result of a Dockerfile of this program's language.
func (b *bridge) ofDockerfile(ctx context.Context, req dockerfile.Request, attrs map[string]string, inputs map[string]engine.Input) (*result, error) {
	if id, ok := attrs["requestid"]; ok {
		return b.subrequest(ctx, id, req, inputs)
	}
	plan, err := b.job.Plan(ctx, req, inputs)
	if err != nil {
		return nil, err
	}
	b.scope(ctx).note(plan.Read...)
	return b.fromPlan(plan, multi(attrs, len(req.Platforms)))
}

func checkCaps(list string) error {
	for _, c := range strings.Split(list, ",") {
		name, _, _ := strings.Cut(c, "+")
		if c == "" {
			continue
		}
		known := false
		for _, k := range frontendCaps {
			known = known || k == name
		}
		if !known {
			err := diag.Errorf(diag.Unsupported, "unsupported frontend capability %s", c)
			return detailed{err, "FrontendCap", &errdefs.FrontendCap{Name: c}}
		}
	}
	return nil
}

// decodeInputs reads the trees that the client passes, and their images' configurations.
func (b *bridge) decodeInputs(ctx context.Context, attrs map[string]string, defs map[string]*pb.Definition) (map[string]engine.Input, error) {
	inputs := map[string]engine.Input{}
	for name, def := range defs {
		e, err := b.edge(ctx, def, b.policy)
		if err != nil {
			return nil, err
		}
		in := engine.Input{Edge: e}
		if raw := attrs["input-metadata:"+name]; raw != "" {
			var meta map[string][]byte
			if err := strictjson.Unmarshal([]byte(raw), &meta); err != nil {
				return nil, diag.Errorf(diag.Invalid, "failed to unmarshal input metadata %s: %w", name, err)
			}
			if conf := meta[metaConfig]; len(conf) > 0 {
				in.Config = &image.Config{}
				if err := strictjson.Unmarshal(conf, in.Config); err != nil {
					return nil, diag.Errorf(diag.Invalid, "the image configuration of input %s: %w", name, err)
				}
				in.Config.Extra = conf
			}
		}
		inputs[name] = in
	}
	return inputs, nil
}

// fromInputs takes the build context and the Dockerfile from the inputs of these names.
func (b *bridge) fromInputs(ctx context.Context, req *dockerfile.Request, inputs map[string]engine.Input) error {
	if in, ok := inputs["context"]; ok && req.ContextURL == "" {
		e := in.Edge
		req.Context, req.LocalDocker = &e, true
	}
	in, ok := inputs["dockerfile"]
	if !ok {
		return nil
	}
	if in.Edge.IsScratch() {
		return diag.Errorf(diag.Invalid, "invalid nil input definition to definition op: there is no Dockerfile in the input \"dockerfile\", which is empty")
	}
	files, err := b.job.Files(ctx, in.Edge)
	if err != nil {
		return err
	}
	name := first(req.Filename, "Dockerfile")
	data, err := files.ReadFile(ctx, name, dockerfile.MaxInput)
	if err != nil {
		return diag.Errorf(diag.KindOf(err), "failed to read dockerfile: %w", err)
	}
	if err := b.chargeBytes(int64(len(data))); err != nil {
		return err
	}
	req.Source = &diag.Source{Name: name, Data: data, Origin: in.Edge}
	return nil
}

// fromPlan makes a result of a plan.
func (b *bridge) fromPlan(plan *image.Plan, multi bool) (*result, error) {
	res := &result{meta: map[string][]byte{}}
	if multi {
		res.many = map[string]*ref{}
	}
	var ps platforms
	for _, t := range plan.Targets {
		conf, err := t.Config.Encode()
		if err != nil {
			return nil, err
		}
		r, err := b.add(t)
		if err != nil {
			return nil, err
		}
		ps.Platforms = append(ps.Platforms, platform{ID: t.ID, Platform: ociPlatform(t.Platform)})
		if multi {
			res.many[t.ID] = r
		} else {
			res.single = r
		}
		forTarget := func(key string, v []byte) {
			if multi {
				key += "/" + t.ID
			}
			res.meta[key] = v
		}
		forTarget(metaConfig, conf)
		if t.Epoch != nil {
			forTarget(metaEpoch, strconv.AppendInt(nil, t.Epoch.Unix(), 10))
		}
		for k, v := range t.Metadata {
			res.meta[k] = []byte(v)
		}
	}
	raw, err := json.Marshal(ps)
	if err != nil {
		return nil, err
	}
	res.meta[metaPlatforms] = raw
	return res, nil
}

// resolveMode is how clients name the modes.
func resolveMode(s string) (graph.ResolveMode, error) {
	switch s {
	case "", "default":
		return graph.ResolveDefault, nil
	case "pull":
		return graph.ResolvePull, nil
	case "local":
		return graph.ResolveLocal, nil
	}
	return "", diag.Errorf(diag.Invalid, "invalid image-resolve-mode: %s", s)
}
