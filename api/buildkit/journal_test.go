package buildkit

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	control "github.com/moby/buildkit/api/services/control"

	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/store"
)

// speak makes a journal say lines of a step, each of n bytes.
func speak(j *journal, lines, n int) {
	j.take(event.Event{Kind: event.Planned, Vertex: "sha256:a", Name: "step"})
	for i := range lines {
		line := fmt.Appendf(nil, "%d ", i)
		j.take(event.Event{Kind: event.Log, Vertex: "sha256:a", Stream: 1, Time: time.Unix(1, 0), Data: append(line, bytes.Repeat([]byte("x"), n-len(line))...)})
	}
}

func follow(t *testing.T, j *journal) (logs int, bytes int64, last string, done bool) {
	t.Helper()
	err := j.follow(t.Context(), func(m *control.StatusResponse) error {
		for _, l := range m.Logs {
			if want := fmt.Sprint(logs, " "); !strings.HasPrefix(string(l.Msg), want) && !strings.Contains(string(l.Msg), "not kept") {
				return fmt.Errorf("line %d begins with %.20q", logs, l.Msg)
			}
			logs++
			bytes += int64(len(l.Msg))
			last = string(l.Msg)
		}
		for _, v := range m.Vertexes {
			done = done || v.Completed != nil
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return logs, bytes, last, done
}

// A step writes far more than fits into memory. What it costs is a file, which counts as the tenant's.
func TestLogsOfGigabytes(t *testing.T) {
	dir := t.TempDir()
	j := newJournal(dir)
	j.entries.most = 40 << 20
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	speak(j, 2000, 32<<10)
	if grown := heap() - before; grown > 4<<20 {
		t.Errorf("%d bytes of memory are held", grown)
	}
	if j.entries.filed > j.entries.most {
		t.Errorf("the file has %d bytes", j.entries.filed)
	}
	j.take(event.Event{Kind: event.Done, Vertex: "sha256:a"})
	j.close()
	logs, size, last, done := follow(t, j)
	if size < 29<<20 || size > 31<<20 || !strings.Contains(last, "further output is not kept") || !done {
		t.Errorf("%d lines of %d bytes, the last is %.80q; ended: %v", logs, size, last, done)
	}
	if n := store.DiskUsage(t.Context(), dir); n < j.entries.filed { // else it is a way around the limit of a client's space
		t.Errorf("%d bytes of the log are to be seen, of %d", n, j.entries.filed)
	}
	j.forget()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
	if j.entries.file != nil || j.entries.mem != nil {
		t.Error("the log is still held")
	}
	if logs, _, _, _ := follow(t, j); logs != 0 {
		t.Errorf("%d lines of what is gone", logs)
	}
}

// Those who read along and those who come later read the same.
func TestLogsAreReadAlong(t *testing.T) {
	j := newJournal(t.TempDir())
	type read struct {
		logs int
		size int64
	}
	along := make(chan read)
	for range 3 {
		go func() {
			logs, size, _, _ := follow(t, j)
			along <- read{logs, size}
		}()
	}
	speak(j, 3000, 1000)
	j.close()
	want := read{3000, 3000 * 1000}
	for range 3 {
		if got := <-along; got != want {
			t.Errorf("%+v", got)
		}
	}
	if logs, size, _, _ := follow(t, j); (read{logs, size}) != want {
		t.Errorf("%d, %d", logs, size)
	}
}

// A disk without room costs the log, not the build.
func TestLogWithoutADirectory(t *testing.T) {
	j := newJournal("/nonexistent")
	speak(j, 100, 32<<10)
	j.close()
	if logs, _, _, _ := follow(t, j); logs == 0 || logs > 8 {
		t.Errorf("%d lines", logs)
	}
	if j.failure() != graph.Digest("") {
		t.Error("the build failed")
	}
}
