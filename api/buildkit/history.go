package buildkit

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/history"
)

// HistoryOptions say which ended builds are remembered. One goes when it is neither among the last Entries nor younger than
// Age; a pinned one stays. The zero value is 50 builds, and all of two days.
type HistoryOptions struct {
	Entries  int
	Age      time.Duration
	Disabled bool // nothing is remembered
}

// record is one build in the history.
type record struct {
	*control.BuildHistoryRecord
	journal *journal // of a build under way
	blobs   []history.Blob
	wanted  chan struct{}            // closed when somebody asks for the record to be final
	final   chan struct{}            // closed when it is: its trace is there, if there is one
	origins func() ([]origin, error) // not written yet; nil = written, or not known
	size    int64                    // of the record in memory
}

// Limits of the history of one tenant: clients choose how many builds they begin and what these are called, ask for and answer.
const (
	maxRecord       = 256 << 10 // bytes of one record; what is longer is shortened
	maxRecords      = 10_000
	maxRecordsBytes = 64 << 20 // of all of them in memory
)

// disk returns the bytes that a record has on disk.
func (r *record) disk() int64 {
	n := r.size
	for _, b := range r.blobs {
		n += b.Size
	}
	return n
}

// pastBuilds remembers builds: those under way, and those that have ended, whose records and logs are on the disk.
type pastBuilds struct {
	opt   HistoryOptions
	log   *slog.Logger
	files *history.Store
	most  int64          // bytes on disk
	saved sync.WaitGroup // what is still being added to records

	mu      sync.Mutex
	records map[string]*record
	readers map[chan *control.BuildHistoryEvent]bool
}

