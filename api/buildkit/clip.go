package buildkit

import (
	"fmt"
	"time"

	"github.com/docker/go-units"
	control "github.com/moby/buildkit/api/services/control"
)

// LogLimits bound what each output of a step sends to clients that watch a build, as BUILDKIT_STEP_LOG_MAX_SIZE and
// BUILDKIT_STEP_LOG_MAX_SPEED do. The history keeps the whole log.
type LogLimits struct {
	Size  int64 // bytes; -1 = no limit at all
	Speed int64 // bytes for each second that the step has run; -1 = Size alone
}

// clipTail is how many of the last bytes of a clipped output are sent when its step ends.
const clipTail = 256 << 10

// clipper clips the logs of one build for one client.
type clipper struct {
	limits  LogLimits
	send    func(*control.StatusResponse) error
	started map[string]time.Time
	outputs map[string]map[int64]*clippedOutput // by vertex and stream
}

// clippedOutput is one output of a step.
type clippedOutput struct {
	size     int64 // bytes that the step has written
	clipping bool
	clipped  bool   // something was left out
	tail     []byte // the last bytes, counted from the first write that was clipped
}

// clip returns a function that sends what send would, with logs within the limits.
func (l *LogLimits) clip(send func(*control.StatusResponse) error) func(*control.StatusResponse) error {
	if l == nil || l.Size < 0 {
		return send
	}
	c := &clipper{limits: *l, send: send, started: map[string]time.Time{}, outputs: map[string]map[int64]*clippedOutput{}}
	return c.next
}

// next sends a message. The ends of clipped outputs are sent before the ends of their steps.
func (c *clipper) next(m *control.StatusResponse) error {
	for _, v := range m.Vertexes {
		if v.Started == nil {
			continue
		}
		if at := v.Started.AsTime(); !at.Equal(c.started[v.Digest]) { // it runs, or runs again
			c.started[v.Digest] = at
			delete(c.outputs, v.Digest)
		}
	}
	var logs []*control.VertexLog
	for _, l := range m.Logs {
		if l = c.log(l); len(l.Msg) > 0 {
			logs = append(logs, l)
		}
	}
	now := &control.StatusResponse{Statuses: m.Statuses, Warnings: m.Warnings, Logs: logs}
	var tails []*control.VertexLog
	var ended []*control.Vertex
	for _, v := range m.Vertexes {
		rest := c.rest(v)
		if len(rest) == 0 {
			now.Vertexes = append(now.Vertexes, v)
			continue
		}
		tails, ended = append(tails, rest...), append(ended, v)
	}
	err := c.send(now)
	for _, l := range tails {
		if err == nil {
			err = c.send(&control.StatusResponse{Logs: []*control.VertexLog{l}})
		}
	}
	if err == nil && len(ended) > 0 {
		err = c.send(&control.StatusResponse{Vertexes: ended})
	}
	return err
}

// log returns what is sent of a piece of a log.
func (c *clipper) log(l *control.VertexLog) *control.VertexLog {
	all := c.outputs[l.Vertex]
	if all == nil {
		all = map[int64]*clippedOutput{}
		c.outputs[l.Vertex] = all
	}
	o := all[l.Stream]
	if o == nil {
		o = &clippedOutput{}
		all[l.Stream] = o
	}
	most, reason := c.most(l)
	n := int64(len(l.Msg))
	room := min(max(most-o.size, 0), n)
	o.size += n
	if room < n || o.clipped {
		o.clipped = true
		o.keep(l.Msg)
	}
	if room == n {
		o.clipping = false
		return l
	}
	out := &control.VertexLog{Vertex: l.Vertex, Stream: l.Stream, Timestamp: l.Timestamp, Msg: l.Msg[:room:room]}
	if !o.clipping {
		o.clipping = true
		out.Msg = fmt.Appendf(out.Msg, "\n[output clipped, log limit %s reached]\n", reason)
	}
	return out
}

// most returns how many bytes an output may have sent at the time of a log, and how the limit is called.
func (c *clipper) most(l *control.VertexLog) (most int64, reason string) {
	if c.limits.Speed >= 0 {
		at := l.Timestamp.AsTime()
		if c.started[l.Vertex].IsZero() {
			c.started[l.Vertex] = at
		}
		run := max(at.Sub(c.started[l.Vertex]), 1)
		seconds := int64((run + time.Second - 1) / time.Second)
		if most := seconds * c.limits.Speed; most <= c.limits.Size {
			return most, units.BytesSize(float64(c.limits.Speed)) + "/s"
		}
	}
	return c.limits.Size, units.BytesSize(float64(c.limits.Size))
}

// rest returns the ends of the clipped outputs of a step that has ended, and forgets them.
func (c *clipper) rest(v *control.Vertex) []*control.VertexLog {
	if v.Completed == nil {
		return nil
	}
	var out []*control.VertexLog
	for _, stream := range []int64{1, 2} {
		if o := c.outputs[v.Digest][stream]; o != nil && o.clipped {
			out = append(out, &control.VertexLog{Vertex: v.Digest, Stream: stream, Timestamp: v.Completed, Msg: o.last()})
		}
	}
	delete(c.outputs, v.Digest)
	return out
}

func (o *clippedOutput) keep(data []byte) {
	if o.tail = append(o.tail, data...); len(o.tail) > 2*clipTail {
		o.tail = append(o.tail[:0], o.tail[len(o.tail)-clipTail:]...)
	}
}

func (o *clippedOutput) last() []byte { return o.tail[max(len(o.tail)-clipTail, 0):] }
