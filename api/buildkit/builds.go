package buildkit

import (
	"context"
	"slices"
	"sync"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc/metadata"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/tracing"
)

// build is one Solve of a client. It can be found by its ref while it runs, and its journal afterwards.
type build struct {
	ref     string
	journal *journal
	bridge  *bridge // nil until the session is there
	ready   chan struct{}
	results []*control.Descriptor // images that were exported
	owner   string                // connection of the client, which alone may call the bridge
	trace   *tracing.Recording    // nil = none

	recorded bool                     // the history remembers it
	origins  func() ([]origin, error) // what its results were made from; nil = not known
}

// builds are those under way.
type builds struct {
	mu      sync.Mutex
	byRef   map[string]*build
	changed chan struct{}
	ended   []*build // the last ones that the history does not know: who asks late is told all the same
}

// maxRef bounds the length of a build's name.
const maxRef = 200

func (b *builds) add(x *build) error {
	if x.ref == "" || len(x.ref) > maxRef {
		return diag.Errorf(diag.Invalid, "a build needs a ref of at most %d characters", maxRef)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.byRef[x.ref] != nil {
		return diag.Errorf(diag.Conflict, "job ID %s exists", x.ref)
	}
	b.byRef[x.ref] = x
	close(b.changed)
	b.changed = make(chan struct{})
	return nil
}

// maxEnded is how many builds that are not recorded can be asked for after their end.
const maxEnded = 8

func (b *builds) remove(x *build) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.byRef, x.ref)
	if !x.recorded {
		b.ended = append(b.ended, x)
		if len(b.ended) <= maxEnded {
			return
		}
		x, b.ended = b.ended[0], b.ended[1:]
	}
	x.journal.forget()
}

// past returns a build that has ended a moment ago, or nil.
func (b *builds) past(ref string) *build {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, x := range slices.Backward(b.ended) {
		if x.ref == ref && b.byRef[ref] == nil {
			return x
		}
	}
	return nil
}

// Busy reports whether builds are under way.
func (s *Server) Busy() bool {
	busy := false
	s.each(func(t *tenant) {
		t.builds.mu.Lock()
		defer t.builds.mu.Unlock()
		busy = busy || len(t.builds.byRef) > 0
	})
	return busy
}

// wait returns a build, for which it waits a moment: clients ask before they have begun it.
func (b *builds) wait(ctx context.Context, ref string, patience time.Duration) (*build, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		b.mu.Lock()
		x, changed := b.byRef[ref], b.changed
		b.mu.Unlock()
		if x != nil {
			return x, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, &noJob{ref}
		}
	}
}

// Status tells what a build does, from its beginning to its end.
func (s *Server) Status(req *control.StatusRequest, stream control.Control_StatusServer) error {
	if err := s.sayTime(stream); err != nil {
		return err
	}
	t := s.of(stream.Context())
	if r := t.history.find(req.Ref); r != nil {
		return t.history.sendLog(r, stream.Send)
	}
	if b := t.builds.past(req.Ref); b != nil {
		return b.journal.follow(stream.Context(), s.opt.LogLimits.clip(stream.Send))
	}
	b, err := t.builds.wait(stream.Context(), req.Ref, 6*time.Second)
	if err != nil {
		return err
	}
	return b.journal.follow(stream.Context(), s.opt.LogLimits.clip(stream.Send))
}

// buildID names the metadata with which a forwarded call says which build it belongs to.
const buildID = "buildkit-controlapi-buildid"

// bridgeOf returns the build that a call belongs to.
func (s *Server) bridgeOf(ctx context.Context) (*bridge, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	ids := md.Get(buildID)
	if len(ids) != 1 || ids[0] == "" {
		return nil, diag.Errorf(diag.Invalid, "no buildid found in context")
	}
	b, err := s.of(ctx).builds.wait(ctx, ids[0], 3*time.Second)
	if err != nil {
		return nil, err
	}
	if b.owner != peerOf(ctx).Conn {
		return nil, diag.Errorf(diag.Denied, "build %s belongs to another client", ids[0])
	}
	select {
	case <-b.ready:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if b.bridge == nil {
		return nil, &noJob{ids[0]}
	}
	return b.bridge, nil
}
