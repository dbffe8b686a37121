package engine

import (
	"context"
	"sync"
	"time"

	"github.com/strata-build/strata/export"
)

// idlePause is how long the engine has had no build before it works for itself.
const idlePause = 2 * time.Second

// idler works while the engine has no builds: it computes the diff_ids of layers that nobody has exported, so that damage to
// them is found. A build that begins ends the work at once.
type idler struct {
	mu     sync.Mutex
	pause  time.Duration
	next   *time.Timer
	cancel context.CancelFunc // of the work under way
	ended  bool
	work   sync.WaitGroup
}

// rest is called when the last build has ended.
func (i *idler) rest(work func(context.Context)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ended {
		return
	}
	i.interrupt()
	ctx, cancel := context.WithCancel(context.Background())
	i.cancel = cancel
	i.work.Add(1)
	i.next = time.AfterFunc(i.pause, func() {
		defer i.work.Done()
		work(ctx)
	})
}

// interrupt ends the work, or the wait for it. The caller holds mu.
func (i *idler) interrupt() {
	if i.cancel == nil {
		return
	}
	i.cancel()
	i.cancel = nil
	if i.next.Stop() {
		i.work.Done()
	}
}

// wake is called when a build begins. It does not wait for the work to end.
func (i *idler) wake() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.interrupt()
}

// close ends the work for good.
func (i *idler) close() {
	i.mu.Lock()
	i.ended = true
	i.interrupt()
	i.mu.Unlock()
	i.work.Wait()
}

// hashLayers computes the diff_ids that layers lack.
func (e *Engine) hashLayers(ctx context.Context) {
	ids, err := e.store.LayersWithoutDiffID()
	if err != nil {
		return // the store has reported it
	}
	for _, id := range ids {
		hold := e.store.Hold()
		hold.Layers(id)
		_, err := e.packer.Layer(ctx, export.Request{ID: id, Hold: hold})
		hold.Release()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			e.log.Debug("cannot hash a layer", "layer", id, "cause", err)
		}
	}
}
