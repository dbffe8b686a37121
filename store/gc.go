package store

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// Policy says what GC may delete. What a hold, an open blob, a cache mount in use or an image needs is never deleted.
type Policy struct {
	MaxBytes     int64            // delete until the store has at most this many bytes; 0 = the store's own cap
	KeepDuration time.Duration    // keep what was used more recently
	All          bool             // delete everything that may be, whatever the store's size
	Unneeded     bool             // delete only results, layers and blobs that no image needs, named or not
	Mounts       bool             // with Unneeded: cache mounts too
	Filter       func(Usage) bool // if not nil, delete only what it returns true for; called with the store locked
	Owner        string           // if not "", delete only what is the owner's; MaxBytes are its bytes then, and must be set
	DryRun       bool             // say what would be deleted
}

// Freed is what GC deleted.
type Freed struct {
	Bytes int64
	Files int64 // inodes of layers
	Items []FreedItem
	Kept  []FreedItem // what stays, and why
}

// FreedItem is one thing that was deleted.
type FreedItem struct {
	Usage
	Why string // "not used for 3 days" or "needed by image debian:12", for people
}

// GC deletes results and their layers, blobs and cache mounts, least recently used first, and returns when they are gone
// from the disk. A layer goes when nothing names it any more. A result whose layers a newer result builds on counts as used
// when that one was, so stacks are taken down from the top.
func (s *Store) GC(ctx context.Context, p Policy) (Freed, error) {
	s.measureMounts(ctx, true)
	if err := ctx.Err(); err != nil {
		return Freed{}, s.fail("cannot collect garbage", err)
	}
	f, err := s.collect(p, 0)
	if err != nil {
		return f, err
	}
	s.trash.wait(ctx.Done())
	return f, nil
}

// usage is what the store takes on disk, as far as that decides when to collect.
type usage struct {
	mu      sync.Mutex
	known   bool
	space          // of layers, blobs and cache mounts
	futile  bool   // the last collection could not reach its target ...
	atBytes int64  // ... with this many bytes in the store ...
	atHolds uint64 // ... and this many releases seen
	trimmed uint64 // the clock when old memos and preimages were last trimmed

	other    int64 // what the root takes beyond bytes: databases, logs, directories, what blocks of disk are not used up to
	measured time.Time
	took     time.Duration // to measure it
	aged     time.Time     // when old images without a name were last looked for
}

// grew counts what an update added. The caller holds mu.
func (s *Store) grew(by space) {
	if by.bytes == 0 && len(by.owned) == 0 {
		return
	}
	u := &s.usage
	u.mu.Lock()
	u.plus(by)
	known := u.known
	u.mu.Unlock()
	if by.bytes > 0 && (!known || s.wants(0) || s.unmeasured()) {
		kick(s.tendWake)
	}
}

// settle is called when something was released.
func (s *Store) settle() {
	if s.failures.unswept.Load() > 0 || s.wants(0) {
		kick(s.tendWake)
	}
}

// wants reports whether the store is above its cap and slack, in bytes, and a collection could help.
func (s *Store) wants(slack int64) bool {
	u := &s.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	limit := s.cap(u.bytes)
	return u.known && u.bytes+u.other > limit-limit/20+slack && !u.hopeless(s)
}

// unmeasured reports whether it is time to measure the root.
func (s *Store) unmeasured() bool {
	u := &s.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	limit := s.cap(u.bytes)
	return u.known && limit < math.MaxInt64 && u.bytes+u.other > limit/2 && time.Since(u.measured) > max(20*u.took, 200*time.Millisecond)
}

// measure finds out what the root really takes, if that may matter and it was not just done. The walk takes about a twentieth of
// a processor's time at most.
func (s *Store) measure() {
	u := &s.usage
	if !s.unmeasured() {
		return
	}
	start := time.Now()
	var other int64
	if s.opt.overhead != nil {
		other = s.opt.overhead()
	} else {
		s.trash.wait(s.ctx.Done())
		other = s.rootUsage()
		if s.ctx.Err() != nil {
			return
		}
		u.mu.Lock()
		other -= u.bytes
		u.mu.Unlock()
	}
	u.mu.Lock()
	u.other, u.measured, u.took = other, time.Now(), time.Since(start)
	u.mu.Unlock()
}