func newHistory(dir string, opt HistoryOptions, most int64, log *slog.Logger) (*pastBuilds, error) {
	if opt == (HistoryOptions{}) {
		opt.Entries, opt.Age = 50, 48*time.Hour
	}
	h := &pastBuilds{opt: opt, most: most, log: log, records: map[string]*record{}, readers: map[chan *control.BuildHistoryEvent]bool{}}
	files, old, err := history.Open(dir, log)
	if err != nil {
		return nil, err
	}
	h.files = files
	for _, o := range old {
		r, err := decodeRecord(o)
		if err != nil {
			log.Warn("a record of a build cannot be read, and is removed", "build", o.Name, "err", err)
			if err := files.Delete(o.Name); err != nil {
				return nil, err
			}
			continue
		}
		h.records[o.Name] = r
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.trim()
	return h, nil
}

// backlog is how many events a slow reader may be behind; then it misses some.
const backlog = 256

func (h *pastBuilds) tell(t control.BuildHistoryEventType, r *control.BuildHistoryRecord) {
	for c := range h.readers {
		select {
		case c <- &control.BuildHistoryEvent{Type: t, Record: r}:
		default:
		}
	}
}

// begin adds a build that starts now.
func (h *pastBuilds) begin(req *control.SolveRequest, j *journal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := &record{journal: j, wanted: make(chan struct{}), final: make(chan struct{}), BuildHistoryRecord: &control.BuildHistoryRecord{
		Ref: req.Ref, Frontend: req.Frontend, FrontendAttrs: public(req.FrontendAttrs), Exporters: publicExporters(req.Exporters), CreatedAt: timestamppb.Now(), Generation: 1,
	}}
	r.set(r.BuildHistoryRecord)
	h.records[req.Ref] = r
	h.tell(control.BuildHistoryEventType_STARTED, r.BuildHistoryRecord)
}

// public leaves out what only the session needs, and the secrets of URLs.
func public(attrs map[string]string) map[string]string {
	out := maps.Clone(attrs)
	for k, v := range out {
		if out[k] = diag.Redact(v); strings.HasPrefix(k, localSession) {
			delete(out, k)
		}
	}
	return out
}

func publicExporters(all []*control.Exporter) []*control.Exporter {
	var out []*control.Exporter
	for _, x := range all {
		c := x.CloneVT()
		for k, v := range c.GetAttrs() {
			c.Attrs[k] = diag.Redact(v)
		}
		out = append(out, c)
	}
	return out
}

// change makes a new version of a record and tells it. The caller holds the lock. A record that cannot be written is kept
// while the process lives.
func (h *pastBuilds) change(r *record, f func(*control.BuildHistoryRecord)) {
	rec := r.CloneVT()
	f(rec)
	rec.Generation++
	r.set(rec)
	rec = r.BuildHistoryRecord
	if err := saveRecord(h.files, r); err != nil {
		h.log.Warn("the record of a build cannot be kept", "build", r.Ref, "err", err)
	}
	h.tell(control.BuildHistoryEventType_COMPLETE, rec)
}

// trim forgets what is too old, and the oldest builds of too many.
func (h *pastBuilds) trim() {
	memory, disk := h.pinned()
	ended := slices.DeleteFunc(slices.Collect(maps.Values(h.records)), func(r *record) bool { return r.CompletedAt == nil || r.Pinned })
	slices.SortFunc(ended, func(a, b *record) int { return b.CompletedAt.AsTime().Compare(a.CompletedAt.AsTime()) })
	for i, r := range ended {
		memory, disk = memory+r.size, disk+r.disk()
		old := i >= h.opt.Entries && time.Since(r.CompletedAt.AsTime()) >= h.opt.Age
		if old || i >= max(h.opt.Entries, maxRecords) || memory > maxRecordsBytes || disk > h.most {
			h.drop(r)
		}
	}
}

// pinned returns the bytes of pinned records in memory and on disk.
func (h *pastBuilds) pinned() (memory, disk int64) {
	for _, r := range h.records {
		if r.Pinned {
			memory, disk = memory+r.size, disk+r.disk()
		}
	}
	return memory, disk
}

func (h *pastBuilds) drop(r *record) {
	delete(h.records, r.Ref)
	if err := h.files.Delete(r.Ref); err != nil {
		h.log.Warn("the record of a build cannot be removed", "build", r.Ref, "err", err)
	}
	h.tell(control.BuildHistoryEventType_DELETED, &control.BuildHistoryRecord{Ref: r.Ref})
}

// find returns a build that has ended.
func (h *pastBuilds) find(ref string) *record {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.records[ref]; r != nil && r.CompletedAt != nil {
		return &record{BuildHistoryRecord: r.BuildHistoryRecord}
	}
	return nil
}

// list returns the builds that a request asks for, and a channel of what happens from now on. Those under way come first; if
// there is a limit, it is of the others, of which the latest come first.
func (h *pastBuilds) list(want func(*control.BuildHistoryRecord) bool, limit int) ([]*control.BuildHistoryEvent, chan *control.BuildHistoryEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := slices.SortedFunc(maps.Values(h.records), func(a, b *record) int {
		if (a.CompletedAt == nil) != (b.CompletedAt == nil) {
			return cmp.Compare(asInt(a.CompletedAt != nil), asInt(b.CompletedAt != nil))
		}
		return cmp.Or(a.CreatedAt.AsTime().Compare(b.CreatedAt.AsTime()), strings.Compare(a.Ref, b.Ref)) * (1 - 2*asInt(limit > 0))
	})
	var out []*control.BuildHistoryEvent
	ended := 0
	for _, r := range all {
		if !want(r.BuildHistoryRecord) {
			continue
		}
		t := control.BuildHistoryEventType_STARTED
		if r.CompletedAt != nil {
			if ended++; limit > 0 && ended > limit {
				break
			}
			h.addOrigins(r)
			t = control.BuildHistoryEventType_COMPLETE
		}
		out = append(out, &control.BuildHistoryEvent{Type: t, Record: r.BuildHistoryRecord}) // which never changes
	}
	c := make(chan *control.BuildHistoryEvent, backlog)
	h.readers[c] = true
	return out, c
}

func asInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (h *pastBuilds) leave(c chan *control.BuildHistoryEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.readers, c)
}

