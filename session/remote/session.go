package remote

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/moby/patternmatcher"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
)

// Session is the client's side of one build.
type Session struct {
	m    *Manager
	c    *client
	peer Peer

	mu    sync.Mutex
	held  []*slot
	bound map[string]string // names of directories -> ids of sessions

	layoutMu sync.Mutex
	layouts  map[string]*layoutFetch
}

var (
	_ session.Session  = (*Session)(nil)
	_ session.Syncer   = (*Session)(nil)
	_ session.Uploader = (*Session)(nil)
)

// Close gives back the directories that the build has read.
func (s *Session) Close() {
	s.mu.Lock()
	held := s.held
	s.held = nil
	s.mu.Unlock()
	for _, h := range held {
		h.free()
	}
}

// ID is the client's name for the session.
func (s *Session) ID() string { return s.c.id }

// Bind says which sessions have the directories of these names, where it is not this one.
func (s *Session) Bind(dirs map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bound == nil {
		s.bound = map[string]string{}
	}
	maps.Copy(s.bound, dirs)
}

// from returns the connection that has a directory.
func (s *Session) from(ctx context.Context, op *graph.Local) (*client, error) {
	id := op.Session
	if id == "" {
		s.mu.Lock()
		id = s.bound[op.Name]
		s.mu.Unlock()
	}
	if id == "" || id == s.c.id {
		return s.c, nil
	}
	return s.m.find(ctx, id, s.peer)
}

// Context ends when the client has gone.
func (s *Session) Context() context.Context { return s.c.ctx }

// call binds a call's context to the session's life and adds metadata.
func (c *client) call(ctx context.Context, kv map[string][]string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.ctx, func() { cancel(context.Cause(c.ctx)) })
	return metadata.NewOutgoingContext(ctx, encode(kv)), func() { stop(); cancel(nil) }
}

// encode escapes values that are not ASCII, as the protocol says: a marker goes with them.
func encode(kv map[string][]string) metadata.MD {
	md := metadata.MD{}
	for k, vs := range kv {
		plain := !strings.ContainsFunc(strings.Join(vs, ""), func(r rune) bool { return r > '~' })
		for _, v := range vs {
			if !plain {
				v = url.QueryEscape(v)
			}
			md.Append(k, v)
		}
		if !plain {
			md.Set(k+"-encoded", "1")
		}
	}
	return md
}

// told reports whether the client says that it has a method, or does not say what it has.
func (c *client) told(method string) bool {
	return len(c.methods) == 0 || c.methods[strings.ToLower(method)]
}

// Dir is the whole directory; see Sync.
func (s *Session) Dir(ctx context.Context, name string) (session.Dir, error) {
	return s.Sync(ctx, &graph.Local{Name: name}, nil)
}

// Sync implements session.Syncer.
func (s *Session) Sync(ctx context.Context, op *graph.Local, progress func(int64, bool)) (session.Dir, error) {
	c, err := s.from(ctx, op)
	if err != nil {
		return session.Dir{}, err
	}
	const method = "/moby.filesync.v1.FileSync/DiffCopy"
	if !c.told(method) {
		return session.Dir{}, diag.Errorf(diag.NotFound, "the client gives no directories, but %q is needed", op.Name)
	}
	shape, err := json.Marshal([]any{op.Include, op.Exclude, op.Follow, op.Metadata, op.MetaExcl})
	if err != nil {
		return session.Dir{}, err
	}
	key, err := json.Marshal([]string{s.peer.Identity, op.Name, op.SharedKey, c.sharedKey})
	if err != nil {
		return session.Dir{}, err
	}
	sl, err := s.m.slots.take(string(key), string(shape))
	if err != nil {
		return session.Dir{}, err
	}
	s.mu.Lock()
	s.held = append(s.held, sl)
	s.mu.Unlock()
	if err := sl.filled(""); err != nil {
		return session.Dir{}, err
	}
	if op.Reread {
		if err := sl.clear(); err != nil {
			return session.Dir{}, diag.Errorf(diag.Unavailable, "the directory %q: %w", op.Name, err)
		}
	}
	if err := c.receive(ctx, op, sl.dir(), progress); err != nil {
		return session.Dir{}, err
	}
	return session.Dir{Path: sl.dir(), Key: "session/" + sl.name}, sl.filled(string(shape))
}

func (c *client) receive(ctx context.Context, op *graph.Local, dir string, progress func(int64, bool)) error {
	kv := map[string][]string{"dir-name": {op.Name}}
	for k, v := range map[string][]string{"include-patterns": op.Include, "exclude-patterns": op.Exclude, "followpaths": op.Follow} {
		if len(v) > 0 {
			kv[k] = v
		}
	}
	ctx, done := c.call(ctx, kv)
	defer done()
	stream, err := c.cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/moby.filesync.v1.FileSync/DiffCopy")
	if err != nil {
		return failed(ctx, err, "the directory %q", op.Name)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	to := fsutil.NewRoot(root)
	defer to.Close()
	opt := fsutil.ReceiveOpt{Filter: plain}
	if progress != nil {
		told := 0
		opt.ProgressCb = func(n int, end bool) {
			if end || n-told >= step {
				told = n
				progress(int64(n), end)
			}
		}
	}
	if op.Metadata {
		if opt.MetadataOnly, err = metadataFilter(op.MetaExcl); err != nil {
			return err
		}
	}
	if err := fsutil.ReceiveRoot(ctx, stream, to, opt); err != nil {
		return failed(ctx, err, "the directory %q", op.Name)
	}
	_ = stream.CloseSend() // the transfer is complete
	return nil
}

// step is how many bytes are received between two reports.
const step = 1 << 20

// plain takes away what a directory of a client never has in a build: owners, attributes but those of users and capabilities, and
// devices, which are left out.
func plain(_ string, st *types.Stat) bool {
	st.Uid, st.Gid = 0, 0
	maps.DeleteFunc(st.Xattrs, func(k string, _ []byte) bool { return !session.HasAttr(k) })
	return os.FileMode(st.Mode)&(os.ModeDevice|os.ModeSocket) == 0
}

// metadataFilter tells the files whose content is sent although only the metadata is wanted.
func metadataFilter(except []string) (fsutil.FilterFunc, error) {
	if len(except) == 0 {
		return func(string, *types.Stat) bool { return false }, nil
	}
	pm, err := patternmatcher.New(except)
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "metadata exceptions: %w", err)
	}
	return func(p string, _ *types.Stat) bool {
		ok, err := pm.MatchesOrParentMatches(p)
		return err == nil && ok
	}, nil
}

