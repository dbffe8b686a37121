package source

import (
	"context"
	"sync"
)

// locks are mutexes by name that can be waited for under a context.
type locks struct {
	size int // how many may have a name at once; 0 = 1
	mu   sync.Mutex
	m    map[string]*lock
}

type lock struct {
	ch   chan struct{}
	refs int
}

// try takes the name if nobody has it.
func (l *locks) try(name string) (release func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m[name] != nil {
		return nil, false
	}
	if l.m == nil {
		l.m = map[string]*lock{}
	}
	k := &lock{ch: make(chan struct{}, 1), refs: 1}
	k.ch <- struct{}{}
	l.m[name] = k
	return sync.OnceFunc(func() { <-k.ch; l.drop(name, k) }), true
}

// drop gives up the interest in a name.
func (l *locks) drop(name string, k *lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.refs--; k.refs == 0 {
		delete(l.m, name)
	}
}

// take waits for the name and returns what gives it back.
func (l *locks) take(ctx context.Context, name string) (release func(), err error) {
	l.mu.Lock()
	if l.m == nil {
		l.m = map[string]*lock{}
	}
	k := l.m[name]
	if k == nil {
		k = &lock{ch: make(chan struct{}, max(1, l.size))}
		l.m[name] = k
	}
	k.refs++
	l.mu.Unlock()
	select {
	case k.ch <- struct{}{}:
		return sync.OnceFunc(func() { <-k.ch; l.drop(name, k) }), nil
	case <-ctx.Done():
		l.drop(name, k)
		return nil, context.Cause(ctx)
	}
}
