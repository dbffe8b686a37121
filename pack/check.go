package pack

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// check is the comparison of a blob with its digest while others work with what it holds already. A plain tar in a file is
// indexed by its headers alone, many times faster than it is hashed: nothing that was made of it is shown to anybody before
// the check has ended well.
type check struct {
	done chan struct{}
	err  error
}

// wait returns how the check ended; nil is a check that there was no need for.
func (c *check) wait(ctx context.Context) error {
	if c == nil {
		return nil
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

var errClosed = errors.New("the workspace was closed")

// check begins to compare what r holds with a digest.
func (w *Workspace) check(r io.Reader, want graph.Digest) *check {
	c := &check{done: make(chan struct{})}
	w.mu.Lock()
	w.checks = append(w.checks, c)
	w.mu.Unlock()
	go func() {
		defer close(c.done)
		select {
		case w.slots <- struct{}{}:
			defer func() { <-w.slots }()
			c.err = w.compare(r, want)
		case <-w.closing:
			c.err = errClosed
		}
	}()
	return c
}

func (w *Workspace) compare(r io.Reader, want graph.Digest) error {
	h := sha256.New()
	for buf := make([]byte, 1<<20); ; {
		n, err := r.Read(buf)
		h.Write(buf[:n])
		select {
		case <-w.closing:
			return errClosed
		default:
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return diag.Errorf(diag.Unavailable, "reading layer %s: %w", want, err)
		}
	}
	if got := digest.NewDigest(digest.SHA256, h); got != want {
		return diag.Errorf(diag.Invalid, "layer %s: its bytes have the digest %s", want, got)
	}
	return nil
}

// checked waits until everything that was read is known to be what it was said to be.
func (w *Workspace) checked(ctx context.Context) error {
	w.mu.Lock()
	checks := w.checks
	w.mu.Unlock()
	for _, c := range checks {
		if err := c.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// endChecks ends the checks that still run: what they read is about to be closed. It may be called again.
func (w *Workspace) endChecks() {
	w.mu.Lock()
	checks := w.checks
	select {
	case <-w.closing:
	default:
		close(w.closing)
	}
	w.mu.Unlock()
	for _, c := range checks {
		<-c.done
	}
}
