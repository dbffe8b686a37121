package store

import (
	"errors"
	"maps"
	"os"
	"time"
)

// flusher makes changes durable in batches. The first change of a batch wakes it.
func (s *Store) flusher() {
	retry := time.Second
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.wake:
		}
		if !s.pause(s.opt.flushDelay) {
			return
		}
		if err := s.flush(); err != nil {
			s.log.Error("changes are not durable yet", "cause", err, "retryIn", retry)
			if !s.pause(retry) {
				return
			}
			retry = min(2*retry, 30*time.Second)
			kick(s.wake)
			continue
		}
		retry = time.Second
	}
}

// pause reports false if the store was closed meanwhile.
func (s *Store) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// maxRescues bounds how often a flush begins anew after a failed sync.
const maxRescues = 5

// flush makes all changes so far durable. If the disk does not take them, what may be damaged is dropped, images that can be
// proven whole are written once more, and the flush begins anew.
func (s *Store) flush() error {
	s.durable.Lock()
	defer s.durable.Unlock()
	for n := 1; ; n++ {
		bad, err := s.flushOnce()
		if bad == nil || !s.rescue(bad, n == maxRescues) {
			return err
		}
	}
}

// flushOnce makes all changes so far durable: first the files that they name, by one syncfs, then the records, by one
// synced transaction. Then the log files that held them are deleted; updates meanwhile go to a new one. After a failed sync it
// returns what that casts doubt on.
func (s *Store) flushOnce() (*suspects, error) {
	s.flushMu.Lock()
	defer s.flushMu.Unlock()
	s.mu.Lock()
	s.takeTouches()
	if len(s.cur.vals) == 0 {
		s.mu.Unlock()
		return nil, nil
	}
	batch := s.cur
	s.frozen, s.cur = batch, newGeneration()
	renamed := s.namesChanged
	for key := range batch.vals {
		renamed = renamed || kind(key[0]) == kindImage
	}
	s.wal.rotate()
	files := s.wal.files
	s.wal.files = nil
	db, next, clock := s.db, s.next, s.clock.Load()
	s.mu.Unlock()
	s.mounts.syncing()

	if err := s.opt.syncfs(int(s.dir.Fd())); err != nil {
		return s.syncFailed(batch, files, err)
	}
	all := maps.Clone(batch.vals)
	for name, v := range map[string]uint64{"clock": clock, "next": uint64(next)} {
		k := keyOf(kindState, name)
		all[k] = seal(k, clock, encodeUint(v))
	}
	err := db.put(all)
	if err == nil && renamed {
		defer s.saveNames() // without mu
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = nil
	s.namesChanged = err != nil && renamed
	if err != nil {
		s.takeBack(batch, files)
		if lost(err) && !isFull(err) {
			s.damaged(&damageError{err}) // what is written to the same place may be lost too: a new file is made
		}
		s.damaged(err)
		return nil, s.fail("cannot write to the metadata database", err)
	}
	return nil, s.removeLogs(files)
}

func (s *Store) removeLogs(files []string) error {
	for _, f := range files {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return s.fail("cannot delete a log file", err)
		}
	}
	return nil
}

// renewLog makes everything durable and begins a new log.
func (s *Store) renewLog() error {
	if err := s.flush(); err != nil {
		return err
	}
	s.flushMu.Lock()
	defer s.flushMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.cur.vals) > 0 {
		return nil // changes since then keep it until the next flush
	}
	files := s.wal.files
	s.wal.rotate()
	s.wal.files = nil
	return s.removeLogs(files)
}

// takeTouches moves what was used since the last flush into the current generation. The caller holds mu.
func (s *Store) takeTouches() []change {
	s.touchMu.Lock()
	touched := s.touched
	s.touched = map[string]use{}
	s.touchMu.Unlock()
	changes := make([]change, 0, len(touched))
	for key, u := range touched {
		k := useKey(key)
		c := change{k, seal(k, u.clock, encodeUse(u))}
		changes = append(changes, c)
		s.cur.set(c)
	}
	return changes
}

// maxSoftLog is how large the log may grow with uses alone, in bytes, before it is written anew.
const maxSoftLog = 128 << 10

// saveTouches keeps uses for the next owner without syncing anything: to lose them costs a little order in collecting.
func (s *Store) saveTouches() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	changes := s.takeTouches()
	if s.cur.hard || len(changes) == 0 {
		return nil
	}
	var total int64
	for _, f := range s.wal.files {
		if fi, err := os.Stat(f); err == nil {
			total += fi.Size()
		}
	}
	var old []string
	if total > maxSoftLog { // most are uses of the same things: keep the last of each
		old = s.wal.files
		s.wal.rotate()
		s.wal.files, changes = nil, changes[:0]
		for k, v := range s.cur.vals {
			changes = append(changes, change{k, v})
		}
		if len(changes) > maxSoftLog/32 {
			s.cur.hard = true // so many that the database should have them
		}
	}
	if err := s.wal.append(s.clock.Load(), changes); err != nil {
		s.wal.files = append(old, s.wal.files...)
		return s.fail("cannot write to the log", err)
	}
	return s.removeLogs(old)
}
