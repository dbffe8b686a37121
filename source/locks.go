package source

import (
	"context"
	"sync"
)

// locks are mutexes by name that can be waited for under a context.
type locks struct {
	mu sync.Mutex
	m  map[string]*lock
}

type lock struct {
	ch   chan struct{}
	refs int
}

// take waits for the name and returns what gives it back.
func (l *locks) take(ctx context.Context, name string) (release func(), err error) {
	l.mu.Lock()
	if l.m == nil {
		l.m = map[string]*lock{}
	}
	k := l.m[name]
	if k == nil {
		k = &lock{ch: make(chan struct{}, 1)}
		l.m[name] = k
	}
	k.refs++
	l.mu.Unlock()
	drop := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.refs--; k.refs == 0 {
			delete(l.m, name)
		}
	}
	select {
	case k.ch <- struct{}{}:
		return sync.OnceFunc(func() { <-k.ch; drop() }), nil
	case <-ctx.Done():
		drop()
		return nil, context.Cause(ctx)
	}
}
