package buildkit

import (
	"context"
	"sync"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"

	"github.com/strata-build/strata/diag"
)

// memory counts the bytes of messages that clients have begun to send and have not ended, and of answers that they do not read. A
// client chooses how many messages it begins and need not end any, so a limit of calls and one of a message's size do not bound it.
type memory struct {
	most int64 // of one client

	mu      sync.Mutex
	clients map[string]*held
}

// held is what one client has.
type held struct {
	bytes int64
	links map[*link]struct{} // that have not been ended
}

// link is a connection of a client, or of a program that works for it. When the client has too much, the link that holds the most
// of it is ended: the others may be honest builds of the same user.
type link struct {
	memory *memory
	end    func() // closes the connection; it must not wait
	who    string // set before the first message
	bytes  int64  // guarded by memory.mu, as ended is
	ended  bool
}

func newMemory(most int64) *memory { return &memory{most: most, clients: map[string]*held{}} }

// open adds a link of a client. The caller closes it when nothing reads from it any more.
func (m *memory) open(l *link, who string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.clients[who]
	if h == nil {
		h = &held{links: map[*link]struct{}{}}
		m.clients[who] = h
	}
	l.memory, l.who = m, who
	h.links[l] = struct{}{}
}

// close forgets the link and what it holds.
func (l *link) close() {
	if l.memory == nil {
		return // nobody has said who it is
	}
	l.memory.mu.Lock()
	defer l.memory.mu.Unlock()
	l.memory.drop(l)
}

// drop lets a link count no longer.
func (m *memory) drop(l *link) {
	if l.ended {
		return
	}
	l.ended = true
	h := m.clients[l.who]
	h.bytes -= l.bytes
	delete(h.links, l)
	if len(h.links) == 0 {
		delete(m.clients, l.who)
	}
}

// add changes what a link holds, and ends the largest link of a client that has too much.
func (l *link) add(n int64) {
	m := l.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.ended {
		return
	}
	h := m.clients[l.who]
	l.bytes += n
	if h.bytes += n; n < 0 || h.bytes <= m.most {
		return
	}
	largest := l
	for k := range h.links {
		if k.bytes > largest.bytes {
			largest = k
		}
	}
	m.drop(largest)
	largest.end()
}

// take counts metadata, which lives as long as its call, until the returned function is called. It refuses what is too much by
// itself.
func (l *link) take(md metadata.MD) (giveBack func(), err error) {
	n := int64(0)
	for k, vs := range md {
		for _, v := range vs {
			n += int64(len(k) + len(v) + 32) // as HTTP/2 counts it
		}
	}
	if n > l.memory.most {
		return nil, diag.Errorf(diag.Exhausted, "the call has %d bytes of metadata", n)
	}
	l.add(n)
	return func() { l.add(-n) }, nil
}

// TagRPC implements [stats.Handler].
func (l *link) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC implements [stats.Handler]. It counts what is to be sent; [wire] counts it back when it has been.
func (l *link) HandleRPC(_ context.Context, s stats.RPCStats) {
	if p, ok := s.(*stats.OutPayload); ok {
		l.add(int64(p.WireLength))
	}
}

// TagConn implements [stats.Handler].
func (l *link) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements [stats.Handler].
func (l *link) HandleConn(context.Context, stats.ConnStats) {}
