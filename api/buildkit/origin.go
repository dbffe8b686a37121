package buildkit

import (
	"bytes"
	"context"
	"errors"

	control "github.com/moby/buildkit/api/services/control"

	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/provenance"
)

// origin is the provenance of one result. It is part of each record, whether or not somebody asked for attestations.
type origin struct {
	id   string // of the platform; "" = the only result
	text []byte
}

// origins collects what a build's results were made from while that is known. It is written when the returned function is called:
// most records are never looked at.
func origins(ctx context.Context, job *engine.Job, plan *image.Plan, opt engine.ExportOptions) (func() ([]origin, error), error) {
	write, err := job.Origins(ctx, plan, opt)
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(write))
	for i, t := range plan.Targets {
		if opt.Multi {
			ids[i] = t.ID
		}
	}
	return func() ([]origin, error) {
		var out []origin
		for i, w := range write {
			if w == nil {
				continue
			}
			text, err := w()
			if err != nil {
				return nil, err
			}
			out = append(out, origin{ids[i], text})
		}
		return out, nil
	}, nil
}

// addOrigins writes what the results of a build were made from, if that was not done before. The caller holds the lock.
func (h *pastBuilds) addOrigins(r *record) {
	if r.origins == nil {
		return
	}
	list, err := r.origins()
	r.origins = nil
	added := map[string][]*control.Descriptor{}
	for _, o := range list {
		d, e := r.keep(h.files.Put(typeProvenance, bytes.NewReader(o.text)))
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		d.Annotations = map[string]string{"in-toto.io/predicate-type": provenance.TypeV1}
		added[o.id] = append(added[o.id], d)
	}
	if err != nil {
		h.log.Warn("the record of a build does not say what it was made from", "build", r.Ref, "err", err)
	}
	h.change(r, func(rec *control.BuildHistoryRecord) {
		for id, ds := range added {
			to := rec.Result
			if id != "" {
				if rec.Results == nil {
					rec.Results = map[string]*control.BuildResultInfo{}
				}
				to = &control.BuildResultInfo{}
				rec.Results[id] = to
			}
			to.Attestations = append(to.Attestations, ds...)
		}
	})
}
