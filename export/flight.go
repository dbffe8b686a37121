package export

import (
	"context"
	"sync"

	"github.com/strata-build/strata/store"
)

// flights reads each layer once for all who ask for it at the same time. The work ends early only when the last of them
// has left. What it makes is held for each of them before the work's own hold ends.
type flights struct {
	store *store.Store
	mu    sync.Mutex
	now   map[string]*flight
}

type flight struct {
	done    chan struct{}
	made    made
	err     error
	waiters int
	holds   []*store.Hold // of the waiters
	cancel  context.CancelFunc
}

// do returns what f returns, of this call or of one with the same key that is under way. The blob is held by hold, which f
// gets another one of.
func (fs *flights) do(ctx context.Context, key string, hold *store.Hold, f func(context.Context, *store.Hold) (made, error)) (made, error) {
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
			own := fs.store.Hold()
			defer own.Release()
			fl.made, fl.err = f(work, own)
			fs.land(key, fl)
			cancel()
			close(fl.done)
		}()
	}
	fl.join(hold)
	fs.mu.Unlock()
	return fs.wait(ctx, key, fl)
}

// join waits for the work of a key if it is under way.
func (fs *flights) join(ctx context.Context, key string, hold *store.Hold) (m made, ok bool, err error) {
	fs.mu.Lock()
	fl := fs.now[key]
	if fl == nil {
		fs.mu.Unlock()
		return m, false, nil
	}
	fl.join(hold)
	fs.mu.Unlock()
	m, err = fs.wait(ctx, key, fl)
	return m, true, err
}

// join adds a waiter. The caller holds flights.mu.
func (fl *flight) join(hold *store.Hold) {
	fl.waiters++
	if hold != nil {
		fl.holds = append(fl.holds, hold)
	}
}

func (fs *flights) wait(ctx context.Context, key string, fl *flight) (made, error) {
	select {
	case <-fl.done:
		return fl.made, fl.err
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
	return made{}, context.Cause(ctx)
}

// land ends the time in which a flight can be joined, and holds what it made for those who did.
func (fs *flights) land(key string, fl *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.now[key] == fl {
		delete(fs.now, key)
	}
	for _, h := range fl.holds {
		if d := fl.made.blob.Digest; fl.err == nil && d != "" {
			h.Blobs(d)
		}
	}
}