// hopeless reports that nothing changed since a collection that did not reach its target.
func (u *usage) hopeless(s *Store) bool {
	return u.futile && u.atHolds == s.holds.released.Load() && u.bytes < u.atBytes+u.atBytes/50+1
}

// Cap is how many bytes the store may have now.
func (s *Store) Cap() int64 {
	s.usage.mu.Lock()
	defer s.usage.mu.Unlock()
	return s.cap(s.usage.bytes)
}

// cap returns how many bytes the store may have when it has used.
func (s *Store) cap(used int64) int64 {
	switch m := s.opt.MaxBytes; {
	case m > 0:
		return m
	case m < 0:
		return math.MaxInt64
	}
	var st unix.Statfs_t
	if unix.Fstatfs(int(s.dir.Fd()), &st) != nil {
		return math.MaxInt64
	}
	disk, free := int64(st.Blocks)*st.Bsize, int64(st.Bavail)*st.Bsize
	return min(max(disk/10, 20<<30), (used+free)/5*4)
}

// reserve says how much of the file system the store leaves alone, and how much of that is missing. full means that hardly
// anything is left.
type reserve struct {
	bytes, files int64 // missing; 0 = enough is free
	full         bool
}

// Free returns how many bytes and files the file system has room for.
func (s *Store) Free() (bytes, files int64) {
	var st unix.Statfs_t
	if unix.Fstatfs(int(s.dir.Fd()), &st) != nil {
		return 0, 0
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Ffree)
}

func (s *Store) reserve() reserve {
	var st unix.Statfs_t
	if unix.Fstatfs(int(s.dir.Fd()), &st) != nil {
		return reserve{}
	}
	if s.opt.statfs != nil {
		s.opt.statfs(&st)
	}
	const share = 50 // 2 %
	free, want := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize/share
	r := reserve{bytes: max(0, want-free), full: free < min(want/4, 256<<20)}
	if st.Files > 0 { // btrfs counts no inodes
		ifree, iwant := int64(st.Ffree), int64(st.Files)/share
		r.files = max(0, iwant-ifree)
		r.full = r.full || ifree < iwant/4
	}
	return r
}

// makeRoom collects before something new is started, if the store is far above its cap or the disk is nearly full.
func (s *Store) makeRoom(ctx context.Context) error {
	s.usage.mu.Lock()
	slack := s.cap(s.usage.bytes) / 20
	s.usage.mu.Unlock()
	r := s.reserve()
	if r.bytes == 0 && r.files == 0 && !s.wants(slack) {
		return nil
	}
	if _, err := s.tend(); err != nil {
		return err
	}
	if r.bytes > 0 || r.files > 0 {
		s.trash.wait(ctx.Done())
		if r = s.reserve(); r.full {
			return s.FullError(errors.New("there is no room for another layer"))
		}
	}
	return nil
}

// tender keeps the store below its cap.
func (s *Store) tender() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.tendWake:
		}
		s.bury()
		s.measureMounts(s.ctx, false)
		if err := s.count(); err != nil {
			s.log.Warn("cannot find out how large the store is", "cause", err)
			continue
		}
		s.measure()
		s.dropOldImages()
		f, err := s.tend()
		if err != nil && !errors.Is(err, ErrClosed) {
			s.log.Warn("cannot collect garbage", "cause", err)
		}
		if f.Bytes > 0 {
			s.log.Info("collected garbage", "bytes", f.Bytes, "items", len(f.Items))
		}
	}
}

// count finds out how many bytes the store has, once.
func (s *Store) count() error {
	u := &s.usage
	s.mu.RLock() // no update comes in between
	defer s.mu.RUnlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.known {
		return nil
	}
	var total space
	for _, k := range []kind{kindLayer, kindBlob, kindMount} {
		err := s.each(k, func(name string, _ uint64, b []byte, err error) {
			if err == nil {
				total.more(keyOf(k, name), b)
			}
		})
		if err != nil {
			return err
		}
	}
	u.space, u.known = total, true
	return nil
}

