package solve

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/strata-build/strata/event"
)

// flight is one run under way. It lives as long as somebody waits for it: its context is its own, and is cancelled when
// the last waiter leaves.
type flight[R Result, E any] struct {
	cancel context.CancelCauseFunc
	owner  context.Context // of the waiter that started it and lent it its session
	client context.Context // of that waiter's build: it ends before what is derived from it, and a run may fail in between
	done   chan struct{}   // closed when the run has ended and cleaned up
	res    *shared[R]      // set before done is closed
	err    error
	cached bool // the result was found after all

	mu      sync.Mutex
	waiters int
	sinks   map[int]event.Sink
	sent    []event.Event // what a late waiter has missed
	kept    int           // bytes of output in sent
	lacked  []func(E) bool
	next    int
}

// What a late waiter is told is bounded: in events, and in bytes of output.
const (
	replayed      = 10_000
	replayedBytes = 1 << 20
)

func (f *flight[R, E]) emit(e event.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kept += len(e.Data); len(f.sent) < replayed && f.kept <= replayedBytes {
		f.sent = append(f.sent, e)
	}
	for _, s := range f.sinks {
		s.Emit(e)
	}
}

// join adds a waiter and returns its number: 1 for the one that starts the flight, 0 if the flight was abandoned.
func (f *flight[R, E]) join(s event.Sink) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next > 0 && f.waiters == 0 {
		return 0
	}
	for _, e := range f.sent {
		s.Emit(e)
	}
	f.waiters++
	f.next++
	f.sinks[f.next] = s
	return f.next
}

// leave ends a waiter's interest. The last one to leave stops the run and waits until it has cleaned up.
func (f *flight[R, E]) leave(id int) {
	f.mu.Lock()
	delete(f.sinks, id)
	f.waiters--
	last := f.waiters == 0
	f.mu.Unlock()
	if last {
		f.cancel(errAbandoned)
		<-f.done
		if f.res != nil {
			f.res.release()
		}
	}
}

// errAbandoned is the cause of a flight's end when nobody waits any more.
var errAbandoned = errors.New("no build waits for this step any more")

// wait returns the flight's result, retained for the caller.
func (f *flight[R, E]) wait(ctx context.Context, id int) (*shared[R], error) {
	defer f.leave(id)
	select {
	case <-f.done:
		if f.err != nil {
			return nil, f.err
		}
		return f.res.retain(), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// lacks reports whether the run did without something that a waiter has.
func (f *flight[R, E]) lacks(env E) bool {
	f.mu.Lock()
	lacked := f.lacked
	f.mu.Unlock()
	return slices.ContainsFunc(lacked, func(has func(E) bool) bool { return has(env) })
}

// orphaned reports whether an ended flight failed when the waiter that lent it its session had left. Another waiter may
// then try again with a session of its own.
func (f *flight[R, E]) orphaned() bool {
	return f.err != nil && (f.owner.Err() != nil || f.client.Err() != nil)
}

// board returns the flight for a key, started by run if there is none, and the caller's number in it.
func (b *Build[R, E]) board(ctx context.Context, key string, run func(context.Context, *flight[R, E])) (*flight[R, E], int) {
	s, sink := b.s, b.sink
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flights[key]; f != nil {
		if id := f.join(sink); id > 0 {
			return f, id
		}
	}
	fctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f := &flight[R, E]{cancel: cancel, owner: ctx, client: b.started, done: make(chan struct{}), sinks: map[int]event.Sink{}}
	id := f.join(sink)
	s.flights[key] = f
	go func() {
		defer cancel(nil)
		run(fctx, f)
		s.mu.Lock()
		if s.flights[key] == f {
			delete(s.flights, key)
		}
		s.mu.Unlock()
		close(f.done)
	}()
	return f, id
}
