package buildkit

import (
	"context"
	"log/slog"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/llb"
	"github.com/strata-build/strata/policy"
	"github.com/strata-build/strata/strictjson"
)

// Frontend runs the frontends of Dockerfiles that strata build is given, in their images. The client is the command: its session
// is the job's, and is not BuildKit's.
//
//	engine.Open(ctx, engine.Options{Root: root, Frontend: buildkit.Frontend(buildkit.Options{Version: version})})
func Frontend(opt Options) engine.Frontend {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	opt.Frontends.NoDockerfile = false // what it does here is to find the other one
	return func(ctx context.Context, j *engine.Job, r engine.FrontendRequest) (*engine.FrontendResult, error) {
		id, err := engine.RootID(j.Engine().Root())
		if err != nil {
			return nil, err
		}
		s := &Server{quota: newQuota(opt.Limits), e: j.Engine(), opt: opt, id: id}
		b := newBridge(ctx, s, j, sinkListener(r.Sink), nil)
		defer b.end()
		if p, ok := r.Policy.(*policy.Policy); ok {
			b.policy = p
		}
		b.root = b.of.producers.asked(dockerfileFrontend, r.Attrs, nil)
		res, err := b.frontend(ctx, dockerfileFrontend, r.Attrs, nil)
		if err != nil {
			return nil, fromStatus(err)
		}
		out := &engine.FrontendResult{Meta: map[string]string{}}
		for k, v := range res.meta {
			out.Meta[k] = string(v)
		}
		if r.Attrs["requestid"] != "" {
			return out, nil
		}
		out.Plan, out.Export, err = b.plan(res)
		return out, err
	}
}

// fromStatus is an error that has come through a frontend, with the places that it tells.
func fromStatus(err error) error {
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	out := diag.Errorf(diag.Failed, "%s", st.Message())
	if st.Code() == codes.Canceled {
		out.Kind = diag.Canceled
	}
	for _, d := range st.Proto().GetDetails() {
		var src errdefs.Source
		if d.GetTypeUrl() == typeURL+"Source+json" && strictjson.Unmarshal(d.GetValue(), &src) == nil {
			out.At = append(out.At, llb.Spans(src.Info, src.Ranges)...)
		}
	}
	return out
}

// sinkListener shows what a frontend says to people.
type sinkListener event.Sink

func (s sinkListener) take(e event.Event) { event.Sink(s).Emit(e) }

func (s sinkListener) say(r *control.StatusResponse) {
	for _, w := range r.Warnings {
		x := &diag.Warning{Msg: string(w.Short), URL: w.Url, Level: int(w.Level), At: llb.Spans(w.Info, w.Ranges)}
		for _, d := range w.Detail {
			x.Detail = append(x.Detail, string(d))
		}
		event.Sink(s).Emit(event.Event{Kind: event.Warn, Warning: x})
	}
}
