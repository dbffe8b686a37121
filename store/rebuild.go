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
		if !s.replaceDatabase(err) {
			return
		}
		if err := s.findNames(); err != nil {
			s.log.Error("cannot find the names of images again", "cause", err)
		}
	})
}

// replaceDatabase puts a new database in the place of the damaged one, and reports whether it could.
func (s *Store) replaceDatabase(cause error) bool {
	s.flushMu.Lock()
	defer s.flushMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.untidy.Store(true)
	path := s.path("meta.db")
	aside, kept, err := rebuildDatabase(path)
	if err != nil {
		s.log.Error("cannot rebuild the damaged metadata database", "cause", err)
		return false
	}
	db, err := openDatabase(path)
	if err != nil {
		s.log.Error("cannot open the rebuilt metadata database", "cause", err)
		return false
	}
	// The old one is left open: closing it might touch the damage again.
	s.db = db
	s.presence.clear()
	s.log.Warn("the metadata database was damaged; a new one was made from what could be read", "cause", cause, "records", kept, "old", aside)
	return true
}
