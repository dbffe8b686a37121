package buildkit

import (
	"context"
	"fmt"
	"sync"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/llb"
)

// maxJournal bounds the bytes of logs that a journal keeps for those who come later. Who reads along misses nothing.
const maxJournal = 64 << 20

// journal is what a build says, in BuildKit's terms. Any number of clients may read it, from the beginning, also after the
// build's end.
type journal struct {
	mu      sync.Mutex
	entries []*control.StatusResponse
	kept    int // bytes of logs
	changed chan struct{}
	closed  bool

	steps    map[graph.Digest]*step
	first    graph.Digest // the vertex that warnings without one are shown at
	failed   graph.Digest // the first vertex that failed
	cached   int
	done     int
	warnings int
}

// step is the state of one vertex.
type step struct {
	v     *control.Vertex
	items map[string]*timestamppb.Timestamp // when progress of an item began
	ended bool
}

func newJournal() *journal {
	return &journal{changed: make(chan struct{}), steps: map[graph.Digest]*step{}}
}

// take is an event.Sink.
func (j *journal) take(e event.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return
	}
	if r := j.translate(&e); r != nil {
		j.append(r)
	}
}

func (j *journal) append(r *control.StatusResponse) {
	for _, l := range r.Logs {
		if j.kept += len(l.Msg); j.kept > maxJournal {
			return
		}
	}
	j.entries = append(j.entries, r)
	close(j.changed)
	j.changed = make(chan struct{})
}

func (j *journal) translate(e *event.Event) *control.StatusResponse {
	at := timestamppb.New(e.Time)
	switch e.Kind {
	case event.Planned:
		return j.planned(e)
	case event.Started, event.Done:
		return j.moved(e, at)
	case event.Log:
		return &control.StatusResponse{Logs: []*control.VertexLog{{Vertex: e.Vertex.String(), Timestamp: at, Stream: int64(e.Stream), Msg: e.Data}}}
	case event.Progress:
		return j.progress(e, at)
	case event.Warn:
		if e.Warning == nil {
			return nil
		}
		return j.warn(e.Vertex, e.Warning)
	case event.Message:
		// Messages belong to no vertex, and clients show nothing else: each is one of its own.
		d := digest.FromString("message\x00" + e.Text)
		return &control.StatusResponse{Vertexes: []*control.Vertex{{Digest: d.String(), Name: "[internal] " + e.Text, Started: at, Completed: at}}}
	}
	return nil
}

func (j *journal) planned(e *event.Event) *control.StatusResponse {
	if j.steps[e.Vertex] != nil {
		return nil
	}
	v := &control.Vertex{Digest: e.Vertex.String(), Name: e.Name}
	for _, in := range e.Inputs {
		v.Inputs = append(v.Inputs, in.String())
	}
	if e.Group != "" {
		v.ProgressGroup = &pb.ProgressGroup{Id: digest.FromString(e.Group).Encoded(), Name: e.Group}
	}
	j.steps[e.Vertex] = &step{v: v, items: map[string]*timestamppb.Timestamp{}}
	if j.first == "" {
		j.first = e.Vertex
	}
	return vertex(v)
}

// moved is the beginning or the end of a vertex. It may run again after an end.
func (j *journal) moved(e *event.Event, at *timestamppb.Timestamp) *control.StatusResponse {
	s := j.steps[e.Vertex]
	if s == nil {
		return nil
	}
	if e.Kind == event.Started {
		s.v.Started, s.v.Completed, s.v.Error, s.v.Cached = at, nil, "", false
		return vertex(s.v)
	}
	if s.v.Started == nil {
		s.v.Started = at
	}
	s.v.Completed, s.v.Cached, s.v.Error = at, e.Cached, e.Error
	if e.Error != "" && j.failed == "" && e.Error != context.Canceled.Error() {
		j.failed = e.Vertex
	}
	if !s.ended {
		s.ended = true
		j.done++
		if e.Cached {
			j.cached++
		}
	}
	return vertex(s.v)
}

