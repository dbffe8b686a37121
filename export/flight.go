package export

import (
	"context"
	"sync"
)

// flights runs equal work once for all who ask for it at the same time. The work ends early only when the last of them
// has left.
type flights struct {
	mu  sync.Mutex
	now map[string]*flight
}

type flight struct {
	done    chan struct{}
	value   any
	err     error
	waiters int
	cancel  context.CancelFunc
}

// do returns what f returns, of this call or of one with the same key that is under way.
func do[T any](ctx context.Context, fs *flights, key string, f func(context.Context) (T, error)) (T, error) {
	fs.mu.Lock()
	fl := fs.now[key]
	if fl == nil {
		// The work outlives the caller who happened to be first.
		work, cancel := context.WithCancel(context.WithoutCancel(ctx))
		fl = &flight{done: make(chan struct{}), cancel: cancel}
		if fs.now == nil {
			fs.now = map[string]*flight{}
		}
		fs.now[key] = fl
		go func() {
			fl.value, fl.err = f(work)
			fs.leave(key, fl)
			cancel()
			close(fl.done)
		}()
	}
	fl.waiters++
	fs.mu.Unlock()
	return wait[T](ctx, fs, key, fl)
}

// join waits for the work of a key if it is under way.
func join[T any](ctx context.Context, fs *flights, key string) (v T, ok bool, err error) {
	fs.mu.Lock()
	fl := fs.now[key]
	if fl == nil {
		fs.mu.Unlock()
		return v, false, nil
	}
	fl.waiters++
	fs.mu.Unlock()
	v, err = wait[T](ctx, fs, key, fl)
	return v, true, err
}

func wait[T any](ctx context.Context, fs *flights, key string, fl *flight) (T, error) {
	var zero T
	select {
	case <-fl.done:
		if fl.err != nil {
			return zero, fl.err
		}
		return fl.value.(T), nil
	case <-ctx.Done():
	}
	fs.mu.Lock()
	fl.waiters--
	last := fl.waiters == 0
	if last && fs.now[key] == fl {
		delete(fs.now, key) // nobody shall join work that is being cancelled
	}
	fs.mu.Unlock()
	if last {
		fl.cancel()
		<-fl.done
	}
	return zero, context.Cause(ctx)
}

func (fs *flights) leave(key string, fl *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.now[key] == fl {
		delete(fs.now, key)
	}
}
