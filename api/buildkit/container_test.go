package buildkit

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// busybox is the op of a root file system with a shell.
func busybox(t *testing.T) *pb.Op {
	t.Helper()
	bin, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	actions := []*pb.FileAction{
		{Input: -1, SecondaryInput: -1, Output: -1, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: "/bin", Mode: 0o755, Timestamp: -1}}},
		{Input: 0, SecondaryInput: -1, Output: -1, Action: &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{Path: "/bin/busybox", Mode: 0o755, Data: bin, Timestamp: -1}}},
	}
	for _, name := range []string{"sh", "cat", "sleep", "mkdir", "test", "stty", "grep", "true"} {
		actions = append(actions, &pb.FileAction{Input: int64(len(actions) - 1), SecondaryInput: -1, Output: -1, Action: &pb.FileAction_Symlink{Symlink: &pb.FileActionSymlink{Oldpath: "busybox", Newpath: "/bin/" + name, Timestamp: -1}}})
	}
	actions[len(actions)-1].Output = 0
	return &pb.Op{Platform: &pb.Platform{OS: "linux", Architecture: "amd64"}, Op: &pb.Op_File{File: &pb.FileOp{Actions: actions}}}
}

// forward begins a build whose frontend is the test, and returns the context of its calls.
func forward(t *testing.T, c client, ref string, allow ...string) (ctx context.Context, end func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := c.ControlClient.Solve(t.Context(), &control.SolveRequest{Ref: ref, Entitlements: allow})
		done <- err
	}()
	ctx = inBuild(t.Context(), ref)
	return ctx, func() {
		t.Helper()
		if _, err := c.Return(ctx, &gateway.ReturnRequest{Result: &gateway.Result{}}); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func rootRef(t *testing.T, ctx context.Context, c client) string {
	t.Helper()
	r, err := c.LLBBridgeClient.Solve(ctx, &gateway.SolveRequest{Definition: define(t, busybox(t)), AllowResultReturn: true, AllowResultArrayRef: true})
	if err != nil {
		t.Fatal(err)
	}
	return r.Result.GetRef().GetId()
}

// execs is an ExecProcess stream.
type execs struct {
	gateway.LLBBridge_ExecProcessClient
	t   *testing.T
	mu  sync.Mutex
	end map[string]*ended
}

// ended is how a process ended, and what it has printed.
type ended struct {
	out     bytes.Buffer
	started chan struct{}
	done    chan struct{}
	exit    *gateway.ExitMessage
	eofs    int
}

func (x *execs) of(id string) *ended {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.end[id] == nil {
		x.end[id] = &ended{started: make(chan struct{}), done: make(chan struct{})}
	}
	return x.end[id]
}

func newExecs(t *testing.T, ctx context.Context, c client) *execs {
	t.Helper()
	s, err := c.ExecProcess(ctx)
	if err != nil {
		t.Fatal(err)
	}
	x := &execs{LLBBridge_ExecProcessClient: s, t: t, end: map[string]*ended{}}
	go func() {
		for {
			m, err := s.Recv()
			if err != nil {
				return
			}
			e := x.of(m.ProcessID)
			switch in := m.Input.(type) {
			case *gateway.ExecMessage_Started:
				close(e.started)
			case *gateway.ExecMessage_File:
				x.mu.Lock()
				e.out.Write(in.File.Data)
				x.mu.Unlock()
				if in.File.EOF {
					e.eofs++
				}
			case *gateway.ExecMessage_Exit:
				e.exit = in.Exit
			case *gateway.ExecMessage_Done:
				close(e.done)
			}
		}
	}()
	return x
}

func (x *execs) start(box, id string, fds []uint32, args ...string) *ended {
	x.t.Helper()
	return x.init(id, &gateway.InitMessage{ContainerID: box, Meta: &pb.Meta{Args: args}, Fds: fds})
}

func (x *execs) init(id string, m *gateway.InitMessage) *ended {
	x.t.Helper()
	if err := x.Send(&gateway.ExecMessage{ProcessID: id, Input: &gateway.ExecMessage_Init{Init: m}}); err != nil {
		x.t.Fatal(err)
	}
	e := x.of(id)
	<-e.started
	return e
}

func (x *execs) input(id, data string, eof bool) {
	x.t.Helper()
	if err := x.Send(&gateway.ExecMessage{ProcessID: id, Input: &gateway.ExecMessage_File{File: &gateway.FdMessage{Data: []byte(data), EOF: eof}}}); err != nil {
		x.t.Fatal(err)
	}
}

func (e *ended) wait() (code uint32, out string) {
	<-e.done
	return e.exit.GetCode(), e.out.String()
}

func TestContainerProcesses(t *testing.T) {
	addr, _ := serve(t, Options{})
	c := dial(t, addr)
	ctx, end := forward(t, c, "exec")
	defer end()
	root := rootRef(t, ctx, c)
	if _, err := c.NewContainer(ctx, &gateway.NewContainerRequest{
		ContainerID: "box", Hostname: "somehost", ExtraHosts: []*pb.HostIP{{Host: "some.host", IP: "169.254.1.2"}}, Network: pb.NetMode_NONE,
		Mounts: []*pb.Mount{
			{Dest: "/", ResultID: root},
			{Dest: "/ro", ResultID: root, Readonly: true, Selector: "/bin"},
			{Dest: "/mem", MountType: pb.MountType_TMPFS},
			{Dest: "/cache", MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: "x"}},
			{Dest: "/scratch"},
			{Dest: "/none", MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "none", Optional: true}},
		},
	}); err != nil {
		t.Fatal(err)
	}
	x := newExecs(t, ctx, c)
	first := x.start("box", "first", []uint32{0}, "cat")
	second := x.start("box", "second", []uint32{0, 1, 2}, "sh", "-c", "cat; grep some /etc/hosts; echo $PATH; echo y > /y; echo x > /cache/f; echo z > /scratch/z; test -f /ro/busybox && ! echo 1 > /ro/x; exit 9")
	x.input("second", "fed\n", false)
	x.input("second", "", true)
	code, out := second.wait()
	if code != 9 || second.eofs != 2 || second.exit.Error.GetMessage() != "exit code: 9" || !strings.Contains(out, "fed\n") || !strings.Contains(out, "169.254.1.2\tsome.host") || !strings.Contains(out, "/usr/bin") || !strings.Contains(out, "Read-only") {
		t.Errorf("exit %v, %q", second.exit, out)
	}
	piped := x.start("box", "piped", []uint32{0}, "sh", "-c", "cat > /piped")
	x.input("piped", "testing", true)
	if code, _ := piped.wait(); code != 0 {
		t.Errorf("exit %v", piped.exit)
	}
	readContainer(t, ctx, c)
	x.input("first", "", true)
	if code, _ := first.wait(); code != 0 {
		t.Errorf("exit %v", first.exit)
	}
	if late := x.start("box", "late", nil, "true"); late != nil {
		if code, _ := late.wait(); code != gateway.UnknownExitStatus {
			t.Errorf("a process in a container that has ended: %v", late.exit)
		}
	}
	if _, err := c.ReleaseContainer(ctx, &gateway.ReleaseContainerRequest{ContainerID: "box"}); err != nil {
		t.Error(err)
	}
	if _, err := c.ReleaseContainer(ctx, &gateway.ReleaseContainerRequest{ContainerID: "box"}); err == nil {
		t.Error("a container was released twice")
	}
}

