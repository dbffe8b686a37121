package buildkit

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/session/remote"
)

// dialAs connects as another user: the kernel tells the server who has connected.
func dialAs(t *testing.T, addr string, uid int) client {
	t.Helper()
	path := strings.TrimPrefix(addr, "unix://")
	dir := filepath.Dir(path)
	for name, mode := range map[string]os.FileMode{path: 0o666, dir: 0o711, filepath.Dir(dir): 0o711} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	connect := func(context.Context, string) (net.Conn, error) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		keep := ^uintptr(0)
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, uintptr(uid), keep); e != 0 { // of this thread alone
			return nil, e
		}
		defer syscall.RawSyscall(syscall.SYS_SETRESUID, keep, 0, keep)
		return net.Dial("unix", path)
	}
	cc, err := grpc.NewClient("passthrough:///s", grpc.WithContextDialer(connect), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return client{control.NewControlClient(cc), gateway.NewLLBBridgeClient(cc), cc}
}

// command is the definition of a shell command with a cache mount at /c.
func command(t *testing.T, script string) *pb.Definition {
	t.Helper()
	box := busybox(t)
	raw, err := box.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	return define(t, box, &pb.Op{
		Inputs: []*pb.Input{{Digest: digest.FromBytes(raw).String()}}, Platform: box.Platform,
		Op: &pb.Op_Exec{Exec: &pb.ExecOp{
			Meta: &pb.Meta{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}}, Network: pb.NetMode_NONE,
			Mounts: []*pb.Mount{
				{Dest: "/", Input: 0, Output: 0},
				{Dest: "/c", Input: -1, Output: -1, MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: "shared"}},
			},
		}},
	})
}

func imageSource(t *testing.T, name string) *pb.Definition {
	return define(t, &pb.Op{Platform: &pb.Platform{OS: "linux", Architecture: "amd64"}, Op: &pb.Op_Source{Source: &pb.SourceOp{
		Identifier: "docker-image://docker.io/library/" + name + ":latest", Attrs: map[string]string{"image.resolvemode": "local"},
	}}})
}

func withImage(ref, name string, def *pb.Definition) *control.SolveRequest {
	return &control.SolveRequest{Ref: ref, Definition: def, Exporters: []*control.Exporter{{Type: "image", Attrs: map[string]string{"name": name}}}}
}

func TestTwoUsersOfOneSocketSeeNothingOfEachOther(t *testing.T) {
	addr, e := serve(t, Options{Tenancy: TenancyClient})
	a, b, root := dialAs(t, addr, 1234), dialAs(t, addr, 1235), dial(t, addr)
	const put, has = "test ! -e /c/secret && echo secret >/c/secret", "grep secret /c/secret"
	for name, c := range map[string]client{"the first user": a, "the second user": b, "root": root} {
		// The same refs and the same step: each runs it, in a cache mount of its own.
		if err := solve(t, c, "put", command(t, put)); err != nil {
			t.Errorf("%s finds another one's cache mount: %v", name, err)
		}
		if err := solve(t, c, "has", command(t, has)); err != nil {
			t.Errorf("%s has lost the cache mount: %v", name, err)
		}
	}
	if _, err := a.ControlClient.Solve(t.Context(), withImage("image", "mine", mkdir(t, "/a"))); err != nil {
		t.Fatal(err)
	}
	if err := solve(t, a, "use", imageSource(t, "mine")); err != nil {
		t.Errorf("the user's own image: %v", err)
	}
	for _, c := range []client{b, root} {
		if err := solve(t, c, "use", imageSource(t, "mine")); err == nil || !strings.Contains(err.Error(), "not in the store") {
			t.Errorf("another user's image: %v", err)
		}
	}
	refs, recs := past(t, a, &control.BuildHistoryRequest{})
	if !slices.Equal(refs, []string{"put", "has", "image", "use"}) {
		t.Errorf("the history of the first user: %q", refs)
	}
	for _, c := range []client{b, root} {
		if refs, _ := past(t, c, &control.BuildHistoryRequest{}); slices.Contains(refs, "image") {
			t.Errorf("the history of another user: %q", refs)
		}
		if got := readBlob(t, c, recs["image"].Logs); got != "" {
			t.Error("another user reads the log by its digest")
		}
		if _, err := c.UpdateBuildHistory(t.Context(), &control.UpdateBuildHistoryRequest{Ref: "image", Delete: true}); err == nil || !strings.Contains(err.Error(), "there is no build image") {
			t.Errorf("another user removes the build: %v", err)
		}
	}
	if readBlob(t, a, recs["image"].Logs) == "" {
		t.Error("the user's own log is not there")
	}
	checkUsage(t, e, a, b)
}

