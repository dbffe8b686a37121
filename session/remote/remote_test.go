package remote

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
)

// fakeClient serves a session as BuildKit's clients do.
type fakeClient struct {
	dirs   map[string]func(grpc.ServerStream) error
	out    bytes.Buffer
	outDir string
	blobs  map[string][]byte
	reads  int
	sent   metadata.MD // of the last call
	policy func(*message) *message

	exporter string // that the client chooses
}

func (f *fakeClient) handle(_ any, s grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(s)
	f.sent, _ = metadata.FromIncomingContext(s.Context())
	first := func(k string) string {
		if v := f.sent.Get(k); len(v) > 0 {
			return v[0]
		}
		return ""
	}
	var m message
	switch method {
	case "/moby.filesync.v1.FileSync/DiffCopy":
		send := f.dirs[first("dir-name")]
		if send == nil {
			return status.Error(codes.NotFound, "no access allowed to dir")
		}
		return send(s)
	case "/moby.filesync.v1.FileSend/DiffCopy":
		if first("buildkit-attachable-exporter-id") == "0" {
			return fsutil.Receive(s.Context(), s, f.outDir, fsutil.ReceiveOpt{Merge: true})
		}
		for {
			if err := s.RecvMsg(&m); err != nil {
				return nil
			}
			b, err := m.field(1)
			if err != nil {
				return err
			}
			f.out.Write(b)
		}
	case "/containerd.services.content.v1.Content/Write":
		for {
			if err := s.RecvMsg(&m); err != nil {
				return nil
			}
			d, _ := m.field(4)
			if _, ok := f.blobs[string(d)]; ok {
				return status.Error(codes.AlreadyExists, "there")
			}
			b, _ := m.field(6)
			f.out.Write(b)
			if act, _ := m.number(1); act == actCommit {
				f.blobs[string(d)] = bytes.Clone(f.out.Bytes())
				f.out.Reset()
			}
			if err := s.SendMsg(&message{}); err != nil {
				return err
			}
		}
	case "/moby.sshforward.v1.SSH/ForwardAgent":
		for {
			if err := s.RecvMsg(&m); err != nil {
				return nil
			}
			b, _ := m.field(1)
			if err := s.SendMsg(blob(bytes.ToUpper(b))); err != nil {
				return err
			}
		}
	}
	if err := s.RecvMsg(&m); err != nil {
		return err
	}
	arg, err := m.field(1)
	if err != nil {
		return err
	}
	switch method {
	case "/containerd.services.content.v1.Content/Read":
		f.reads++
		b, ok := f.blobs[string(arg)]
		if !ok || first("buildkit-attachable-store-id") != "oci:layout" {
			return status.Error(codes.NotFound, "no blob")
		}
		out := &message{}
		out.raw = protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), b)
		return s.SendMsg(out)
	case "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy":
		if f.policy == nil {
			return status.Error(codes.Unknown, "policy broke")
		}
		return s.SendMsg(f.policy(&m))
	case "/moby.exporter.v1.Exporter/FindExporters":
		ref, err := m.field(2)
		if err != nil || f.exporter == "" {
			return status.Error(codes.Unimplemented, "no exporters")
		}
		x := text(f.exporter)
		x.entry(2, "ref", ref)
		out := &message{}
		out.raw = protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), x.raw)
		return s.SendMsg(out)
	case "/moby.exporter.v1.Exporter/FinalizeExport":
		if f.exporter == "" {
			return status.Error(codes.Unavailable, "not now")
		}
		return status.Error(codes.Internal, "refused: "+string((&message{arg}).raw[2:]))
	case "/moby.buildkit.secrets.v1.Secrets/GetSecret":
		if string(arg) != "token" {
			return status.Error(codes.NotFound, "nope")
		}
		return s.SendMsg(blob([]byte("s3cret")))
	case "/moby.filesync.v1.Auth/FetchToken":
		realm, _ := m.field(3)
		scope, _ := m.field(5)
		out := text(string(realm) + " " + string(scope))
		out.raw = protowire.AppendVarint(protowire.AppendTag(out.raw, 2, protowire.VarintType), 90)
		return s.SendMsg(out)
	case "/moby.filesync.v1.Auth/Credentials":
		if string(arg) == "tokens" {
			return status.Error(codes.PermissionDenied, "no")
		}
		if string(arg) == "identity" {
			return s.SendMsg(text("", "refresh"))
		}
		return s.SendMsg(text("me", "pass"))
	case "/moby.sshforward.v1.SSH/CheckAgent":
		return s.SendMsg(&message{})
	}
	return status.Error(codes.Unimplemented, method)
}