// ListenBuildHistory tells the builds that are known, and what happens to them until the client leaves.
func (s *Server) ListenBuildHistory(req *control.BuildHistoryRequest, stream control.Control_ListenBuildHistoryServer) error {
	if err := s.sayTime(stream); err != nil {
		return err
	}
	match, err := historyFilter(req.Filter)
	if err != nil {
		return err
	}
	if req.Limit < 0 {
		return diag.Errorf(diag.Invalid, "invalid limit %d", req.Limit)
	}
	want := func(r *control.BuildHistoryRecord) bool {
		return (req.Ref == "" || r.Ref == req.Ref) && (!req.ActiveOnly || r.CompletedAt == nil) && match(r)
	}
	h := s.of(stream.Context()).history
	known, news := h.list(want, int(req.Limit))
	defer h.leave(news)
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
			gone := e.Type == control.BuildHistoryEventType_DELETED // of which only the name is left
			if (req.Ref != "" && e.Record.Ref != req.Ref) || !gone && !match(e.Record) {
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

// UpdateBuildHistory pins, unpins, completes or forgets a build.
func (s *Server) UpdateBuildHistory(ctx context.Context, req *control.UpdateBuildHistoryRequest) (*control.UpdateBuildHistoryResponse, error) {
	h := s.of(ctx).history
	if req.Finalize || req.Delete {
		if err := h.finalize(ctx, req.Ref); err != nil {
			return nil, err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.records[req.Ref]
	switch {
	case req.Finalize: // done, or of a build that is not recorded
	case r == nil:
		return nil, diag.Errorf(diag.NotFound, "there is no build %s", req.Ref)
	case req.Delete && r.CompletedAt == nil:
		return nil, diag.Errorf(diag.Conflict, "build %s has not ended", req.Ref)
	case req.Delete:
		h.drop(r)
	case req.Pinned != r.Pinned:
		if memory, disk := h.pinned(); req.Pinned && (memory+r.size > maxRecordsBytes/2 || disk+r.disk() > h.most/2) {
			return nil, diag.Errorf(diag.Exhausted, "the builds that are pinned take half of what the history may have").
				WithHint("unpin some of them")
		}
		h.change(r, func(rec *control.BuildHistoryRecord) { rec.Pinned = req.Pinned })
		h.trim()
	}
	return &control.UpdateBuildHistoryResponse{}, nil
}

// Limits of the parts of a record that is too large.
const (
	maxRecordText  = 4 << 10
	maxRecordParts = 50
)

// set changes what the record says. Of more than maxRecord bytes, long texts and lists are cut.
func (r *record) set(b *control.BuildHistoryRecord) {
	if b.SizeVT() > maxRecord {
		b = b.CloneVT() // the client's answer has parts of it
		shorten(b.ProtoReflect())
		if b.SizeVT() > maxRecord {
			b.FrontendAttrs, b.Exporters, b.ExporterResponse, b.Result, b.Results = nil, nil, nil, nil, nil
		}
	}
	r.BuildHistoryRecord, r.size = b, int64(b.SizeVT())
}

func shorten(m protoreflect.Message) {
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case field.IsMap():
			all := v.Map()
			var keys []protoreflect.MapKey
			all.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
				keys = append(keys, k)
				return true
			})
			slices.SortFunc(keys, func(a, b protoreflect.MapKey) int { return strings.Compare(a.String(), b.String()) })
			for i, k := range keys {
				if i >= maxRecordParts || len(k.String()) > maxRecordText {
					all.Clear(k)
					continue
				}
				all.Set(k, shortened(field.MapValue(), all.Get(k)))
			}
		case field.IsList():
			all := v.List()
			all.Truncate(min(all.Len(), maxRecordParts))
			for i := range all.Len() {
				all.Set(i, shortened(field, all.Get(i)))
			}
		default:
			m.Set(field, shortened(field, v))
		}
		return true
	})
}

func shortened(field protoreflect.FieldDescriptor, v protoreflect.Value) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.StringKind:
		if s := v.String(); len(s) > maxRecordText {
			return protoreflect.ValueOfString(strings.ToValidUTF8(s[:maxRecordText], "") + "...")
		}
	case protoreflect.BytesKind:
		if b := v.Bytes(); len(b) > maxRecordText {
			return protoreflect.ValueOfBytes(nil)
		}
	case protoreflect.MessageKind:
		shorten(v.Message())
	}
	return v
}