// TestAttackStepsWithoutEndTakeAllSlots lets one client run as many steps without end as the engine runs at once, and more.
// The steps of another client must not wait for them.
func TestAttackStepsWithoutEndTakeAllSlots(t *testing.T) {
	addr, _ := serve(t, Options{Tenancy: TenancyClient})
	mallory, alice := dialAs(t, addr, 1234), dialAs(t, addr, 1235)
	atOnce := max(16, 4*runtime.NumCPU())
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for i := range atOnce + 4 {
		def := command(t, fmt.Sprintf("sleep %d.987654", 100_000+i))
		wg.Go(func() {
			_, _ = mallory.ControlClient.Solve(ctx, &control.SolveRequest{Ref: fmt.Sprintf("endless %d", i), Definition: def})
		})
	}
	for running := 0; running < atOnce; time.Sleep(10 * time.Millisecond) {
		if t.Context().Err() != nil {
			t.Fatal(t.Context().Err())
		}
		running = 0
		cmds, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, c := range cmds {
			if b, _ := os.ReadFile(c); bytes.HasPrefix(b, []byte("sleep\x00")) && bytes.HasSuffix(b, []byte(".987654\x00")) {
				running++
			}
		}
		if running > atOnce {
			t.Fatalf("%d steps of one client run at once", running)
		}
	}
	if err := solve(t, alice, "short", command(t, "echo done")); err != nil {
		t.Error(err)
	}
}

// usageOf adds up what a client sees of the disk's usage.
func usageOf(t *testing.T, c client) (n int64) {
	t.Helper()
	u, err := c.DiskUsage(t.Context(), &control.DiskUsageRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range u.Record {
		n += r.Size
	}
	return n
}

// TestAttackOneClientFillsTheDisk lets one client write more than its share: in one step, in a cache mount, and in the results of
// many builds. What the other client has stays.
func TestAttackOneClientFillsTheDisk(t *testing.T) {
	const limit = 64 << 20
	addr, _ := serve(t, Options{Tenancy: TenancyClient}, func(o *engine.Options) { o.TenantBytes = limit })
	mallory, alice := dialAs(t, addr, 1234), dialAs(t, addr, 1235)
	fill := func(path string, mib, n int) *pb.Definition {
		return command(t, fmt.Sprintf("dd if=/dev/urandom of=%s bs=1M count=%d 2>/dev/null; echo %d", path, mib, n))
	}
	if err := solve(t, alice, "r", fill("/f", 20, 0)); err != nil {
		t.Fatal(err)
	}
	before := usageOf(t, alice)
	trudy := dialAs(t, addr, 1236)
	for path, c := range map[string]client{"/f": mallory, "/c/f": trudy} {
		err := solve(t, c, "r", command(t, "dd if=/dev/zero bs=1M count=200 of="+path+"; sleep 100000"))
		if err == nil || !strings.Contains(err.Error(), "may have 64MiB") {
			t.Errorf("200 MiB in %s: %v", path, err)
		}
	}
	for i := range 6 {
		if err := solve(t, mallory, "r", fill("/f", 20, i)); err != nil {
			t.Error(err)
		}
	}
	for usageOf(t, mallory) > limit {
		if t.Context().Err() != nil {
			t.Fatalf("the client keeps %d bytes", usageOf(t, mallory))
		}
		time.Sleep(50 * time.Millisecond)
	}
	if now := usageOf(t, alice); now < before || now < 20<<20 {
		t.Errorf("the other client has %d bytes, and had %d", now, before)
	}
}

// A client's step fills the disk with files that have no name: their space is found by the processes that use them. It makes empty
// files too, which take inodes, of which the machine has as many as it has place for small files.
func TestAttackFilesThatNobodyFinds(t *testing.T) {
	const limit = 64 << 20
	addr, _ := serve(t, Options{Tenancy: TenancyClient}, func(o *engine.Options) { o.TenantBytes = limit })
	for name, script := range map[string]string{
		"removed":          "exec 3>/f; rm /f; dd if=/dev/zero bs=1M count=200 >&3; sleep 100000",
		"removed in cache": "exec 3>/c/f; rm /c/f; dd if=/dev/zero bs=1M count=200 >&3; sleep 100000",
		"empty":            "mkdir /d; cd /d; seq 1 20000 | xargs touch; sleep 100000",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := solve(t, dialAs(t, addr, 1300+len(name)), "r", command(t, script))
			if err == nil || !strings.Contains(err.Error(), "may have 64MiB") {
				t.Errorf("%v", err)
			}
		})
	}
}