func vertex(v *control.Vertex) *control.StatusResponse {
	return &control.StatusResponse{Vertexes: []*control.Vertex{v.CloneVT()}}
}

func (j *journal) progress(e *event.Event, at *timestamppb.Timestamp) *control.StatusResponse {
	s := j.steps[e.Vertex]
	if s == nil || e.Item == "" {
		return nil
	}
	began := s.items[e.Item]
	if began == nil {
		began = at
		s.items[e.Item] = at
	}
	st := &control.VertexStatus{
		ID: e.Item, Vertex: e.Vertex.String(), Name: e.Action, Current: e.Current, Total: e.Total, Timestamp: at, Started: began,
	}
	if e.Complete {
		st.Completed = at
	}
	return &control.StatusResponse{Statuses: []*control.VertexStatus{st}}
}

func (j *journal) warn(v graph.Digest, w *diag.Warning) *control.StatusResponse {
	if v == "" {
		v = j.first
	}
	j.warnings++
	x := &control.VertexWarning{Vertex: v.String(), Level: int64(max(w.Level, 1)), Short: []byte(w.Msg), Url: w.URL}
	if w.Rule != "" {
		x.Short = []byte(w.Rule + ": " + w.Msg)
	}
	if len(w.At) > 0 {
		x.Short = fmt.Appendf(x.Short, " (line %d)", w.At[0].First)
	}
	for _, d := range w.Detail {
		x.Detail = append(x.Detail, []byte(d))
	}
	for _, at := range w.At {
		x.Info = llb.SourceInfo(at.Source)
		x.Ranges = append(x.Ranges, llb.Ranges(at)...)
	}
	return &control.StatusResponse{Warnings: []*control.VertexWarning{x}}
}

// say adds something that is in BuildKit's terms already.
func (j *journal) say(r *control.StatusResponse) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.closed {
		j.warnings += len(r.Warnings)
		j.append(r)
	}
}

// close ends the journal. Vertices that have begun and not ended have ended with the build.
func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := timestamppb.Now()
	for _, s := range j.steps {
		if s.v.Started != nil && s.v.Completed == nil {
			s.v.Completed, s.v.Error = now, context.Canceled.Error()
			j.append(vertex(s.v))
		}
	}
	j.closed = true
	close(j.changed)
}

// failure names the vertex that failed, if one did.
func (j *journal) failure() graph.Digest {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failed
}

// counts returns the numbers of steps (all, ended, cached) and of warnings.
func (j *journal) counts() (total, done, cached, warnings int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.steps), j.done, j.cached, j.warnings
}

// gather is how long entries are collected for one message: a screen is redrawn no more often.
const gather = 20 * time.Millisecond

// follow sends the journal until it is closed.
func (j *journal) follow(ctx context.Context, send func(*control.StatusResponse) error) error {
	for n := 0; ; {
		j.mu.Lock()
		news, changed, closed := j.entries[n:], j.changed, j.closed
		n = len(j.entries)
		j.mu.Unlock()
		if err := batched(news, send); err != nil {
			return err
		}
		if closed {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		pause := time.NewTimer(gather)
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		pause.Stop()
	}
}

// batched sends entries in few messages of a moderate size.
func batched(all []*control.StatusResponse, send func(*control.StatusResponse) error) error {
	var m control.StatusResponse
	size := 0
	for i, r := range all {
		m.Vertexes = append(m.Vertexes, r.Vertexes...)
		m.Statuses = append(m.Statuses, r.Statuses...)
		m.Logs = append(m.Logs, r.Logs...)
		m.Warnings = append(m.Warnings, r.Warnings...)
		size += r.SizeVT()
		if i == len(all)-1 || size > 1<<20 {
			if err := send(&m); err != nil {
				return err
			}
			m.Reset()
			size = 0
		}
	}
	return nil
}
