package solve

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// line is a set of slots and the steps that have them.
type line struct {
	t *testing.T
	s *slots

	mu   sync.Mutex
	has  []string
	done map[string]func()
}

// ask lets a step ask for a slot, and waits until it has it or is in line.
func (l *line) ask(ctx context.Context, client string, build int64, step string) {
	go func() {
		release, err := l.s.take(ctx, client, build)
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				l.t.Errorf("%s: %v", step, err)
			}
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.has, l.done[step] = append(l.has, step), release
	}()
	synctest.Wait()
}

// end ends a step, and waits until its slot is another one's.
func (l *line) end(step string) {
	l.mu.Lock()
	release := l.done[step]
	l.has = slices.DeleteFunc(l.has, func(s string) bool { return s == step })
	l.mu.Unlock()
	release()
	synctest.Wait()
}

func (l *line) want(steps ...string) {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Equal(l.has, steps) {
		l.t.Errorf("running: %v, want %v", l.has, steps)
	}
}

func inLine(t *testing.T, limit int, f func(l *line)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &line{t: t, s: newSlots(limit), done: map[string]func(){}}
		f(l)
		for len(l.has) > 0 {
			l.end(l.has[0])
		}
		if l.s.running != 0 || len(l.s.clients) != 0 {
			t.Errorf("%d slots are taken in the end, and %d clients known", l.s.running, len(l.s.clients))
		}
	})
}

func TestAttackStepsOfOneClientTakeAllSlots(t *testing.T) {
	inLine(t, 2, func(l *line) {
		ctx := l.t.Context()
		for i := range 10 { // none of them ever ends by itself
			l.ask(ctx, "mallory", 1, fmt.Sprintf("m%d", i))
		}
		l.want("m0", "m1")
		l.ask(ctx, "alice", 2, "a0")
		l.want("m0", "m1", "a0")
		l.ask(ctx, "alice", 2, "a1") // beyond the limit is one step for each client
		l.want("m0", "m1", "a0")
		l.end("a0")
		l.want("m0", "m1", "a1")
		// A slot within the limit goes to who has fewest.
		l.ask(ctx, "alice", 2, "a2")
		l.end("m0")
		l.want("m1", "a1")
		l.end("m1")
		l.want("a1", "m2")
	})
}

func TestSlotsBeyondTheLimitAreBounded(t *testing.T) {
	inLine(t, 2, func(l *line) {
		for i := range 6 { // a client with many names
			l.ask(l.t.Context(), fmt.Sprintf("client %d", i), int64(i), fmt.Sprintf("s%d", i))
		}
		l.want("s0", "s1", "s2", "s3")
		l.end("s1")
		l.want("s0", "s2", "s3", "s4")
	})
}

func TestBuildsOfOneClientShareItsSlots(t *testing.T) {
	inLine(t, 2, func(l *line) {
		ctx := l.t.Context()
		for i := range 4 {
			l.ask(ctx, "c", 1, fmt.Sprintf("first%d", i))
		}
		l.ask(ctx, "c", 2, "second0")
		l.want("first0", "first1")
		l.end("first0")
		l.want("first1", "second0")
		l.end("second0")
		l.want("first1", "first2")
	})
}

func TestCanceledStepsLeaveTheLine(t *testing.T) {
	inLine(t, 1, func(l *line) {
		l.ask(l.t.Context(), "a", 1, "a0")
		ctx, cancel := context.WithCancel(l.t.Context())
		l.ask(ctx, "a", 1, "a1")
		l.ask(l.t.Context(), "a", 1, "a2")
		cancel()
		synctest.Wait()
		l.end("a0")
		l.want("a2")
	})
}

// TestSlotsAreNotLost lets many steps come, end and be canceled at the same time.
func TestSlotsAreNotLost(t *testing.T) {
	s := newSlots(3)
	var wg sync.WaitGroup
	for i := range 400 {
		r := rand.New(rand.NewPCG(uint64(i), 1))
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if r.IntN(2) == 0 {
				go cancel()
			}
			release, err := s.take(ctx, fmt.Sprint(r.IntN(5)), int64(r.IntN(9)))
			if err == nil {
				s.mu.Lock()
				if s.running > 6 {
					t.Errorf("%d steps run", s.running)
				}
				s.mu.Unlock()
				release()
			}
		})
	}
	wg.Wait()
	if s.running != 0 || len(s.clients) != 0 {
		t.Errorf("%d slots are taken in the end, and %d clients known", s.running, len(s.clients))
	}
}
