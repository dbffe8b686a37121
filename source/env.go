package source

import (
	"io"
	"strings"
	"time"

	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
)

// Env is what one build lets its sources use.
type Env struct {
	Store    *store.Store
	Hold     *store.Hold      // keeps what is fetched; the caller releases it
	Registry *registry.Client // with the build's credentials; nil = no network for images
	Session  session.Session  // nil = there is no client
	Progress event.Sink
	Agent    string // the User-Agent of http sources; "" = strata
	Client   session.Client

	AllowMetadata bool // sources may be at link-local addresses and metadata services
}

// progress reports one transfer, at most every tenth of a second and once at its end.
type progress struct {
	sink   event.Sink
	vertex graph.Digest
	item   string
	action string
	total  int64
	sofar  int64
	last   time.Time
}

func (p *progress) add(n int) {
	p.sofar += int64(n)
	if p.sink == nil {
		return
	}
	if now := time.Now(); now.Sub(p.last) >= 100*time.Millisecond {
		p.last = now
		p.emit(false)
	}
}

func (p *progress) done() { p.emit(true) }

func (p *progress) emit(complete bool) {
	p.sink.Emit(event.Event{
		Kind: event.Progress, Vertex: p.vertex, Item: p.item, Action: p.action,
		Current: p.sofar, Total: p.total, Complete: complete,
	})
}

// counted reports what is read through it.
type counted struct {
	io.Reader
	p *progress
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.p.add(n)
	return n, err
}

// short is a digest as progress lines show it.
func short(d graph.Digest) string {
	s := d.String()
	if i := strings.IndexByte(s, ':'); i >= 0 && len(s) > i+13 {
		s = s[:i+13]
	}
	return s
}