// checkUsage looks at what users see of the disk usage, and at what they can remove.
func checkUsage(t *testing.T, e *engine.Engine, a, b client) {
	t.Helper()
	mounts := func(c client) (ids []string) {
		u, err := c.DiskUsage(t.Context(), &control.DiskUsageRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range u.Record {
			if r.RecordType == typeCache {
				ids = append(ids, r.ID)
			}
		}
		return ids
	}
	ofA, ofB := mounts(a), mounts(b)
	if len(ofA) != 1 || len(ofB) != 1 || ofA[0] == ofB[0] {
		t.Errorf("cache mounts %q and %q", ofA, ofB)
	}
	s, err := b.Prune(t.Context(), &control.PruneRequest{All: true})
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = s.Recv()
	}
	if got := mounts(a); !slices.Equal(got, ofA) || len(mounts(b)) != 0 {
		t.Errorf("after the second user's prune the first has %q", got)
	}
	all, err := e.Images(t.Context())
	if err != nil || !slices.ContainsFunc(all, func(i engine.ImageInfo) bool { return i.Name == "user 1234!docker.io/library/mine:latest" }) {
		t.Errorf("the operator sees %v, %v", all, err)
	}
}

func TestSessionOfAnotherUserIsNotFound(t *testing.T) {
	addr, _ := serve(t, Options{Tenancy: TenancyClient})
	a, b := dialAs(t, addr, 1234), dialAs(t, addr, 1235)
	open := func(c client) {
		t.Helper()
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-docker-expose-session-uuid", "theirs")
		s, err := c.Session(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil { // the server begins to speak HTTP/2 when the session is there
			t.Errorf("the session is refused: %v", err)
		}
	}
	open(a)
	_, err := b.ControlClient.Solve(t.Context(), &control.SolveRequest{Ref: "r", Session: "theirs", Definition: mkdir(t, "/a")})
	if err == nil || !strings.Contains(err.Error(), "no active session for theirs") {
		t.Errorf("the session of another user: %v", err)
	}
	open(b) // the same id is free
}

func TestBuildOfAnotherUserIsNotFollowed(t *testing.T) {
	addr, _ := serve(t, Options{Tenancy: TenancyClient})
	a, b := dialAs(t, addr, 1234), dialAs(t, addr, 1235)
	ctx, end := forward(t, a, "running")
	if _, err := a.Ping(ctx, &gateway.PingRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Ping(ctx, &gateway.PingRequest{}); err == nil || strings.Contains(err.Error(), "another client") {
		t.Errorf("the build's frontend for another user: %v", err)
	}
	s, err := b.Status(t.Context(), &control.StatusRequest{Ref: "running"})
	if err == nil {
		_, err = s.Recv()
	}
	if err == nil {
		t.Error("another user follows the build")
	}
	end()
}

func TestWithoutTenancyClientsShare(t *testing.T) {
	addr, _ := serve(t, Options{})
	a, b := dialAs(t, addr, 1234), dialAs(t, addr, 1235)
	if err := solve(t, a, "put", command(t, "echo secret >/c/secret")); err != nil {
		t.Fatal(err)
	}
	if err := solve(t, b, "has", command(t, "grep secret /c/secret")); err != nil {
		t.Error(err)
	}
	if _, err := a.ControlClient.Solve(t.Context(), withImage("image", "ours", mkdir(t, "/a"))); err != nil {
		t.Fatal(err)
	}
	if err := solve(t, b, "use", imageSource(t, "ours")); err != nil {
		t.Error(err)
	}
}

// attachSession attaches a session that has nothing, and returns the calls that it gets.
func attachSession(t *testing.T, c client, id string) (calls func() []string) {
	t.Helper()
	md := []string{"x-docker-expose-session-uuid", id, "x-docker-expose-session-name", id}
	for _, m := range []string{"/moby.filesync.v1.Auth/Credentials", "/moby.filesync.v1.Auth/FetchToken", "/moby.buildkit.secrets.v1.Secrets/GetSecret"} {
		md = append(md, "x-docker-expose-session-grpc-method", m)
	}
	stream, err := c.Session(metadata.AppendToOutgoingContext(t.Context(), md...))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var got []string
	g := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		m, _ := grpc.MethodFromServerStream(s)
		mu.Lock()
		defer mu.Unlock()
		if !strings.HasPrefix(m, "/grpc.health.") { // the server asks for it from time to time, for no build
			got = append(got, m)
		}
		return status.Errorf(codes.NotFound, "%s has nothing", id)
	}))
	go func() { _ = g.Serve(newOneConn(&hijacked{stream: stream, closed: make(chan struct{})})) }()
	t.Cleanup(g.Stop)
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		all := got
		got = nil
		return all
	}
}