// tend collects if that is called for.
func (s *Store) tend() (Freed, error) {
	r := s.reserve()
	low := r.bytes > 0 || r.files > 0
	u := &s.usage
	u.mu.Lock()
	used := u.bytes
	limit := s.cap(used)
	if limit < math.MaxInt64 {
		limit -= limit/20 + u.other // a layer that is being made has room, too
	}
	due := u.known && used > limit || low
	due = due && !u.hopeless(s)
	u.mu.Unlock()
	if !due {
		return Freed{}, nil
	}
	// A little more than needed, so that the next layer does not start it again.
	target := min(limit-limit/20, used)
	if r.bytes > 0 {
		target = min(target, used-2*r.bytes)
	}
	f, err := s.collect(Policy{MaxBytes: max(target, 1)}, r.files)
	if err != nil {
		return f, err
	}
	u.mu.Lock()
	u.futile = u.bytes > target || f.Files < r.files
	u.atBytes, u.atHolds = u.bytes, s.holds.released.Load()
	u.mu.Unlock()
	return f, nil
}

// collect deletes records and puts what they stood for into the trash. files is the number of inodes that have to go too.
func (s *Store) collect(p Policy, files int64) (Freed, error) {
	s.gcMu.Lock()
	defer s.gcMu.Unlock()
	if err := s.count(); err != nil {
		return Freed{}, s.fail("cannot collect garbage", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Freed{}, s.fail("cannot collect garbage", ErrClosed)
	}
	s.usage.mu.Lock()
	used, other := s.usage.bytes, s.usage.other
	trim := s.clock.Load() >= s.usage.trimmed
	s.usage.mu.Unlock()
	limit := p.MaxBytes
	if limit == 0 {
		if limit = s.cap(used); limit < math.MaxInt64 {
			limit = max(1, limit-other)
		}
	}
	if p.Owner != "" {
		s.writers.know(p.Owner)
	}
	pl, err := s.plan()
	if err != nil {
		return Freed{}, s.fail("cannot collect garbage", err)
	}
	e := eviction{plan: pl, policy: p, batch: &Batch{s: s}, used: max(used, pl.bytes), limit: limit, files: files, now: time.Now()}
	if p.Owner != "" {
		e.used = pl.owned[p.Owner]
	}
	e.run()
	if p.DryRun {
		return e.freed, nil
	}
	if trim {
		if err := s.trim(e.batch); err != nil {
			return Freed{}, s.fail("cannot collect garbage", err)
		}
	}
	err = s.commit(e.batch)
	if err != nil && diag.KindOf(err) != diag.Exhausted {
		return Freed{}, err
	}
	for _, id := range e.layers {
		s.presence.set(id, layerGone)
		s.trash.put(s.layerRoot(id))
	}
	for _, path := range e.paths {
		s.trash.put(path)
	}
	if err != nil {
		// There was no room even to say what goes. A record whose file is gone reads as a miss, so the order can be reversed.
		s.trash.wait(s.ctx.Done())
		err = s.commit(e.batch)
	}
	return e.freed, err
}

// danglingAge is how long an image without a name is kept that nobody uses.
const danglingAge = 7 * 24 * time.Hour

// dropOldImages deletes images without a name that were not used for long. It looks once in an hour.
func (s *Store) dropOldImages() {
	s.usage.mu.Lock()
	due := time.Since(s.usage.aged) > time.Hour
	if due {
		s.usage.aged = time.Now()
	}
	s.usage.mu.Unlock()
	if !due {
		return
	}
	old := Policy{All: true, KeepDuration: danglingAge, Filter: func(u Usage) bool { return u.Kind == UsageImage && dangling(u.ID) }}
	if f, err := s.collect(old, 0); err != nil && !errors.Is(err, ErrClosed) {
		s.log.Warn("cannot delete old images without a name", "cause", err)
	} else if len(f.Items) > 0 {
		s.log.Info("deleted old images without a name", "count", len(f.Items))
	}
}

// Limits of records that nothing else removes: they are small, help future builds, and are forgotten oldest first.
var trimLimits = []struct {
	kind kind
	max  int
}{{kindMemo, 100_000}, {kindPreimage, 20_000}, {kindVariant, 50_000}, {kindChain, 50_000}}

// trimEvery is how far the clock goes on between two looks at the number of records.
const trimEvery = 10_000

func (s *Store) trim(b *Batch) error {
	for _, l := range trimLimits {
		old, err := s.oldest(l.kind, l.max)
		if err != nil {
			return err
		}
		for _, key := range old {
			b.drop(key)
		}
	}
	s.usage.mu.Lock()
	s.usage.trimmed = s.clock.Load() + trimEvery
	s.usage.mu.Unlock()
	return nil
}
