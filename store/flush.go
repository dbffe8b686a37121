package store

import (
	"errors"
	"maps"
	"os"
	"syscall"
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

// flush makes all changes so far durable: first the files that they name, by one syncfs, then the records, by one
// synced transaction. Then the log files that held them are deleted; updates meanwhile go to a new one.
func (s *Store) flush() error {
	s.flushMu.Lock()
	defer s.flushMu.Unlock()
	s.mu.Lock()
	s.takeTouches()
	if len(s.cur.vals) == 0 {
		s.mu.Unlock()
		return nil
	}
	batch := s.cur
	s.frozen, s.cur = batch, newGeneration()
	s.wal.rotate()
	files := s.wal.files
	s.wal.files = nil
	db, next, clock := s.db, s.next, s.clock.Load()
	s.mu.Unlock()

	if err := s.opt.syncfs(int(s.dir.Fd())); err != nil {
		return s.syncFailed(batch, files, err)
	}
	all := maps.Clone(batch.vals)
	for name, v := range map[string]uint64{"clock": clock, "next": uint64(next)} {
		k := keyOf(kindState, name)
		all[k] = seal(k, clock, encodeUint(v))
	}
	err := db.put(all)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = nil
	if err != nil {
		// Take the batch back: newer changes win.
		for k, v := range s.cur.vals {
			batch.vals[k] = v
		}
		batch.hard = true
		s.cur = batch
		s.wal.files = append(files, s.wal.files...)
		s.damaged(err)
		return s.fail("cannot write to the metadata database", err)
	}
	return s.removeLogs(files)
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

// syncFailed deals with a file system that could not write what it had taken. The kernel reports that once and then calls
// the pages clean, so the layers and blobs of the batch can never again be told from good ones: the batch is dropped, and
// what it held is built again. A lack of syncfs itself is not that case.
func (s *Store) syncFailed(batch *generation, files []string, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = nil
	if !errors.Is(err, syscall.EIO) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		for k, v := range s.cur.vals {
			batch.vals[k] = v
		}
		batch.hard = true
		s.cur = batch
		s.wal.files = append(files, s.wal.files...)
		return s.fail("cannot sync the file system", err)
	}
	s.presence.clear()
	s.usage.mu.Lock()
	s.usage.known = false
	s.usage.mu.Unlock()
	if rerr := s.removeLogs(files); rerr != nil {
		s.log.Error("a dropped batch is still in the log", "cause", rerr)
	}
	return s.fail("the disk did not take what was written; the newest results were dropped", err)
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
