package buildkit

import (
	"context"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/strata-build/strata/diag"
)

// Limits bound what one client may have at a time. A client is a user of this machine or a certificate; it may have many
// builds and connections. Zero fields are the defaults.
type Limits struct {
	Connections int   // 1000
	Calls       int   // in flight, over all connections; 2000
	GraphBytes  int64 // of the definitions of builds under way; 512 MiB
	Containers  int   // that run frontends, and that clients have asked for; 200
	// MessageBytes bounds what has come of messages that are not complete, and waits to be sent: 256 MiB. Who has more loses the
	// connection that holds the most.
	MessageBytes int64
	// RequestBytes bounds the messages that handlers work on, and the input that processes have not read: 256 MiB.
	RequestBytes int64
}

func (l Limits) withDefaults() Limits {
	if l.Connections <= 0 {
		l.Connections = 1000
	}
	if l.Calls <= 0 {
		l.Calls = 2000
	}
	if l.GraphBytes <= 0 {
		l.GraphBytes = 512 << 20
	}
	if l.Containers <= 0 {
		l.Containers = 200
	}
	if l.MessageBytes <= 0 {
		l.MessageBytes = 256 << 20
	}
	if l.RequestBytes <= 0 {
		l.RequestBytes = 256 << 20
	}
	return l
}

// quota counts what clients have.
type quota struct {
	most   Limits
	memory *memory

	mu      sync.Mutex
	clients map[string]*share
	readers map[string]*readers
}

// share is what one client has.
type share struct {
	conns, calls, containers int

	graph    int64
	requests int64 // bytes
}

func newQuota(l Limits) *quota {
	l = l.withDefaults()
	return &quota{most: l, memory: newMemory(l.MessageBytes), clients: map[string]*share{}, readers: map[string]*readers{}}
}

// take changes what a client has, unless it has too much then. What is given back always succeeds.
func (q *quota) take(who string, more share) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	c := q.clients[who]
	if c == nil {
		c = &share{}
		q.clients[who] = c
	}
	now := share{c.conns + more.conns, c.calls + more.calls, c.containers + more.containers, c.graph + more.graph, c.requests + more.requests}
	var err error
	switch {
	case more.conns > 0 && now.conns > q.most.Connections:
		err = diag.Errorf(diag.Exhausted, "%s has %d connections to this daemon, and may have no more", who, c.conns)
	case more.calls > 0 && now.calls > q.most.Calls:
		err = diag.Errorf(diag.Exhausted, "%s has %d calls to this daemon under way, and may have no more", who, c.calls)
	case more.containers > 0 && now.containers > q.most.Containers:
		err = diag.Errorf(diag.Exhausted, "the builds of %s have %d containers for frontends and debugging, and may have no more", who, c.containers).
			WithHint("wait until some of them have ended")
	case more.graph > 0 && now.graph > q.most.GraphBytes:
		err = diag.Errorf(diag.Exhausted, "the builds of %s that are under way have definitions of more than %d bytes", who, q.most.GraphBytes).
			WithHint("wait until some of them have ended")
	case more.requests > 0 && now.requests > q.most.RequestBytes:
		err = diag.Errorf(diag.Exhausted, "the calls of %s that are under way have messages of more than %d bytes", who, q.most.RequestBytes).
			WithHint("wait until some of them have ended")
	}
	if err == nil {
		*c = now
	}
	if *c == (share{}) {
		delete(q.clients, who)
	}
	return err
}

// charger counts definitions for a client until the build that has them ends.
type charger struct {
	q   *quota
	who string

	mu    sync.Mutex
	bytes int64
}

func (q *quota) charger(who string) *charger { return &charger{q: q, who: who} }

func (c *charger) add(n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.q.take(c.who, share{graph: n}); err != nil {
		return err
	}
	c.bytes += n
	return nil
}

func (c *charger) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.q.take(c.who, share{graph: -c.bytes})
	c.bytes = 0
}

