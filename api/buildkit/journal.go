package buildkit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
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

// journal is what a build says, in BuildKit's terms. Any number of clients may read it, from the beginning, also after the
// build's end.
type journal struct {
	mu      sync.Mutex
	entries spool
	full    bool // an entry was not kept
	users   int  // that read the entries or may do so; with none they are gone
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

// newJournal returns the journal of a build. What is too much for the memory goes to a file in dir. It is kept until forget.
func newJournal(dir string) *journal {
	return &journal{entries: spool{dir: dir, most: maxSpool}, users: 1, changed: make(chan struct{}), steps: map[graph.Digest]*step{}}
}

// forget gives up the entries when nobody reads them any more.
func (j *journal) forget() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.users--; j.users == 0 {
		j.entries.close()
	}
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

// append keeps an entry. Logs beyond the bound are left out, once with a word; what happens to steps has room above it.
func (j *journal) append(r *control.StatusResponse) {
	if len(r.Logs) > 0 && j.entries.size() > j.entries.most/4*3 {
		if j.full {
			return
		}
		j.full = true
		r = &control.StatusResponse{Logs: []*control.VertexLog{{
			Vertex: r.Logs[0].Vertex, Timestamp: r.Logs[0].Timestamp, Stream: r.Logs[0].Stream,
			Msg: fmt.Appendf(nil, "\n[further output is not kept: the steps of this build wrote more than %d MiB]\n", j.entries.size()>>20),
		}}}
	}
	if j.users == 0 || j.entries.add(r) != nil { // a full disk costs the log, not the build
		return
	}
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

// read returns what comes after an offset; part is false if it is all that there is for now.
func (j *journal) read(offset int64) (news io.Reader, part, closed bool, changed chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.entries.from(offset), offset < j.entries.filed, j.closed, j.changed
}

// follow sends the journal until it is closed.
func (j *journal) follow(ctx context.Context, send func(*control.StatusResponse) error) error {
	j.mu.Lock()
	if j.users == 0 {
		j.mu.Unlock()
		return nil
	}
	j.users++
	j.mu.Unlock()
	defer j.forget()
	for offset := int64(0); ; {
		news, part, closed, changed := j.read(offset)
		n, err := batched(bufio.NewReaderSize(news, 64<<10), send)
		if offset += n; err != nil {
			return err
		}
		if part {
			continue
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

// batched sends entries in few messages of a moderate size, and returns how many bytes they take in the journal.
func batched(entries io.Reader, send func(*control.StatusResponse) error) (read int64, err error) {
	var m control.StatusResponse
	size := int64(0)
	for {
		r, n, err := readMessage(entries)
		if err != nil && !errors.Is(err, io.EOF) {
			return read, err
		}
		if size > 0 && (err != nil || size+n > 1<<20) {
			if err := send(&m); err != nil {
				return read, err
			}
			m.Reset()
			size = 0
		}
		if err != nil {
			return read, nil
		}
		m.Vertexes = append(m.Vertexes, r.Vertexes...)
		m.Statuses = append(m.Statuses, r.Statuses...)
		m.Logs = append(m.Logs, r.Logs...)
		m.Warnings = append(m.Warnings, r.Warnings...)
		size, read = size+n, read+n
	}
}
