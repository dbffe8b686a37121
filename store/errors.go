package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

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
	case isFull(err):
		return s.FullError(fmt.Errorf("%s: %w", doing, err))
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return diag.Errorf(diag.Exhausted, "%s: %w", doing, err)
	case errors.Is(err, syscall.EROFS):
		return diag.Errorf(diag.Unavailable, "%s: %w", doing, err).WithHint("%s is mounted read-only: mount it writable, or choose another --root", s.root)
	case errors.Is(err, syscall.EIO):
		return diag.Errorf(diag.Unavailable, "%s: %w", doing, err).WithHint("check the disk that holds %s; the kernel's log says more", s.root)
	case errors.Is(err, fs.ErrPermission):
		return diag.Errorf(diag.Denied, "%s: %w", doing, err).WithHint("Strata needs root here: run the command with sudo")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return diag.Errorf(diag.Canceled, "%s: %w", doing, err)
	}
	return diag.Errorf(diag.Internal, "%s: %w", doing, err)
}

func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// Explain says of the failure to write a layer that the disk is full, or that only root can write it, if that is so. Other
// errors come back as they are.
func (s *Store) Explain(err error) error {
	switch {
	case isFull(err) && diag.KindOf(err) != diag.Exhausted:
		return s.FullError(err)
	case errors.Is(err, syscall.EPERM) && os.Geteuid() != 0:
		return diag.Errorf(diag.Denied, "%w", err).WithHint("run the builder as root, for example with sudo: only root can make layers, whose files belong to many users")
	}
	return err
}

// FullError says that the disk is full, which is why something failed.
func (s *Store) FullError(why error) *diag.Error {
	return diag.Errorf(diag.Exhausted, "the disk that holds %s is full: %w", s.root, why).WithHint("free space or inodes there, or run strata prune")
}

// Full reports whether next to nothing can be written any more.
func (s *Store) Full() bool {
	var st unix.Statfs_t
	if unix.Fstatfs(int(s.dir.Fd()), &st) != nil {
		return false
	}
	return int64(st.Bavail)*st.Bsize < 1<<20 || st.Files > 0 && st.Ffree < 16
}

func miss(format string, args ...any) error { return diag.Errorf(diag.NotFound, format, args...) }
