package store

import (
	"context"
	"errors"
)

// rebuild is a replacement of the database under way; done is closed at its end.
type rebuild struct{ done chan struct{} }

// rebuilt waits for the rebuild that is under way, if there is one.
func (s *Store) rebuilt(ctx context.Context) error {
	if r := s.rebuilding.Load(); r != nil {
		select {
		case <-r.done:
		case <-ctx.Done():
		case <-s.ctx.Done(): // it may never begin
			return context.Cause(s.ctx)
		}
	}
	return ctx.Err()
}

// damaged replaces the database after an access to it failed in a way that only a damaged file explains.
func (s *Store) damaged(err error) {
	r := &rebuild{done: make(chan struct{})}
	if !errors.As(err, new(*damageError)) || !s.rebuilding.CompareAndSwap(nil, r) {
		return
	}
	s.background(func() {
		defer close(r.done)
		defer s.rebuilding.Store(nil)
		s.flushMu.Lock()
		defer s.flushMu.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.untidy.Store(true)
		path := s.path("meta.db")
		aside, kept, rerr := rebuildDatabase(path)
		if rerr != nil {
			s.log.Error("cannot rebuild the damaged metadata database", "cause", rerr)
			return
		}
		db, rerr := openDatabase(path)
		if rerr != nil {
			s.log.Error("cannot open the rebuilt metadata database", "cause", rerr)
			return
		}
		// The old one is left open: closing it might touch the damage again.
		s.db = db
		s.presence.clear()
		s.log.Warn("the metadata database was damaged; a new one was made from what could be read", "cause", err, "records", kept, "old", aside)
	})
}