// calling is a call that counts for a client until its stream and its handler have ended.
type calling struct {
	mu    sync.Mutex
	users int // the stream, and the handler once it runs
	end   func()
}

type callingKey struct{}

// begin counts a call of a client from its first frame: a client need not send the message that a handler waits for. The end of
// the call calls ended too.
func (q *quota) begin(ctx context.Context, who string, ended func()) (context.Context, error) {
	if err := q.take(who, share{calls: 1}); err != nil {
		return nil, err
	}
	c := &calling{users: 1, end: func() { _ = q.take(who, share{calls: -1}); ended() }}
	context.AfterFunc(ctx, c.leave)
	return context.WithValue(ctx, callingKey{}, c), nil
}

// enter keeps a call counted while its handler runs, also if its stream ends before.
func (c *calling) enter() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users == 0 {
		return errCallEnded
	}
	c.users++
	return nil
}

func (c *calling) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users--; c.users == 0 {
		c.end()
	}
}

var errCallEnded = diag.Errorf(diag.Canceled, "the call has ended")

// handling is enter for the call of a context. The returned function ends it.
func handling(ctx context.Context) (end func(), err error) {
	c, ok := ctx.Value(callingKey{}).(*calling)
	if !ok {
		return nil, diag.Errorf(diag.Internal, "the call is not counted")
	}
	return c.leave, c.enter()
}

// countedConn is a connection that counts until it is closed.
type countedConn struct {
	net.Conn
	end func()
}

func (c countedConn) Close() error {
	c.end()
	return c.Conn.Close()
}

// connect counts a connection of a client.
func (q *quota) connect(conn net.Conn, who string) (net.Conn, error) {
	if err := q.take(who, share{conns: 1}); err != nil {
		return nil, err
	}
	return countedConn{conn, sync.OnceFunc(func() { _ = q.take(who, share{conns: -1}) })}, nil
}

// sizeOf returns the encoded size of a message.
func sizeOf(m any) int64 {
	switch m := m.(type) {
	case interface{ SizeVT() int }:
		return int64(m.SizeVT())
	case proto.Message:
		return int64(proto.Size(m))
	}
	return 0
}

// hold counts a message for a client until the returned function is called.
func (q *quota) hold(who string, message any) (release func(), err error) {
	n := sizeOf(message)
	if err := q.take(who, share{requests: n}); err != nil {
		return nil, err
	}
	return func() { _ = q.take(who, share{requests: -n}) }, nil
}

// heldStream counts the message that a stream's handler works on: it has been received, and the next one has not.
type heldStream struct {
	grpc.ServerStream
	hold func(message any) (release func(), err error)

	mu      sync.Mutex // a handler may leave a reader behind
	release func()
	ended   bool
}

// RecvMsg implements [grpc.ServerStream].
func (s *heldStream) RecvMsg(m any) error {
	s.let(false)
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	release, err := s.hold(m)
	if err != nil {
		return toStatus(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.release = release; s.ended {
		release()
	}
	return nil
}

// let releases the last message, and those to come when the handler has returned.
func (s *heldStream) let(ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.release != nil {
		s.release()
	}
	s.release, s.ended = nil, s.ended || ended
}

// maxReaders bounds how many calls of one client make large answers at a time.
const maxReaders = 8

// readers are the calls of a client that make large answers.
type readers struct {
	turns chan struct{}
	calls int // that have a turn or wait for one
}

// read waits until a call of a client may make a large answer, such as one with a file. An answer is counted as soon as it is sent,
// but 1000 of 16 MiB could be made before the first is.
func (q *quota) read(ctx context.Context, who string) (done func(), err error) {
	q.mu.Lock()
	r := q.readers[who]
	if r == nil {
		r = &readers{turns: make(chan struct{}, maxReaders)}
		q.readers[who] = r
	}
	r.calls++
	q.mu.Unlock()
	leave := func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if r.calls--; r.calls == 0 {
			delete(q.readers, who)
		}
	}
	select {
	case r.turns <- struct{}{}:
		return func() { <-r.turns; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}