// readContainer reads what the processes of TestContainerProcesses have written.
func readContainer(t *testing.T, ctx context.Context, c client) {
	t.Helper()
	for _, f := range []struct {
		mount      int32
		name, want string
	}{{0, "/y", "y\n"}, {3, "/f", "x\n"}, {4, "/../../z", "z\n"}, {0, "piped", "testing"}} {
		r, err := c.ReadFileContainer(ctx, &gateway.ReadFileRequest{Ref: "box", MountIndex: f.mount, FilePath: f.name})
		if err != nil || string(r.Data) != f.want {
			t.Errorf("%s of mount %d: %q, %v", f.name, f.mount, r.GetData(), err)
		}
	}
	r, err := c.ReadFileContainer(ctx, &gateway.ReadFileRequest{Ref: "box", FilePath: "/piped", Range: &gateway.FileRange{Offset: 2, Length: 3}})
	if err != nil || string(r.Data) != "sti" {
		t.Errorf("a part: %q, %v", r.GetData(), err)
	}
	d, err := c.ReadDirContainer(ctx, &gateway.ReadDirRequest{Ref: "box", DirPath: "/bin", IncludePattern: "c*"})
	if err != nil || len(d.Entries) != 1 || d.Entries[0].Path != "cat" || d.Entries[0].Linkname != "busybox" {
		t.Errorf("directory %v, %v", d, err)
	}
	st, err := c.StatFileContainer(ctx, &gateway.StatFileRequest{Ref: "box", Path: "/bin/cat"})
	if err != nil || st.Stat.Size < 1000 || os.FileMode(st.Stat.Mode).Perm() != 0o755 {
		t.Errorf("stat %v, %v", st, err)
	}
	for name, call := range map[string]func() error{
		"a directory": func() error {
			_, err := c.ReadFileContainer(ctx, &gateway.ReadFileRequest{Ref: "box", FilePath: "/bin"})
			return err
		},
		"missing": func() error {
			_, err := c.ReadFileContainer(ctx, &gateway.ReadFileRequest{Ref: "box", FilePath: "/missing"})
			return err
		},
		"negative": func() error {
			_, err := c.ReadFileContainer(ctx, &gateway.ReadFileRequest{Ref: "box", FilePath: "/y", Range: &gateway.FileRange{Offset: -1}})
			return err
		},
		"a tmpfs": func() error {
			_, err := c.ReadDirContainer(ctx, &gateway.ReadDirRequest{Ref: "box", MountIndex: 2, DirPath: "/"})
			return err
		},
		"no mount": func() error {
			_, err := c.StatFileContainer(ctx, &gateway.StatFileRequest{Ref: "box", MountIndex: math.MaxInt32, Path: "/"})
			return err
		},
		"a mount below zero": func() error {
			_, err := c.StatFileContainer(ctx, &gateway.StatFileRequest{Ref: "box", MountIndex: -1, Path: "/"})
			return err
		},
	} {
		if err := call(); err == nil || status.Code(err) == codes.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What runs ends with the container, the build and the client.
func TestContainerEnds(t *testing.T) {
	addr, _ := serve(t, Options{})
	c := dial(t, addr)
	ctx, end := forward(t, c, "ends")
	root := rootRef(t, ctx, c)
	x := newExecs(t, ctx, c)
	var all []*ended
	for _, id := range []string{"a", "b"} {
		if _, err := c.NewContainer(ctx, &gateway.NewContainerRequest{ContainerID: id, Mounts: []*pb.Mount{{Dest: "/", ResultID: root}}, Network: pb.NetMode_NONE}); err != nil {
			t.Fatal(err)
		}
		all = append(all, x.start(id, id+"1", []uint32{0, 1}, "cat"), x.start(id, id+"2", nil, "sleep", "1000"))
	}
	if _, err := c.NewContainer(ctx, &gateway.NewContainerRequest{ContainerID: "a", Mounts: []*pb.Mount{{Dest: "/", ResultID: root}}}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("a second container of one name: %v", err)
	}
	if _, err := c.ReleaseContainer(ctx, &gateway.ReleaseContainerRequest{ContainerID: "a"}); status.Code(err) != codes.Canceled {
		t.Errorf("a release with processes: %v", err)
	}
	end()
	for _, e := range all {
		if code, _ := e.wait(); code != gateway.UnknownExitStatus || !strings.Contains(e.exit.Error.GetMessage(), "context canceled") {
			t.Errorf("exit %v", e.exit)
		}
	}
	if procs, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(procs, []byte(t.Name())) {
		t.Errorf("mounts are left: %v", err)
	}
}

func TestContainerTerminalAndSignal(t *testing.T) {
	addr, _ := serve(t, Options{})
	c := dial(t, addr)
	ctx, end := forward(t, c, "tty")
	defer end()
	root := rootRef(t, ctx, c)
	x := newExecs(t, ctx, c)
	if _, err := c.NewContainer(ctx, &gateway.NewContainerRequest{ContainerID: "box", Mounts: []*pb.Mount{{Dest: "/", ResultID: root}}, Network: pb.NetMode_NONE}); err != nil {
		t.Fatal(err)
	}
	keep := x.start("box", "keep", nil, "sleep", "1000")
	tty := x.init("tty", &gateway.InitMessage{ContainerID: "box", Meta: &pb.Meta{Args: []string{"sh"}}, Tty: true, Fds: []uint32{0, 1}})
	if err := x.Send(&gateway.ExecMessage{ProcessID: "tty", Input: &gateway.ExecMessage_Resize{Resize: &gateway.ResizeMessage{Rows: 41, Cols: 83}}}); err != nil {
		t.Fatal(err)
	}
	x.input("tty", "until stty size | grep '41 83'; do :; done; echo $TERM; exit 3\n", false)
	if code, out := tty.wait(); code != 3 || !strings.Contains(out, "\n41 83\r\nxterm\r\n") {
		t.Errorf("exit %v, %q", tty.exit, out)
	}
	hup := x.start("box", "hup", []uint32{1}, "sh", "-c", "trap 'exit 99' HUP; echo ready; while :; do sleep 0.05; done")
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		x.mu.Lock()
		ready := hup.out.Len() > 0
		x.mu.Unlock()
		if ready {
			break
		}
	}
	for id, name := range map[string]string{"hup": "HUP", "keep": "KILL"} {
		if err := x.Send(&gateway.ExecMessage{ProcessID: id, Input: &gateway.ExecMessage_Signal{Signal: &gateway.SignalMessage{Name: name}}}); err != nil {
			t.Fatal(err)
		}
		want := map[string]uint32{"hup": 99, "keep": 137}[id]
		if code, _ := map[string]*ended{"hup": hup, "keep": keep}[id].wait(); code != want {
			if id == "hup" && code == 137 {
				continue // the other signal was first
			}
			t.Errorf("%s: exit %v", id, code)
		}
	}
}

// A client can look into a step that failed, and run commands in it.
func TestContainerOfFailedStep(t *testing.T) {
	addr, _ := serve(t, Options{})
	c := dial(t, addr)
	ctx, end := forward(t, c, "failed")
	defer end()
	root := busybox(t)
	raw, err := root.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	exec := &pb.Op{
		Inputs: []*pb.Input{{Digest: digestOf(raw)}}, Platform: root.Platform,
		Op: &pb.Op_Exec{Exec: &pb.ExecOp{Meta: &pb.Meta{Args: []string{"sh", "-c", "echo left > /left; echo rw > /rw/left; exit 3"}, Cwd: "/"}, Network: pb.NetMode_NONE, Mounts: []*pb.Mount{
			{Input: 0, Dest: "/", Output: 0}, {Input: -1, Dest: "/rw", Output: -1}, {Input: 0, Dest: "/ro", Output: -1, Readonly: true},
		}}},
	}
	_, err = c.LLBBridgeClient.Solve(ctx, &gateway.SolveRequest{Definition: define(t, root, exec), Evaluate: true, AllowResultReturn: true})
	s := solveDetail(t, err)
	if s == nil || len(s.MountIDs) != 3 || len(s.InputIDs) != 3 || s.InputIDs[1] != "" || s.MountIDs[2] != s.InputIDs[2] || len(s.GetOp().GetExec().GetMounts()) != 3 {
		t.Fatalf("error %v, %v", err, s)
	}
	var mounts []*pb.Mount
	for i, m := range s.Op.GetExec().Mounts {
		mounts = append(mounts, &pb.Mount{Dest: m.Dest, ResultID: s.MountIDs[i], Readonly: m.Readonly})
	}
	if _, err := c.NewContainer(ctx, &gateway.NewContainerRequest{ContainerID: "box", Mounts: mounts, Network: pb.NetMode_NONE}); err != nil {
		t.Fatal(err)
	}
	p := newExecs(t, ctx, c).start("box", "p", []uint32{1}, "cat", "/left", "/rw/left")
	if code, out := p.wait(); code != 0 || out != "left\nrw\n" {
		t.Errorf("exit %v, %q", p.exit, out)
	}
	missing := define(t, &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{
		{Input: -1, SecondaryInput: -1, Output: -1, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: "/made", Mode: 0o755, Timestamp: -1}}},
		{Input: 0, SecondaryInput: -1, Output: 0, Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: "/nope"}}},
	}}}})
	_, err = c.LLBBridgeClient.Solve(ctx, &gateway.SolveRequest{Definition: missing, Evaluate: true, AllowResultReturn: true})
	if s = solveDetail(t, err); s.GetFile().GetIndex() != 1 || len(s.MountIDs) != 2 {
		t.Fatalf("error %v, %v", err, s)
	}
	if _, err := c.NewContainer(ctx, &gateway.NewContainerRequest{ContainerID: "files", Mounts: []*pb.Mount{{Dest: "/", ResultID: s.MountIDs[1]}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.StatFileContainer(ctx, &gateway.StatFileRequest{Ref: "files", Path: "/made"}); err != nil {
		t.Error(err)
	}
}

func solveDetail(t *testing.T, err error) *errdefs.Solve {
	t.Helper()
	for _, d := range status.Convert(err).Proto().GetDetails() {
		if d.TypeUrl == typeURL+"Solve+json" {
			s := &errdefs.Solve{}
			if err := s.UnmarshalJSON(d.Value); err != nil {
				t.Fatal(err)
			}
			return s
		}
	}
	return nil
}

func TestHostileContainers(t *testing.T) {
	addr, _ := serve(t, Options{})
	c := dial(t, addr)
	ctx, end := forward(t, c, "hostile")
	defer end()
	root := rootRef(t, ctx, c)
	at := func(change func(*gateway.NewContainerRequest)) *gateway.NewContainerRequest {
		r := &gateway.NewContainerRequest{ContainerID: "x", Mounts: []*pb.Mount{{Dest: "/", ResultID: root}}}
		change(r)
		return r
	}
	for name, change := range map[string]func(*gateway.NewContainerRequest){
		"no id":       func(r *gateway.NewContainerRequest) { r.ContainerID = "" },
		"long id":     func(r *gateway.NewContainerRequest) { r.ContainerID = strings.Repeat("x", 300) },
		"no root":     func(r *gateway.NewContainerRequest) { r.Mounts = nil },
		"two roots":   func(r *gateway.NewContainerRequest) { r.Mounts = append(r.Mounts, r.Mounts[0]) },
		"foreign ref": func(r *gateway.NewContainerRequest) { r.Mounts[0].ResultID = "../../x" },
		"nil mount":   func(r *gateway.NewContainerRequest) { r.Mounts = append(r.Mounts, &pb.Mount{}) },
		"ssh": func(r *gateway.NewContainerRequest) {
			r.Mounts = append(r.Mounts, &pb.Mount{Dest: "/s", MountType: pb.MountType_SSH})
		},
		"secret": func(r *gateway.NewContainerRequest) {
			r.Mounts = append(r.Mounts, &pb.Mount{Dest: "/s", MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "x"}})
		},
		"mount type": func(r *gateway.NewContainerRequest) { r.Mounts[0].MountType = 99 },
		"selector": func(r *gateway.NewContainerRequest) {
			r.Mounts = append(r.Mounts, &pb.Mount{Dest: "/s", ResultID: root, Selector: "/no/such"})
		},
		"network":         func(r *gateway.NewContainerRequest) { r.Network = 99 },
		"network below 0": func(r *gateway.NewContainerRequest) { r.Network = -1 },
		"host":            func(r *gateway.NewContainerRequest) { r.Hostname = "a\x00b" },
	} {
		if _, err := c.NewContainer(ctx, at(change)); err == nil || status.Code(err) == codes.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i, change := range map[string]func(*gateway.NewContainerRequest){
		"ip":       func(r *gateway.NewContainerRequest) { r.ExtraHosts = []*pb.HostIP{{Host: "a b\n", IP: "x"}} },
		"host net": func(r *gateway.NewContainerRequest) { r.Network = pb.NetMode_HOST },
	} {
		r := at(change)
		r.ContainerID = i
		if _, err := c.NewContainer(ctx, r); err != nil {
			continue
		}
		e := newExecs(t, ctx, c).start(i, "p", nil, "true")
		if code, _ := e.wait(); code != gateway.UnknownExitStatus {
			t.Errorf("%s: %v", i, e.exit)
		}
	}
	hostileProcesses(t, ctx, c, at(func(r *gateway.NewContainerRequest) { r.Network = pb.NetMode_NONE }))
}

func hostileProcesses(t *testing.T, ctx context.Context, c client, req *gateway.NewContainerRequest) {
	t.Helper()
	if _, err := c.NewContainer(ctx, req); err != nil {
		t.Fatal(err)
	}
	init := func(change func(*gateway.InitMessage)) *gateway.ExecMessage {
		m := &gateway.InitMessage{ContainerID: "x", Meta: &pb.Meta{Args: []string{"true"}}}
		change(m)
		return &gateway.ExecMessage{ProcessID: "p", Input: &gateway.ExecMessage_Init{Init: m}}
	}
	for name, m := range map[string]*gateway.ExecMessage{
		"nothing":     {ProcessID: "p"},
		"no process":  {Input: &gateway.ExecMessage_File{File: &gateway.FdMessage{}}},
		"no such":     {ProcessID: "p", Input: &gateway.ExecMessage_Signal{Signal: &gateway.SignalMessage{Name: "KILL"}}},
		"no meta":     init(func(m *gateway.InitMessage) { m.Meta = nil }),
		"no box":      init(func(m *gateway.InitMessage) { m.ContainerID = "../x" }),
		"descriptors": init(func(m *gateway.InitMessage) { m.Fds = []uint32{3} }),
	} {
		s, err := c.ExecProcess(ctx)
		if err == nil {
			err = s.Send(m)
		}
		if err == nil {
			_, err = s.Recv()
		}
		if err == nil || errors.Is(err, io.EOF) || status.Code(err) == codes.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
	x := newExecs(t, ctx, c)
	for name, change := range map[string]func(*gateway.InitMessage){
		"security":         func(m *gateway.InitMessage) { m.Security = 2 },
		"security below 0": func(m *gateway.InitMessage) { m.Security = -1 },
		"insecure":         func(m *gateway.InitMessage) { m.Security = pb.SecurityMode_INSECURE },
		"no args":          func(m *gateway.InitMessage) { m.Meta.Args = nil },
		"zero":             func(m *gateway.InitMessage) { m.Meta.Args = []string{"a\x00b"} },
		"secret":           func(m *gateway.InitMessage) { m.Secretenv = []*pb.SecretEnv{nil} },
		"no secret":        func(m *gateway.InitMessage) { m.Secretenv = []*pb.SecretEnv{{ID: "x", Name: "X"}} },
		"user":             func(m *gateway.InitMessage) { m.Meta.User = "4294967296" },
	} {
		m := init(change).GetInit()
		e := x.init(name, m)
		if code, _ := e.wait(); code != gateway.UnknownExitStatus || e.exit.Error.GetCode() == int32(codes.Internal) {
			t.Errorf("%s: %v", name, e.exit)
		}
	}
}

func digestOf(op []byte) string { return digest.FromBytes(op).String() }
