package buildkit

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	control "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strata-build/strata/diag"
)

// record is one build in the history.
type record struct {
	*control.BuildHistoryRecord
	journal *journal
	order   int
}

// history remembers builds, in memory: those under way, and the last ones that have ended. Pinned ones stay.
type history struct {
	mu      sync.Mutex
	keep    int
	next    int
	records map[string]*record
	readers map[chan *control.BuildHistoryEvent]bool
}

func newHistory(keep int) *history {
	return &history{keep: keep, records: map[string]*record{}, readers: map[chan *control.BuildHistoryEvent]bool{}}
}

// backlog is how many events a slow reader may be behind; then it misses some.
const backlog = 256

func (h *history) tell(t control.BuildHistoryEventType, r *control.BuildHistoryRecord) {
	for c := range h.readers {
		select {
		case c <- &control.BuildHistoryEvent{Type: t, Record: r}:
		default:
		}
	}
}

// begin adds a build that starts now.
func (h *history) begin(req *control.SolveRequest, j *journal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next++
	r := &record{order: h.next, journal: j, BuildHistoryRecord: &control.BuildHistoryRecord{
		Ref: req.Ref, Frontend: req.Frontend, FrontendAttrs: public(req.FrontendAttrs), Exporters: req.Exporters, CreatedAt: timestamppb.Now(), Generation: 1,
	}}
	h.records[req.Ref] = r
	h.tell(control.BuildHistoryEventType_STARTED, r.CloneVT())
}

// public leaves out what only the session needs.
func public(attrs map[string]string) map[string]string {
	out := maps.Clone(attrs)
	for k := range out {
		if strings.HasPrefix(k, localSession) {
			delete(out, k)
		}
	}
	return out
}

// end notes how a build ended, and forgets the oldest.
func (h *history) end(b *build, resp map[string]string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.records[b.ref]
	if r == nil {
		return
	}
	total, done, cached, warnings := r.journal.counts()
	rec := r.CloneVT()
	rec.CompletedAt, rec.ExporterResponse, rec.Generation = timestamppb.Now(), resp, rec.Generation+1
	rec.NumTotalSteps, rec.NumCompletedSteps, rec.NumCachedSteps, rec.NumWarnings = int32(total), int32(done), int32(cached), int32(warnings)
	rec.Result = &control.BuildResultInfo{Results: map[int64]*control.Descriptor{}}
	for i, d := range b.results {
		rec.Result.Results[int64(i)] = d
		if i == 0 {
			rec.Result.ResultDeprecated = d
		}
	}
	if err != nil {
		rec.Error = status.Convert(toStatus(err)).Proto()
	}
	r.BuildHistoryRecord = rec
	h.tell(control.BuildHistoryEventType_COMPLETE, rec)
	ended := slices.DeleteFunc(slices.Collect(maps.Values(h.records)), func(r *record) bool { return r.CompletedAt == nil || r.Pinned })
	slices.SortFunc(ended, func(a, b *record) int { return cmp.Compare(a.order, b.order) })
	for len(ended) > h.keep {
		h.drop(ended[0])
		ended = ended[1:]
	}
}

func (h *history) drop(r *record) {
	delete(h.records, r.Ref)
	h.tell(control.BuildHistoryEventType_DELETED, r.BuildHistoryRecord)
}

// images are the images that the builds in the history have made.
func (h *history) images() []*control.Descriptor {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := map[string]bool{}
	var out []*control.Descriptor
	for _, r := range h.records {
		for _, d := range r.GetResult().GetResults() {
			if !seen[d.Digest] {
				seen[d.Digest] = true
				out = append(out, d)
			}
		}
	}
	return out
}

// find returns a build that has ended.
func (h *history) find(ref string) *record {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.records[ref]; r != nil && r.CompletedAt != nil {
		return r
	}
	return nil
}

// list returns the builds that a request asks for, oldest first, and a channel of what happens from now on.
func (h *history) list(want func(*control.BuildHistoryRecord) bool, limit int) ([]*control.BuildHistoryEvent, chan *control.BuildHistoryEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := slices.SortedFunc(maps.Values(h.records), func(a, b *record) int { return cmp.Compare(a.order, b.order) })
	var out []*control.BuildHistoryEvent
	for _, r := range all {
		if !want(r.BuildHistoryRecord) {
			continue
		}
		t := control.BuildHistoryEventType_STARTED
		if r.CompletedAt != nil {
			t = control.BuildHistoryEventType_COMPLETE
		}
		out = append(out, &control.BuildHistoryEvent{Type: t, Record: r.CloneVT()})
	}
	if limit > 0 && len(out) > limit {
		out = out[len(out)-limit:]
	}
	c := make(chan *control.BuildHistoryEvent, backlog)
	h.readers[c] = true
	return out, c
}

func (h *history) leave(c chan *control.BuildHistoryEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.readers, c)
}

// ListenBuildHistory tells the builds that are known, and what happens to them until the client leaves.
func (s *Server) ListenBuildHistory(req *control.BuildHistoryRequest, stream control.Control_ListenBuildHistoryServer) error {
	match, err := historyFilter(req.Filter)
	if err != nil {
		return err
	}
	want := func(r *control.BuildHistoryRecord) bool {
		return (req.Ref == "" || r.Ref == req.Ref) && (!req.ActiveOnly || r.CompletedAt == nil) && match(r)
	}
	known, news := s.history.list(want, int(req.Limit))
	defer s.history.leave(news)
	for _, e := range known {
		if err := stream.Send(e); err != nil {
			return err
		}
	}
	if req.EarlyExit {
		return nil
	}
	for {
		select {
		case e := <-news:
			if (req.Ref != "" && e.Record.Ref != req.Ref) || !match(e.Record) {
				continue
			}
			if err := stream.Send(e); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}

// historyFilter makes a predicate of filters such as "status==error" and "ref==X", of which one must hold.
func historyFilter(filters []string) (func(*control.BuildHistoryRecord) bool, error) {
	return matcher(filters, func(r *control.BuildHistoryRecord, field string) (string, bool) {
		switch field {
		case "ref":
			return r.GetRef(), true
		case "repository":
			return r.GetFrontendAttrs()["vcs:source"], true
		case "status":
			switch {
			case r.GetCompletedAt() == nil:
				return "running", true
			case r.GetError() == nil:
				return "completed", true
			case r.GetError().GetCode() == 1:
				return "canceled", true
			}
			return "error", true
		}
		return "", false
	})
}

// UpdateBuildHistory pins, unpins or forgets a build.
func (s *Server) UpdateBuildHistory(_ context.Context, req *control.UpdateBuildHistoryRequest) (*control.UpdateBuildHistoryResponse, error) {
	h := s.history
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.records[req.Ref]
	switch {
	case r == nil && req.Finalize:
		return &control.UpdateBuildHistoryResponse{}, nil // of a build that is not recorded
	case r == nil:
		return nil, diag.Errorf(diag.NotFound, "there is no build %s", req.Ref)
	case req.Finalize: // nothing is still to be written
	case req.Delete && r.CompletedAt == nil:
		return nil, diag.Errorf(diag.Conflict, "build %s has not ended", req.Ref)
	case req.Delete:
		h.drop(r)
	default:
		rec := r.CloneVT()
		rec.Pinned, rec.Generation = req.Pinned, rec.Generation+1
		r.BuildHistoryRecord = rec
		h.tell(control.BuildHistoryEventType_COMPLETE, rec)
	}
	return &control.UpdateBuildHistoryResponse{}, nil
}
