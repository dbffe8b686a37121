package remote

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/strata-build/strata/diag"
)

// Headers with which a client describes its session.
const (
	headerID        = "X-Docker-Expose-Session-Uuid"
	headerSharedKey = "X-Docker-Expose-Session-Sharedkey"
	headerEncoded   = "X-Docker-Expose-Session-Sharedkey-Encoded"
	headerMethod    = "X-Docker-Expose-Session-Grpc-Method"
	headerHealth    = "X-Buildkit-Session-Health-Custom-Timeout" // milliseconds
)

// maxMessage bounds a message, in bytes, as in BuildKit; maxHeader bounds its metadata, and window what comes of a call that nobody
// has read.
const (
	maxMessage = 16 << 20
	maxHeader  = 1 << 20
	window     = 512 << 10
)

// patience is how long a build waits for its session: a client opens both at the same time.
const patience = 5 * time.Second

// maxID bounds the length of a session's id.
const maxID = 200

// Peer is the other end of a connection. Sessions are used only over the connection that they came with; directories are
// kept by identity, so that no client is shown what another one has sent.
type Peer struct {
	Conn     string // a connection
	Identity string // who is there: a user, a certificate
}

// Manager knows the sessions that are open.
type Manager struct {
	log   *slog.Logger
	slots *slots

	mu      sync.Mutex
	open    map[string]*client
	changed chan struct{} // closed when open gets a new one
}

// NewManager keeps directories below root and removes what an earlier process left unfinished.
func NewManager(root string, log *slog.Logger) (*Manager, error) {
	s, err := openSlots(root)
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Manager{log: log, slots: s, open: map[string]*client{}, changed: make(chan struct{})}, nil
}

// client is one session's connection.
type client struct {
	id, sharedKey string
	peer          Peer
	methods       map[string]bool // lower case; empty = not told
	cc            *grpc.ClientConn
	ctx           context.Context // ends with the session
}

// Serve runs a session over a connection on which the client serves HTTP/2, until either side ends it.
func (m *Manager) Serve(ctx context.Context, conn net.Conn, header http.Header, peer Peer) error {
	defer conn.Close()
	id := header.Get(headerID)
	if id == "" || len(id) > maxID {
		return diag.Errorf(diag.Invalid, "a session needs an id of at most %d characters", maxID)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := &client{id: id, peer: peer, ctx: ctx, methods: map[string]bool{}, sharedKey: header.Get(headerSharedKey)}
	if encoded, _ := strconv.ParseBool(header.Get(headerEncoded)); encoded {
		if s, err := url.QueryUnescape(c.sharedKey); err == nil {
			c.sharedKey = s
		}
	}
	for _, name := range header.Values(headerMethod) {
		c.methods[strings.ToLower(name)] = true
	}
	once := make(chan net.Conn, 1)
	once <- conn
	cc, err := grpc.NewClient("passthrough:///session",
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case k := <-once:
				return k, nil
			default:
				cancel(errGone)
				return nil, errGone
			}
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithIdleTimeout(0), grpc.WithDisableServiceConfig(),
		grpc.WithMaxHeaderListSize(maxHeader), grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(4*window),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage), useCodec()))
	if err != nil {
		return err
	}
	c.cc = cc
	defer cc.Close()
	cc.Connect() // the client waits for the beginning of HTTP/2
	if err := m.add(c); err != nil {
		return err
	}
	defer m.remove(c)
	c.watch(healthInterval(header), cancel)
	return nil
}

var errGone = diag.Errorf(diag.Canceled, "the client's session has ended")

// Health checks: a client that does not answer twice in a row has gone. They tolerate a connection that is busy.
const (
	interval = 5 * time.Second
	timeout  = 15 * time.Second
)

// healthInterval is how often the client is asked; the client may want it sooner.
func healthInterval(h http.Header) time.Duration {
	ms, err := strconv.Atoi(h.Get(headerHealth))
	if err != nil || ms <= 0 || ms > 1000*60*60 {
		return 0
	}
	return max(time.Duration(ms)*time.Millisecond, time.Second)
}

// watch returns when the session has ended.
func (c *client) watch(custom time.Duration, end context.CancelCauseFunc) {
	every, within, strikes := interval, timeout, 2
	if custom > 0 {
		every, within, strikes = custom, custom, 1
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	health := grpc_health_v1.NewHealthClient(c.cc)
	for failed := 0; ; {
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(c.ctx, within)
		_, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		cancel()
		if err == nil || status.Code(err) == codes.Unimplemented { // then it answers, though it does not know the question
			failed = 0
			continue
		}
		if failed++; failed >= strikes {
			end(diag.Errorf(diag.Unavailable, "the client's session does not answer: %w", err))
			return
		}
	}
}

func (m *Manager) add(c *client) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.open[c.id] != nil {
		return diag.Errorf(diag.Conflict, "session %s already exists", c.id)
	}
	m.open[c.id] = c
	close(m.changed)
	m.changed = make(chan struct{})
	return nil
}

func (m *Manager) remove(c *client) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.open, c.id)
}

// find waits a moment for a session of a peer.
func (m *Manager) find(ctx context.Context, id string, peer Peer) (*client, error) {
	// Some clients put a name in front, to tell vertices apart.
	if _, rest, ok := strings.Cut(id, ":"); ok && rest != "" {
		id = rest
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		m.mu.Lock()
		c, changed := m.open[id], m.changed
		m.mu.Unlock()
		if c != nil && c.peer.Conn != peer.Conn {
			return nil, diag.Errorf(diag.Denied, "session %s belongs to another client", id)
		}
		if c != nil {
			return c, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, diag.Errorf(diag.NotFound, "no active session for %s: %w", id, context.Cause(ctx))
		}
	}
}

// Open returns the session of one build: the connection with that id, and others of the same peer where the build names
// them. Close it when the build has ended.
func (m *Manager) Open(ctx context.Context, id string, peer Peer) (*Session, error) {
	c, err := m.find(ctx, id, peer)
	if err != nil {
		return nil, err
	}
	return &Session{m: m, c: c, peer: peer}, nil
}

// Usage returns the bytes that directories of clients take which no build uses, and Prune removes them.
func (m *Manager) Usage() ([]Slot, error) { return m.slots.list() }

// Distrust removes all kept directories, those in use when they are given back: the disk may have damaged them.
func (m *Manager) Distrust() { m.slots.distrust() }

// Prune removes the directories that no build uses and that keep does not want kept.
func (m *Manager) Prune(keep func(Slot) bool) ([]Slot, error) { return m.slots.prune(keep) }