// TestAttackFrontendOfTwoClients lets two clients use one frontend in an image. What the frontend asks for is asked of the client
// whose build it serves, and of nobody else: logins for registries, and secrets.
func TestAttackFrontendOfTwoClients(t *testing.T) {
	addr, _ := serve(t, Options{Tenancy: TenancyClient})
	private := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(private.Close)
	linux := &pb.Platform{OS: "linux", Architecture: "amd64"}
	ref := "docker-image://" + strings.TrimPrefix(private.URL, "http://") + "/private:1"
	login := &pb.Op{Platform: linux, Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: ref}}}
	secret := &pb.Op{Platform: linux, Op: &pb.Op_Exec{Exec: &pb.ExecOp{
		Meta: &pb.Meta{Args: []string{"/no"}, Cwd: "/"}, Network: pb.NetMode_NONE,
		Mounts: []*pb.Mount{
			{Dest: "/", Input: -1},
			{Dest: "/s", Input: -1, Output: -1, MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "s"}},
		},
	}}}
	inputs, attrs := frontendInput(t)
	attrs["mode"] = "define"
	calls := map[string]func() []string{}
	clients := map[string]client{"alice": dialAs(t, addr, 1235), "mallory": dialAs(t, addr, 1234)}
	for name, c := range clients {
		calls[name] = attachSession(t, c, name)
	}
	for what, want := range map[*pb.Op]string{login: "Credentials", secret: "GetSecret"} {
		raw, err := define(t, what).MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		attrs["def"] = base64.StdEncoding.EncodeToString(raw)
		for name, other := range map[string]string{"alice": "mallory", "mallory": "alice"} {
			var err error
			for range 100 { // until the session is there
				_, err = clients[name].ControlClient.Solve(t.Context(), &control.SolveRequest{
					Ref: name, Session: name, Frontend: "gateway.v0", FrontendAttrs: attrs, FrontendInputs: inputs,
				})
				if err == nil || !strings.Contains(err.Error(), "no active session") {
					break
				}
			}
			if err == nil {
				t.Errorf("%s of %s: no error", want, name)
			}
			if got := calls[name](); !slices.ContainsFunc(got, func(m string) bool { return strings.HasSuffix(m, "/"+want) }) {
				t.Errorf("%s was not asked for %s, but for %q: %v", name, want, got, err)
			}
			if got := calls[other](); len(got) > 0 {
				t.Errorf("%s is asked for %q by a build of %s", other, got, name)
			}
		}
	}
}

func TestTenantOf(t *testing.T) {
	s := &Server{opt: Options{Tenancy: TenancyClient}}
	if _, err := s.tenantOf(remote.Peer{}); err == nil {
		t.Error("a connection without an identity is a tenant")
	}
	one := &x509.Certificate{RawSubjectPublicKeyInfo: []byte("one")}
	two := &x509.Certificate{RawSubjectPublicKeyInfo: []byte("two")}
	if certificateIdentity(one) == certificateIdentity(two) {
		t.Error("two certificates without a subject are one client")
	}
	for _, c := range []*x509.Certificate{one, two} {
		c.Subject.Names = []pkix.AttributeTypeAndValue{{Type: []int{2, 5, 4, 3}, Value: "ci"}}
	}
	two.Issuer.CommonName = "another authority"
	if certificateIdentity(one) == certificateIdentity(two) {
		t.Error("two authorities vouch for one client")
	}
	if err := Tenancy("uid").Check(); err == nil {
		t.Error("an unknown tenancy is taken")
	}
}

// TestAttackManyListsOfUsage lets one client ask again and again for what takes space, or to prune, which walks through the whole state. A
// few of its calls are carried out at a time, and other clients do not wait for them.
func TestAttackManyListsOfUsage(t *testing.T) {
	addr, s := serveServer(t, Options{Tenancy: TenancyClient})
	mallory, alice := dialAs(t, addr, 1234), dialAs(t, addr, 1235)
	var ends []func()
	for range maxReaders { // calls of its own
		done, err := s.quota.read(t.Context(), "user 1234")
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, done)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := mallory.DiskUsage(ctx, &control.DiskUsageRequest{}); err == nil {
		t.Error("one list more is made at the same time")
	}
	prune, err := mallory.Prune(ctx, &control.PruneRequest{})
	if err == nil {
		_, err = prune.Recv()
	}
	if err == nil || errors.Is(err, io.EOF) {
		t.Error("the state is pruned at the same time")
	}
	if _, err := alice.DiskUsage(t.Context(), &control.DiskUsageRequest{}); err != nil {
		t.Error(err)
	}
	for _, end := range ends {
		end()
	}
	if _, err := mallory.DiskUsage(t.Context(), &control.DiskUsageRequest{}); err != nil {
		t.Error(err)
	}
}