// failed says what a call was for, and gives the client's error a kind.
func failed(ctx context.Context, err error, format string, args ...any) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	kind := diag.Unavailable
	st, ok := status.FromError(err)
	if ok {
		switch st.Code() {
		case codes.NotFound, codes.Unimplemented:
			kind = diag.NotFound
		case codes.PermissionDenied, codes.Unauthenticated:
			kind = diag.Denied
		case codes.Canceled:
			kind = diag.Canceled
		}
		return diag.Errorf(kind, format+": %s", append(args, st.Message())...)
	}
	return diag.Errorf(kind, format+": %w", append(args, err)...)
}

// unary calls a method with small messages.
func (c *client) unary(ctx context.Context, method string, in *message) (*message, error) {
	ctx, done := c.call(ctx, nil)
	defer done()
	var out message
	return &out, c.cc.Invoke(ctx, method, in, &out)
}

// Secret asks the client for a secret.
func (s *Session) Secret(ctx context.Context, id string) ([]byte, error) {
	m, err := s.c.unary(ctx, "/moby.buildkit.secrets.v1.Secrets/GetSecret", text(id))
	if code := status.Code(err); code == codes.NotFound || code == codes.Unimplemented {
		return nil, diag.Errorf(diag.NotFound, "secret %s: not found", id).WithHint("give it with --secret id=%s,src=FILE", id)
	}
	if err != nil {
		return nil, failed(ctx, err, "secret %s", id)
	}
	return m.field(1)
}

// SSH connects to an agent of the client.
func (s *Session) SSH(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	if id == "" {
		id = "default"
	}
	if _, err := s.c.unary(ctx, "/moby.sshforward.v1.SSH/CheckAgent", text(id)); err != nil {
		switch status.Code(err) {
		case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable:
			return nil, failed(ctx, err, "ssh agent %q", id)
		}
		// Clients say in any way that they do not have it.
		return nil, diag.Errorf(diag.NotFound, "ssh agent %q: %s", id, status.Convert(err).Message()).WithHint("give it with --ssh %s", id)
	}
	return s.c.pipe(ctx, "/moby.sshforward.v1.SSH/ForwardAgent", map[string][]string{"buildkit.ssh.id": {id}})
}

// Upload implements session.Uploader.
func (s *Session) Upload(ctx context.Context, path string) (io.ReadCloser, error) {
	return s.c.pipe(ctx, "/moby.upload.v1.Upload/Pull", map[string][]string{"urlpath": {path}, "urlhost": {session.UploadHost}})
}

// Kinds of destinations: an output's id is one of them and the number of the exporter.
const (
	ToDir   = "dir:"
	ToFile  = "file:"
	ToStore = "store:"
)

// Output returns a stream to the client's file, or a directory whose content Send sends. The id is ToDir or ToFile and the
// number that the client has given to the exporter.
func (s *Session) Output(ctx context.Context, id string) (session.Output, error) {
	return s.OutputOf(ctx, id, nil)
}

// OutputOf implements session.Describing.
func (s *Session) OutputOf(ctx context.Context, id string, about map[string]string) (session.Output, error) {
	const method = "/moby.filesync.v1.FileSend/DiffCopy"
	kind, number, ok := strings.Cut(id, ":")
	if kind+":" == ToStore {
		return s.toStore(ctx)
	}
	if !ok || !s.c.told(method) {
		return session.Output{}, diag.Errorf(diag.NotFound, "the client takes no files")
	}
	kv := map[string][]string{"buildkit-attachable-exporter-id": {number}}
	if kind+":" == ToFile {
		for k, v := range about {
			kv["exporter-md-"+k] = []string{v}
		}
		p, err := s.c.pipe(ctx, method, kv)
		if err != nil {
			return session.Output{}, err
		}
		return session.Output{File: &file{pipe: p, buf: bufio.NewWriterSize(writer{p}, chunk)}}, nil
	}
	dir, err := os.MkdirTemp(s.m.slots.root, outgoing)
	if err != nil {
		return session.Output{}, err
	}
	context.AfterFunc(ctx, func() { _ = os.RemoveAll(dir) }) // of a build that has failed
	kv["buildkit-exporter-multi-platform"] = []string{"1"}
	return session.Output{Dir: dir, Send: func(ctx context.Context) error {
		defer os.RemoveAll(dir)
		return s.c.send(ctx, method, kv, dir)
	}}, nil
}

// send brings a directory to the client.
func (c *client) send(ctx context.Context, method string, kv map[string][]string, dir string) error {
	ctx, done := c.call(ctx, kv)
	defer done()
	stream, err := c.cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return failed(ctx, err, "sending files")
	}
	from, err := fsutil.NewFS(filepath.Clean(dir))
	if err != nil {
		return err
	}
	if err := fsutil.Send(ctx, stream, from, nil); err != nil {
		return failed(ctx, err, "sending files")
	}
	_ = stream.CloseSend() // the client has confirmed all
	return nil
}
