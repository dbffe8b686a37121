package buildkit

import (
	"bytes"
	"strings"
	"testing"
	"time"

	control "github.com/moby/buildkit/api/services/control"

	"github.com/strata-build/strata/event"
)

// watched is what a client gets of a step's output: lines of 1000 bytes, a number each second.
func watched(t *testing.T, limits *LogLimits, lines, each int) (log string, whole int) {
	t.Helper()
	j := newJournal(t.TempDir())
	begin := time.Unix(1000, 0)
	j.take(event.Event{Kind: event.Planned, Vertex: "sha256:a", Name: "step"})
	j.take(event.Event{Kind: event.Started, Vertex: "sha256:a", Time: begin})
	for i := range lines {
		at := begin.Add(time.Duration(i/each)*time.Second + time.Millisecond)
		line := append(bytes.Repeat([]byte{byte('a' + i%26)}, 999), '\n')
		j.take(event.Event{Kind: event.Log, Vertex: "sha256:a", Stream: 1, Time: at, Data: line})
	}
	j.take(event.Event{Kind: event.Done, Vertex: "sha256:a", Time: begin.Add(time.Hour)})
	j.close()
	ended := false
	err := j.follow(t.Context(), limits.clip(func(m *control.StatusResponse) error {
		for _, l := range m.Logs {
			if ended {
				t.Error("output after the end of the step")
			}
			log += string(l.Msg)
		}
		for _, v := range m.Vertexes {
			ended = ended || v.Completed != nil && len(m.Logs) == 0
		}
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	// What the history writes is everything.
	if _, err := batched(j.entries.all(), func(m *control.StatusResponse) error {
		for _, l := range m.Logs {
			whole += len(l.Msg)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return log, whole
}

// Clients get as much of a step's output as the limits allow, then its end. The history has all.
func TestStepLogLimits(t *testing.T) {
	const tail = 256 << 10
	for _, c := range []struct {
		name   string
		limits *LogLimits
		each   int
		want   int // bytes before the first text
		text   string
		texts  int
	}{
		{"none", nil, 1000, 1000_000, "", 0},
		{"size -1", &LogLimits{Size: -1, Speed: 1000}, 1000, 1000_000, "", 0},
		{"size", &LogLimits{Size: 10240, Speed: -1}, 1000, 10240, "\n[output clipped, log limit 10KiB reached]\n", 1},
		{"size and room", &LogLimits{Size: 1 << 20, Speed: -1}, 1000, 1000_000, "", 0},
		{"speed", &LogLimits{Size: 2 << 20, Speed: 20480}, 1000, 20480, "\n[output clipped, log limit 20KiB/s reached]\n", 1},
		{"the size before the speed", &LogLimits{Size: 10240, Speed: 20480}, 1000, 10240, "\n[output clipped, log limit 10KiB reached]\n", 1},
		{"slow enough", &LogLimits{Size: 2 << 20, Speed: 20480}, 20, 1000_000, "", 0},
		{"nothing", &LogLimits{Size: 0, Speed: -1}, 1000, 0, "\n[output clipped, log limit 0B reached]\n", 1},
	} {
		log, whole := watched(t, c.limits, 1000, c.each)
		if whole != 1000_000 {
			t.Errorf("%s: the history has %d bytes", c.name, whole)
		}
		if n := strings.Count(log, "output clipped"); n != c.texts {
			t.Errorf("%s: clipped %d times", c.name, n)
			continue
		}
		if c.texts == 0 {
			if len(log) != c.want {
				t.Errorf("%s: %d bytes", c.name, len(log))
			}
			continue
		}
		before, after, ok := strings.Cut(log, c.text)
		if !ok || len(before) != c.want || len(after) != tail || !strings.HasSuffix(after, "l\n") {
			t.Errorf("%s: %d bytes, the text: %v, and %d at the end", c.name, len(before), ok, len(after))
		}
	}
}

// A step that is quiet for a while may write again.
func TestStepLogSpeedRecovers(t *testing.T) {
	log, _ := watched(t, &LogLimits{Size: 2 << 20, Speed: 1500}, 6, 2)
	if n := strings.Count(log, "[output clipped, log limit 1.465KiB/s reached]"); n == 0 {
		t.Errorf("%d bytes, clipped %d times", len(log), n)
	}
	if log, _ := watched(t, &LogLimits{Size: 2 << 20, Speed: 1500}, 6, 1); strings.Contains(log, "clipped") || len(log) != 6000 {
		t.Errorf("a slow step has %d bytes", len(log))
	}
}
