package engine

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/docker/go-units"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/store"
)

// spaceWatch keeps each tenant below its share of the disk while it has builds. Nothing is counted on the way of a build: a
// goroutine for each tenant with builds adds up what the store has of it, and looks at the files that it is writing.
type spaceWatch struct {
	mu      sync.Mutex
	watched map[string]bool // tenants
	ended   chan struct{}   // closed by close; nil = nobody was watched yet
	work    sync.WaitGroup
}

// TenantDir is the directory below the state root with what a tenant's clients have besides the store: contexts, git repositories and history.
func (e *Engine) TenantDir(tenant string) string { return e.store.OwnerDir(tenant) }

// TenantSpace is how many bytes of the disk one tenant may take.
func (e *Engine) TenantSpace() int64 {
	switch n := e.opt.TenantBytes; {
	case n > 0:
		return n
	case n < 0:
		return math.MaxInt64
	}
	return e.store.Cap() / 2
}

// watchSpace looks after a tenant's space until it has no build any more.
func (e *Engine) watchSpace(tenant string) {
	if tenant == "" || e.opt.TenantBytes < 0 {
		return
	}
	w := &e.space
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watched[tenant] {
		return
	}
	if w.watched == nil {
		w.watched, w.ended = map[string]bool{}, make(chan struct{})
	}
	w.watched[tenant] = true
	w.work.Go(func() {
		for {
			start := time.Now()
			w.mu.Lock()
			builds := e.buildsOf(tenant)
			ended := len(builds) == 0
			if ended {
				delete(w.watched, tenant)
			}
			w.mu.Unlock()
			free := e.freeSpace()
			room := e.limitSpace(tenant, builds) // also when the last build has ended: its results count
			if ended || !e.rest(time.Since(start), free, room) {
				return
			}
		}
	})
}

// rest waits until it is time for another look at a tenant's space, after one that took some time, began with so much free space,
// and found so much room for the tenant. It returns false if there is no more to be watched.
func (e *Engine) rest(took time.Duration, free, room int64) bool {
	step := max(time.Second, took)
	for waited := time.Duration(0); !lookAgain(waited, took, free-e.freeSpace(), room); waited += step {
		select {
		case <-time.After(step):
		case <-e.space.ended:
			return false
		}
	}
	return true
}

// lookAgain reports whether a tenant's space needs a look, some time after one that took long. Adding up many files must not be most
// of what the machine does, but a tenant that makes looks expensive gets no time to fill the disk: what the disk has lost
// meanwhile may be half of the tenant's room.
func lookAgain(waited, took time.Duration, lost, room int64) bool {
	const little = 64 << 20
	return waited >= max(time.Second, 20*took) || waited >= max(time.Second, took) && lost > max(little, room/2)
}

// freeSpace returns the bytes that are free on the disk, of which each file takes some at least.
func (e *Engine) freeSpace() int64 {
	bytes, files := e.store.Free()
	return bytes + files*store.LeastSize
}

// close ends the watch. No build may begin any more.
func (w *spaceWatch) close() {
	w.mu.Lock()
	if w.ended != nil {
		close(w.ended)
	}
	w.mu.Unlock()
	w.work.Wait()
}

// limitSpace collects what a tenant has beyond its share. If that does not suffice, it ends the youngest of the builds.
// It returns how many bytes are left for the tenant.
func (e *Engine) limitSpace(tenant string, builds []*build) (room int64) {
	ctx, limit := context.Background(), e.TenantSpace()
	other := e.spaceBesides(tenant)
	owned, err := e.store.Owned(tenant)
	if err == nil && owned+other > limit {
		if err = e.puller.TrimRepositories(ctx, tenant, limit); err != nil {
			e.log.Warn("cannot remove git repositories of a tenant", "tenant", tenant, "cause", err)
		}
		other = e.spaceBesides(tenant)
		var freed store.Freed
		if freed, err = e.store.GC(ctx, store.Policy{Owner: tenant, MaxBytes: max(1, limit-limit/10-other)}); err == nil {
			e.log.Info("collected what a tenant has beyond its share of the disk", "tenant", tenant, "bytes", freed.Bytes)
			owned, err = e.store.Owned(tenant)
		}
	}
	switch {
	case errors.Is(err, store.ErrClosed):
	case err != nil:
		e.log.Warn("cannot look after the space of a tenant", "tenant", tenant, "cause", err)
	case owned+other > limit && len(builds) > 0:
		size := func(n int64) string { return units.BytesSize(float64(n)) }
		builds[0].fail(diag.Errorf(diag.Exhausted, "%s has %s on the disk of this daemon, and may have %s", tenant, size(owned+other), size(limit)).
			WithHint("remove caches and contexts: docker buildx prune --all, or buildctl prune --all. " +
				"The operator can remove images with names (strata image rm), or raise tenantSpace in the daemon's configuration"))
	}
	return max(0, limit-owned-other)
}

// spaceBesides returns the bytes of what a tenant writes at this moment, and of its own directory.
func (e *Engine) spaceBesides(tenant string) int64 {
	ctx := context.Background()
	return e.store.Growing(ctx, tenant) + e.box.Unlinked(ctx, tenant) + store.DiskUsage(ctx, e.TenantDir(tenant))
}

// buildsOf returns a tenant's builds, youngest first.
func (e *Engine) buildsOf(tenant string) (all []*build) {
	e.now.mu.Lock()
	defer e.now.mu.Unlock()
	for b := range e.now.all {
		if b.client.Tenant == tenant && b.ctx.Err() == nil {
			all = append(all, b)
		}
	}
	slices.SortFunc(all, func(a, b *build) int { return b.started.Compare(a.started) })
	return all
}

// during returns a context for a call of the build's client, which ends with the build too.
func (b *build) during(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(store.WithOwner(ctx, b.client.Tenant))
	stop := context.AfterFunc(b.ctx, func() { cancel(context.Cause(b.ctx)) })
	return ctx, func() { stop(); cancel(nil) }
}
