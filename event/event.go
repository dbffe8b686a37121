// Package event holds what a build says while it runs. The progress display, the history and every API read one stream
// of these values.
//
// A build's stream starts with Started vertices and ends when the engine returns; events of one vertex are in order.
package event

import (
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// Kind says what happened.
type Kind string

const (
	Planned Kind = "planned" // the vertex is part of the build
	Started Kind = "started" // it began to run
	// Explained says more of why a vertex was not cached: what could be seen only while it ran.
	Explained Kind = "explained"
	Log       Kind = "log"      // it printed Data on Stream
	Progress  Kind = "progress" // a transfer or another counted activity named Item moved on
	Done      Kind = "done"     // it ended; Error says how, Cached whether it had to run
	Warn      Kind = "warn"     // Warning
	Message   Kind = "message"  // a line for the user that belongs to no vertex
)

// Reasons that are no news: displays leave them out, or show them less.
const (
	NeverRun = "it was never run here"
	Follows  = "it builds on " // what such a reason begins with: only the steps below it changed
)

// Event is one thing that happened. Only the fields of its kind are set.
type Event struct {
	Kind   Kind           `json:"kind"`
	Time   time.Time      `json:"time"`
	Vertex graph.Digest   `json:"vertex,omitempty"`
	Name   string         `json:"name,omitempty"`   // Planned
	Inputs []graph.Digest `json:"inputs,omitempty"` // Planned
	Group  string         `json:"group,omitempty"`  // Planned

	Cached bool   `json:"cached,omitempty"` // Done
	Reason string `json:"reason,omitempty"` // Started, Explained: why it was not cached
	Error  string `json:"error,omitempty"`  // Done

	Stream int    `json:"stream,omitempty"` // Log: 1 or 2
	Data   []byte `json:"data,omitempty"`   // Log

	Item     string `json:"item,omitempty"`     // Progress: "sha256:… 12 MB", "exporting layers"
	Action   string `json:"action,omitempty"`   // Progress: "downloading", "extracting", "pushing", …
	Current  int64  `json:"current,omitempty"`  // Progress: bytes, or a count
	Total    int64  `json:"total,omitempty"`    // Progress: 0 = not known
	Complete bool   `json:"complete,omitempty"` // Progress: the item is done

	Text    string        `json:"text,omitempty"` // Message
	Warning *diag.Warning `json:"warning,omitempty"`
}

// Sink takes events, through Emit. It must not block for long, and may be called from many goroutines.
type Sink func(Event)

// Emit sends an event stamped with the time of now. A nil sink drops it.
func (s Sink) Emit(e Event) {
	if s == nil {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	s(e.redacted())
}

// redacted is the event without the secrets of URLs (diag.Redact): no display, log or history sees them. What a step prints is passed
// on as it is.
func (e Event) redacted() Event {
	for _, s := range []*string{&e.Name, &e.Group, &e.Reason, &e.Error, &e.Item, &e.Action, &e.Text} {
		*s = diag.Redact(*s)
	}
	e.Warning = e.Warning.Redacted()
	return e
}