// attach connects a client to a manager and returns when its session is known.
func attach(t *testing.T, m *Manager, id string, p Peer, f *fakeClient) {
	t.Helper()
	mine, theirs := net.Pipe()
	g := grpc.NewServer(grpc.UnknownServiceHandler(f.handle), grpc.ForceServerCodec(Codec{}))
	l := &oneConn{c: make(chan net.Conn, 1), done: make(chan struct{})}
	l.c <- theirs
	go func() { _ = g.Serve(l) }()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Serve(ctx, mine, http.Header{headerID: {id}, headerSharedKey: {"key"}}, p) }()
	t.Cleanup(func() {
		cancel()
		<-ended
		g.Stop()
	})
}

// oneConn is a listener with one connection.
type oneConn struct {
	c    chan net.Conn
	done chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.c:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *oneConn) Close() error   { close(l.done); return nil }
func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{} }

func open(t *testing.T, m *Manager, id string, p Peer) *Session {
	t.Helper()
	s, err := m.Open(t.Context(), id, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func manager(t *testing.T) *Manager {
	t.Helper()
	m, err := NewManager(filepath.Join(t.TempDir(), "sessions"), nil)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func dirOf(t *testing.T, dir string) func(grpc.ServerStream) error {
	t.Helper()
	return func(s grpc.ServerStream) error {
		fs, err := fsutil.NewFS(dir)
		if err != nil {
			return err
		}
		return fsutil.Send(s.Context(), s, fs, nil)
	}
}

func write(t *testing.T, dir, name, data string) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func inode(t *testing.T, p string) uint64 {
	t.Helper()
	st, err := os.Stat(p)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Ino
}

var alice = Peer{Conn: "1", Identity: "alice"}

func TestDirectoriesAreReceivedIncrementally(t *testing.T) {
	src := t.TempDir()
	write(t, src, "same", "1")
	write(t, src, "sub/changes", "1")
	write(t, src, "goes", "1")
	m := manager(t)
	f := &fakeClient{dirs: map[string]func(grpc.ServerStream) error{"context": dirOf(t, src)}}
	attach(t, m, "s", alice, f)
	op := &graph.Local{Name: "context", Follow: []string{"ä"}, Exclude: []string{"plain"}}
	s := open(t, m, "s", alice)
	var told int64
	first, err := s.Sync(t.Context(), op, func(n int64, _ bool) { told = n })
	if err != nil {
		t.Fatal(err)
	}
	if told == 0 {
		t.Error("no progress")
	}
	if got := f.sent.Get("followpaths"); len(got) != 1 || got[0] != "%C3%A4" || f.sent.Get("followpaths-encoded") == nil {
		t.Errorf("followpaths %v", got)
	}
	if got := f.sent.Get("exclude-patterns"); len(got) != 1 || got[0] != "plain" || f.sent.Get("exclude-patterns-encoded") != nil {
		t.Errorf("exclude-patterns %v", got)
	}
	same := inode(t, filepath.Join(first.Path, "same"))

	// A second build at the same time gets a directory of its own.
	other := open(t, m, "s", alice)
	second, err := other.Sync(t.Context(), op, nil)
	if err != nil {
		t.Fatal(err)
	}
	if second.Path == first.Path {
		t.Error("two builds share a directory")
	}
	s.Close()

	write(t, src, "sub/changes", "22")
	if err := os.Remove(filepath.Join(src, "goes")); err != nil {
		t.Fatal(err)
	}
	third, err := open(t, m, "s", alice).Sync(t.Context(), op, nil)
	if err != nil {
		t.Fatal(err)
	}
	if third.Path != first.Path || third.Key != first.Key {
		t.Errorf("the directory was not used again: %v, %v", third, first)
	}
	if inode(t, filepath.Join(third.Path, "same")) != same {
		t.Error("an unchanged file was sent again")
	}
	if b, err := os.ReadFile(filepath.Join(third.Path, "sub/changes")); err != nil || string(b) != "22" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(third.Path, "goes")); !os.IsNotExist(err) {
		t.Error("a removed file stays")
	}

	// Another user's files are never compared with these.
	attach(t, m, "bob", Peer{Conn: "2", Identity: "bob"}, f)
	fourth, err := open(t, m, "bob", Peer{Conn: "2", Identity: "bob"}).Sync(t.Context(), op, nil)
	if err != nil {
		t.Fatal(err)
	}
	if fourth.Path == first.Path || fourth.Path == second.Path {
		t.Error("two users share a directory")
	}

	gone, err := m.Prune(func(Slot) bool { return false })
	if err != nil || len(gone) != 0 {
		t.Errorf("directories in use were removed: %v, %v", gone, err)
	}
	other.Close()
	if gone, err = m.Prune(func(Slot) bool { return false }); err != nil || len(gone) != 1 || gone[0].Size == 0 {
		t.Errorf("removed %v, %v", gone, err)
	}
}

// With the differ "none", files of the same size and time are transferred again, into the same directory.
func TestDirectoriesAreReread(t *testing.T) {
	src := t.TempDir()
	write(t, src, "f", "1")
	then := time.Unix(1_000_000_000, 0)
	if err := os.Chtimes(filepath.Join(src, "f"), then, then); err != nil {
		t.Fatal(err)
	}
	m := manager(t)
	attach(t, m, "s", alice, &fakeClient{dirs: map[string]func(grpc.ServerStream) error{"context": dirOf(t, src)}})
	for _, c := range []struct {
		reread     bool
		data, want string
	}{{false, "1", "1"}, {false, "2", "1"}, {true, "2", "2"}} {
		write(t, src, "f", c.data)
		if err := os.Chtimes(filepath.Join(src, "f"), then, then); err != nil {
			t.Fatal(err)
		}
		s := open(t, m, "s", alice)
		dir, err := s.Sync(t.Context(), &graph.Local{Name: "context", Reread: c.reread}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(dir.Path, "f")); err != nil || string(b) != c.want {
			t.Errorf("%+v: %q, %v", c, b, err)
		}
		s.Close()
	}
	if all, err := m.Usage(); err != nil || len(all) != 1 {
		t.Errorf("%d directories are kept, want 1: %v", len(all), err)
	}
}

func TestSessionsBelongToTheirConnection(t *testing.T) {
	m := manager(t)
	f := &fakeClient{dirs: map[string]func(grpc.ServerStream) error{"context": dirOf(t, t.TempDir())}}
	attach(t, m, "hers", alice, f)
	attach(t, m, "second", alice, f)
	attach(t, m, "his", Peer{Conn: "2", Identity: "alice"}, f)
	s := open(t, m, "hers", alice)
	if _, err := m.Open(t.Context(), "his", alice); diag.KindOf(err) != diag.Denied {
		t.Errorf("another connection's session was opened: %v", err)
	}
	if _, err := s.Sync(t.Context(), &graph.Local{Name: "context", Session: "his"}, nil); diag.KindOf(err) != diag.Denied {
		t.Errorf("another connection's directory was read: %v", err)
	}
	if _, err := s.Sync(t.Context(), &graph.Local{Name: "context", Session: "second"}, nil); err != nil {
		t.Errorf("a session of the same connection: %v", err)
	}
	s.Bind(map[string]string{"context": "his"})
	if _, err := s.Sync(t.Context(), &graph.Local{Name: "context"}, nil); diag.KindOf(err) != diag.Denied {
		t.Errorf("another connection's directory was bound: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Open(ctx, "none", alice); diag.KindOf(err) != diag.NotFound {
		t.Errorf("a session that is not there: %v", err)
	}
}

// statsOf is a client that sends what it was told to, whether that is a directory or not. All files are empty.
func statsOf(stats []*types.Stat) func(grpc.ServerStream) error {
	return func(s grpc.ServerStream) error {
		for _, st := range stats {
			if err := s.SendMsg(&types.Packet{Type: types.PACKET_STAT, Stat: st}); err != nil {
				return err
			}
		}
		if err := s.SendMsg(&types.Packet{Type: types.PACKET_STAT}); err != nil {
			return err
		}
		for {
			var p types.Packet
			if err := s.RecvMsg(&p); err != nil {
				return nil
			}
			switch p.Type {
			case types.PACKET_REQ:
				_ = s.SendMsg(&types.Packet{Type: types.PACKET_DATA, ID: p.ID})
			case types.PACKET_FIN:
				return s.SendMsg(&types.Packet{Type: types.PACKET_FIN})
			case types.PACKET_ERR:
				return io.ErrUnexpectedEOF
			}
		}
	}
}

const dirMode = uint32(os.ModeDir | 0o755)

func linkStat(p, to string) *types.Stat {
	return &types.Stat{Path: p, Mode: uint32(os.ModeSymlink | 0o777), Linkname: to}
}

// TestHostileSecondTransfer: a directory that was received becomes a symlink, and a file below it follows.
func TestHostileSecondTransfer(t *testing.T) {
	outside := t.TempDir()
	write(t, outside, "secret", "secret")
	first := []*types.Stat{{Path: "a", Mode: dirMode}, {Path: "a/f", Mode: 0o644}, {Path: "b", Mode: 0o644}}
	for name, second := range map[string][]*types.Stat{
		"file below":      {linkStat("a", outside), {Path: "a/evil", Mode: 0o644}},
		"directory below": {linkStat("a", outside), {Path: "a/evil", Mode: dirMode}},
		"overwrite":       {linkStat("a", outside), {Path: "a/secret", Mode: 0o600}},
		"hardlink out":    {linkStat("a", outside), {Path: "evil", Mode: 0o644, Linkname: "a/secret"}},
		"hardlink up":     {{Path: "evil", Mode: 0o644, Linkname: "../../../secret"}},
		"deleted below":   {linkStat("a", outside), linkStat("a/secret", "x")},
	} {
		t.Run(name, func(t *testing.T) {
			m := manager(t)
			now := first
			f := &fakeClient{dirs: map[string]func(grpc.ServerStream) error{"context": func(s grpc.ServerStream) error { return statsOf(now)(s) }}}
			attach(t, m, "s", alice, f)
			s := open(t, m, "s", alice)
			if _, err := s.Sync(t.Context(), &graph.Local{Name: "context"}, nil); err != nil {
				t.Fatal(err)
			}
			s.Close()
			now = second
			if _, err := open(t, m, "s", alice).Sync(t.Context(), &graph.Local{Name: "context"}, nil); err == nil {
				t.Error("it was accepted")
			}
			left, err := os.ReadDir(outside)
			if b, _ := os.ReadFile(filepath.Join(outside, "secret")); err != nil || len(left) != 1 || string(b) != "secret" {
				t.Errorf("outside: %v, %q, %v", left, b, err)
			}
			if fi, err := os.Stat(filepath.Join(outside, "secret")); err != nil || fi.Sys().(*syscall.Stat_t).Nlink != 1 {
				t.Error("a file outside has a name in the context")
			}
		})
	}
}

// TestHostileSpecialFiles: devices, sockets, owners and attributes that are not a user's or the capability do not reach this machine from a client.
func TestHostileSpecialFiles(t *testing.T) {
	stats := []*types.Stat{
		{Path: "block", Mode: uint32(os.ModeDevice | 0o666), Devmajor: 7, Devminor: 250},
		{Path: "char", Mode: uint32(os.ModeDevice | os.ModeCharDevice | 0o666), Devmajor: 1, Devminor: 3},
		{Path: "dir", Mode: dirMode, Uid: 1234, Xattrs: map[string][]byte{"trusted.overlay.opaque": []byte("y"), "user.overlay.opaque": []byte("y"), "security.evil": []byte("y")}},
		{Path: "file", Mode: 0o644, Uid: 1234, Gid: 1234, Xattrs: map[string][]byte{"security.capability": []byte("x"), "user.a": []byte("x")}},
		linkStat("out", "/etc/passwd"),
		{Path: "socket", Mode: uint32(os.ModeSocket | 0o666)},
	}
	m := manager(t)
	attach(t, m, "s", alice, &fakeClient{dirs: map[string]func(grpc.ServerStream) error{"context": statsOf(stats)}})
	d, err := open(t, m, "s", alice).Sync(t.Context(), &graph.Local{Name: "context"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadDir(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid() {
			t.Errorf("%s belongs to %d:%d", e.Name(), st.Uid, st.Gid)
		}
		buf := make([]byte, 1024)
		n, err := unix.Llistxattr(filepath.Join(d.Path, e.Name()), buf)
		if err != nil {
			t.Fatal(err)
		}
		for a := range strings.SplitSeq(string(buf[:n]), "\x00") {
			if a != "" && a != "security.selinux" && !session.HasAttr(a) {
				t.Errorf("%s has the attribute %q", e.Name(), a)
			}
		}
	}
	if got := strings.Join(names, " "); got != "dir file out" {
		t.Errorf("the context has %q", got)
	}
	// The kept directories are nobody else's to enter: what was setuid at the client is no program of this machine.
	if fi, err := os.Stat(m.slots.root); err != nil || fi.Mode().Perm()&0o077 != 0 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
}

func TestHostileDirectories(t *testing.T) {
	const dir = dirMode
	link := linkStat
	outside := t.TempDir()
	for name, stats := range map[string][]*types.Stat{
		"parent":         {{Path: "../evil", Mode: 0o644}},
		"absolute":       {{Path: outside + "/evil", Mode: 0o644}},
		"inner parent":   {{Path: "a", Mode: dir}, {Path: "a/../../evil", Mode: 0o644}},
		"below symlink":  {link("a", outside), {Path: "a/evil", Mode: 0o644}},
		"order":          {{Path: "b", Mode: 0o644}, {Path: "a", Mode: 0o644}},
		"hardlink":       {{Path: "evil", Mode: 0o644, Linkname: outside + "/x"}},
		"dots":           {{Path: "..", Mode: dir}},
		"empty":          {{Path: "", Mode: 0o644}},
		"symlink as dir": {link("a", outside), {Path: "a", Mode: dir}, {Path: "a/evil", Mode: 0o644}},
	} {
		t.Run(name, func(t *testing.T) {
			m := manager(t)
			f := &fakeClient{dirs: map[string]func(grpc.ServerStream) error{"context": statsOf(stats)}}
			attach(t, m, "s", alice, f)
			_, err := open(t, m, "s", alice).Sync(t.Context(), &graph.Local{Name: "context"}, nil)
			if err == nil {
				t.Error("it was accepted")
			}
			if left, _ := os.ReadDir(outside); len(left) > 0 {
				t.Errorf("something was written outside: %v", left)
			}
			_ = filepath.WalkDir(filepath.Dir(m.slots.root), func(p string, d os.DirEntry, _ error) error {
				if d.Name() == "evil" {
					t.Errorf("%s was written", p)
				}
				return nil
			})
		})
	}
}

func TestWhatAClientGives(t *testing.T) {
	m := manager(t)
	f := &fakeClient{outDir: t.TempDir()}
	attach(t, m, "s", alice, f)
	s := open(t, m, "s", alice)
	ctx := t.Context()
	if b, err := s.Secret(ctx, "token"); err != nil || string(b) != "s3cret" {
		t.Errorf("secret %q, %v", b, err)
	}
	if _, err := s.Secret(ctx, "other"); diag.KindOf(err) != diag.NotFound || !strings.Contains(err.Error(), "secret other: not found") {
		t.Errorf("secret: %v", err)
	}
	if c, err := s.Credential(ctx, "host"); err != nil || c.Username != "me" || c.Password != "pass" {
		t.Errorf("credential %v, %v", c, err)
	}
	if c, err := s.Credential(ctx, "identity"); err != nil || c.IdentityToken != "refresh" {
		t.Errorf("credential %v, %v", c, err)
	}
	c, err := s.Credential(ctx, "tokens")
	if err != nil || c.Tokens == nil {
		t.Fatalf("credential %v, %v", c, err)
	}
	tok, err := c.Tokens.Token(ctx, session.TokenRequest{Realm: "https://r", Scopes: []string{"a", "b"}})
	if err != nil || tok.Value != "https://r b" || tok.Life != 90*time.Second {
		t.Errorf("token %v, %v", tok, err)
	}
	if _, err := s.Dir(ctx, "none"); diag.KindOf(err) != diag.NotFound {
		t.Errorf("directory: %v", err)
	}
	agent, err := s.SSH(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := agent.Write([]byte("abc")); err != nil {
		t.Error(err)
	}
	b := make([]byte, 3)
	if _, err := io.ReadFull(agent, b); err != nil || string(b) != "ABC" {
		t.Errorf("agent %q, %v", b, err)
	}
	if err := agent.Close(); err != nil {
		t.Error(err)
	}
}

func TestOutputs(t *testing.T) {
	m := manager(t)
	f := &fakeClient{outDir: t.TempDir()}
	attach(t, m, "s", alice, f)
	s := open(t, m, "s", alice)
	data := bytes.Repeat([]byte("0123456789"), 300_000)
	o, err := s.Output(t.Context(), ToFile+"1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.File.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := o.File.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.out.Bytes(), data) {
		t.Errorf("%d bytes arrived, not %d", f.out.Len(), len(data))
	}
	ctx, cancel := context.WithCancel(t.Context())
	if o, err = s.Output(ctx, ToDir+"0"); err != nil {
		t.Fatal(err)
	}
	write(t, o.Dir, "a/b", "x")
	if err := o.Send(ctx); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(f.outDir, "a/b")); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	cancel()
	if _, err := os.Stat(o.Dir); !os.IsNotExist(err) {
		t.Error("the directory was left")
	}
	if _, err := s.Output(t.Context(), "1"); diag.KindOf(err) != diag.NotFound {
		t.Errorf("an unknown output: %v", err)
	}
}

func TestLayouts(t *testing.T) {
	f := &fakeClient{blobs: map[string][]byte{}}
	put := func(b string) string {
		d := digest.FromString(b).String()
		f.blobs[d] = []byte(b)
		return fmt.Sprintf(`{"mediaType":"x","digest":%q,"size":%d`, d, len(b))
	}
	layer := put("layer") + "}"
	manifest := put(`{"config":` + put("{}") + `},"layers":[` + layer + `]}`)
	other := put(`{"layers":[{"mediaType":"x","digest":"sha256:` + strings.Repeat("0", 64) + `","size":1}]}`)
	index := `{"manifests":[` + manifest + `,"platform":{"os":"linux","architecture":"amd64"}},` + other + `,"platform":{"os":"linux","architecture":"s390x"}}]}`
	put(index)
	m := manager(t)
	attach(t, m, "s", alice, f)
	op := &graph.OCILayout{Ref: "layout@" + digest.FromString(index).String(), Store: "layout"}
	for i := range 2 {
		s := open(t, m, "s", alice)
		dir, err := s.Layout(t.Context(), op, graph.Platform{OS: "linux", Architecture: "amd64"})
		if err != nil {
			t.Fatal(err)
		}
		blobs, err := os.ReadDir(filepath.Join(dir.Path, "blobs/sha256"))
		if err != nil || len(blobs) != 4 {
			t.Errorf("%d blobs, %v", len(blobs), err)
		}
		if f.reads != 4 {
			t.Errorf("build %d: %d blobs were read", i, f.reads)
		}
		s.Close()
	}
	s := open(t, m, "s", alice)
	f.blobs[digest.FromString("fake").String()] = []byte("other")
	for ref, want := range map[string]diag.Kind{
		"layout": diag.Invalid, "layout@sha256:../../x": diag.Invalid, "layout@" + digest.FromString("none").String(): diag.NotFound,
		"layout@" + digest.FromString("fake").String(): diag.Invalid,
	} {
		if _, err := s.Layout(t.Context(), &graph.OCILayout{Ref: ref, Store: "layout"}, graph.Platform{}); diag.KindOf(err) != want {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

func TestContentStoreOutput(t *testing.T) {
	f := &fakeClient{blobs: map[string][]byte{}}
	m := manager(t)
	attach(t, m, "s", alice, f)
	for range 2 { // the second time all is there
		o, err := open(t, m, "s", alice).Output(t.Context(), ToStore+"0")
		if err != nil {
			t.Fatal(err)
		}
		data := strings.Repeat("x", chunk+5)
		write(t, o.Dir, "blobs/sha256/"+digest.FromString(data).Encoded(), data)
		write(t, o.Dir, "blobs/sha256/"+digest.FromString("").Encoded(), "")
		if err := o.Send(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(f.blobs) != 2 || string(f.blobs[digest.FromString(data).String()]) != data {
			t.Errorf("%d blobs", len(f.blobs))
		}
	}
}

func TestExporters(t *testing.T) {
	m := manager(t)
	peer := Peer{Conn: "1"}
	attach(t, m, "without", peer, &fakeClient{})
	s := open(t, m, "without", peer)
	if xs, err := s.FindExporters(t.Context(), nil, []string{"r"}); err != nil || len(xs) != 0 {
		t.Errorf("%v %v", xs, err)
	}
	if err := s.FinalizeExport(t.Context(), map[string]string{"a": "b"}); err != nil {
		t.Error(err)
	}
	attach(t, m, "with", peer, &fakeClient{exporter: "oci"})
	s = open(t, m, "with", peer)
	xs, err := s.FindExporters(t.Context(), map[string][]byte{"k": []byte("v")}, []string{"r"})
	if err != nil || len(xs) != 1 || xs[0].Type != "oci" || xs[0].Attrs["ref"] != "r" {
		t.Errorf("%v %v", xs, err)
	}
	if err := s.FinalizeExport(t.Context(), map[string]string{"a": "b"}); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
}
