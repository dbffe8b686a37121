package tree

import (
	"context"
	"runtime"
	"sync"
)

// tasks runs functions that may add more functions, the latest first, on as many goroutines as the machine has
// processors. The first error, or the end of the context, stops it.
type tasks struct {
	ctx  context.Context
	mu   sync.Mutex
	wake sync.Cond
	todo []func() error
	busy int
	err  error
}

// add queues f. It may be called by running tasks.
func (t *tasks) add(f func() error) {
	t.mu.Lock()
	t.todo = append(t.todo, f)
	t.mu.Unlock()
	t.wake.Signal()
}

// runTasks runs first, and all that it adds, and returns when nothing is left.
func runTasks(ctx context.Context, first func(*tasks) error) error {
	t := &tasks{ctx: ctx}
	t.wake.L = &t.mu
	t.todo = []func() error{func() error { return first(t) }}
	stop := context.AfterFunc(ctx, func() { t.fail(context.Cause(ctx)) })
	defer stop()
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(t.work)
	}
	wg.Wait()
	return t.err
}

func (t *tasks) fail(err error) {
	t.mu.Lock()
	if t.err == nil {
		t.err = err
	}
	t.mu.Unlock()
	t.wake.Broadcast()
}

func (t *tasks) work() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		for len(t.todo) == 0 && t.busy > 0 && t.err == nil {
			t.wake.Wait()
		}
		if t.err != nil || len(t.todo) == 0 {
			t.wake.Broadcast()
			return
		}
		n := len(t.todo) - 1
		f := t.todo[n]
		t.todo[n] = nil
		t.todo = t.todo[:n]
		t.busy++
		t.mu.Unlock()
		err := f()
		t.mu.Lock()
		t.busy--
		if err != nil && t.err == nil {
			t.err = err
		}
		if t.err != nil || len(t.todo) == 0 {
			t.wake.Broadcast()
		}
	}
}

// stopped returns the reason to stop, if there is one. Long loops ask it every few milliseconds of work.
func (t *tasks) stopped() error {
	if t.ctx.Err() != nil {
		return context.Cause(t.ctx)
	}
	return nil
}
