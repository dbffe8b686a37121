package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/strata-build/strata/diag"
)

// LockedError says that another process owns the root. It is found with errors.As in an error of kind diag.Conflict.
type LockedError struct {
	Root string
	PID  int // 0 if the owner has not written it yet

	Serves  bool // it said that it takes calls of other processes (Options.Serves)
	Leaving bool // it is about to end: the root will be free soon
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("%s is in use by another process", e.Root)
	}
	return fmt.Sprintf("%s is in use by process %d", e.Root, e.PID)
}

// ErrClosed is the cause of errors of a store that is closed.
var ErrClosed = errors.New("the store is closed")

// fail turns a failure of the machine into an error that says what the store was doing and what a person can do.
func (s *Store) fail(doing string, err error) error {
	var d *diag.Error
	switch {
	case errors.As(err, &d):
		return err
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return diag.Errorf(diag.Exhausted, "%s: %w", doing, err).WithHint("free space or inodes on the disk that holds %s, or run strata prune", s.root)
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return diag.Errorf(diag.Exhausted, "%s: %w", doing, err).WithHint("raise the limit on open files (ulimit -n)")
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.EROFS):
		return diag.Errorf(diag.Unavailable, "%s: %w", doing, err).WithHint("check the disk that holds %s; the kernel's log says more", s.root)
	case errors.Is(err, fs.ErrPermission):
		return diag.Errorf(diag.Denied, "%s: %w", doing, err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return diag.Errorf(diag.Canceled, "%s: %w", doing, err)
	}
	return diag.Errorf(diag.Internal, "%s: %w", doing, err)
}

func miss(format string, args ...any) error { return diag.Errorf(diag.NotFound, format, args...) }
