package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// errStalled is the cause when a transfer was too slow for too long.
var errStalled = errors.New("the transfer stalled: less than 1 KiB/s")

// answer is the body of an answer together with the context of its request. Canceling that is the only safe way to end a
// Read from another goroutine; the cause becomes the error of that Read.
type answer struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		if cause := context.Cause(a.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (a *answer) Close() error {
	a.cancel(nil)
	return a.ReadCloser.Close()
}

// Drain reads a little of what is left, so that the connection can be used again, and closes.
func Drain(body io.ReadCloser) {
	_, _ = io.CopyN(io.Discard, body, 64<<10)
	_ = body.Close()
}

// Watch returns the body of an answer that Web gave, with a limit on patience: if, of the time spent waiting for data, less
// than 1 KiB/s arrived for limit, the transfer ends with an error. The time between reads does not count: a slow consumer
// is no stall.
func Watch(resp *http.Response, limit time.Duration) io.ReadCloser {
	a, ok := resp.Body.(*answer)
	if !ok {
		return resp.Body
	}
	w := &watched{ReadCloser: a, done: make(chan struct{})}
	go w.run(limit, a.cancel)
	return w
}

type watched struct {
	io.ReadCloser
	waiting atomic.Bool
	bytes   atomic.Int64
	closed  atomic.Bool
	done    chan struct{}
}

func (w *watched) Read(p []byte) (int, error) {
	w.waiting.Store(true)
	n, err := w.ReadCloser.Read(p)
	w.waiting.Store(false)
	w.bytes.Add(int64(n))
	return n, err
}

func (w *watched) Close() error {
	if w.closed.CompareAndSwap(false, true) {
		close(w.done)
	}
	return w.ReadCloser.Close()
}

func (w *watched) run(limit time.Duration, stop context.CancelCauseFunc) {
	const parts = 20
	need := int64(limit.Seconds() * 1024)
	tick := time.NewTicker(max(limit/parts, time.Millisecond))
	defer tick.Stop()
	waited, last := 0, int64(0)
	for {
		select {
		case <-w.done:
			return
		case <-tick.C:
		}
		got := w.bytes.Load()
		if got-last > need {
			waited, last = 0, got
			continue
		}
		if !w.waiting.Load() {
			continue
		}
		if waited++; waited >= parts {
			stop(errStalled)
			return
		}
	}
}
