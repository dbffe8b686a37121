package solve

import (
	"cmp"
	"context"
	"slices"
	"sync"
)

// slots bound how many steps run at once, and divide them among clients. A free slot goes to the waiting client with the
// fewest running steps, and among its builds to the one with the fewest. A client without a running step does not wait for
// the steps of others, which may never end: it gets a slot beyond the limit. Those slots are bounded too, by the limit again.
type slots struct {
	mu      sync.Mutex
	limit   int
	running int
	clients map[string]*clientSlots // with running or waiting steps
}

// clientSlots are the steps of one client.
type clientSlots struct {
	name    string
	running int
	builds  []*buildSlots // with running or waiting steps, oldest first
}

// buildSlots are the steps of one build.
type buildSlots struct {
	id      int64
	running int
	waiting []chan struct{} // closed when the step has its slot; oldest first
}

func newSlots(limit int) *slots { return &slots{limit: limit, clients: map[string]*clientSlots{}} }

// take waits for a slot, and returns what gives it back.
func (s *slots) take(ctx context.Context, client string, build int64) (release func(), err error) {
	s.mu.Lock()
	c, b := s.enter(client, build)
	turn := make(chan struct{})
	b.waiting = append(b.waiting, turn)
	s.grant()
	s.mu.Unlock()
	select {
	case <-turn:
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		i := slices.Index(b.waiting, turn)
		if i < 0 { // the slot came at the same time
			s.release(c, b)
		} else {
			b.waiting = slices.Delete(b.waiting, i, i+1)
			s.forget(c, b)
		}
		return nil, context.Cause(ctx)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.release(c, b)
	}, nil
}

// enter returns the client and the build, new ones if they have no steps.
func (s *slots) enter(client string, build int64) (*clientSlots, *buildSlots) {
	c := s.clients[client]
	if c == nil {
		c = &clientSlots{name: client}
		s.clients[client] = c
	}
	for _, b := range c.builds {
		if b.id == build {
			return c, b
		}
	}
	b := &buildSlots{id: build}
	c.builds = append(c.builds, b)
	return c, b
}

// release gives a slot back and to whom it is due.
func (s *slots) release(c *clientSlots, b *buildSlots) {
	s.running--
	c.running--
	b.running--
	s.forget(c, b)
	s.grant()
}

// forget removes a build without steps, and its client with the last build.
func (s *slots) forget(c *clientSlots, b *buildSlots) {
	if b.running > 0 || len(b.waiting) > 0 {
		return
	}
	c.builds = slices.DeleteFunc(c.builds, func(x *buildSlots) bool { return x == b })
	if len(c.builds) == 0 {
		delete(s.clients, c.name)
	}
}

// grant gives slots to waiting steps as long as there are some.
func (s *slots) grant() {
	for {
		c, b := s.next()
		if c == nil || s.running >= s.limit && (c.running > 0 || s.running >= 2*s.limit) {
			return
		}
		close(b.waiting[0])
		b.waiting = b.waiting[1:]
		s.running++
		c.running++
		b.running++
	}
}

// next returns whose step is due: of the clients with waiting steps the one with the fewest running steps, and likewise of its
// builds.
func (s *slots) next() (*clientSlots, *buildSlots) {
	var client *clientSlots
	var build *buildSlots
	for _, c := range s.clients {
		waiting := slices.DeleteFunc(slices.Clone(c.builds), func(b *buildSlots) bool { return len(b.waiting) == 0 })
		if len(waiting) == 0 {
			continue
		}
		b := slices.MinFunc(waiting, func(x, y *buildSlots) int {
			return cmp.Or(cmp.Compare(x.running, y.running), cmp.Compare(x.id, y.id))
		})
		if client == nil || cmp.Or(cmp.Compare(c.running, client.running), cmp.Compare(b.id, build.id)) < 0 {
			client, build = c, b
		}
	}
	return client, build
}
