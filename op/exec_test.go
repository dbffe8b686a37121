package op

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/moby/sys/mountinfo"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/sandbox"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
	"github.com/strata-build/strata/tree"
)

// fakeRuntime runs nothing: it shows the spec to a function.
type fakeRuntime func(*sandbox.Spec) (*sandbox.Exit, error)

func (f fakeRuntime) Run(_ context.Context, s *sandbox.Spec) (*sandbox.Exit, error) { return f(s) }

// execBench is a store with a base image of busybox.
type execBench struct {
	*ExecRunner
	root string
	base *tree.Stack
	env  ExecEnv
	log  bytes.Buffer
}

func newExecBench(t *testing.T) *execBench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("needs runc")
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs a static busybox")
	}
	b := &execBench{root: t.TempDir()}
	s, err := store.Open(b.root, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	sb, err := sandbox.New(sandbox.Options{Root: filepath.Join(t.TempDir(), "sandbox"), OldRunc: true})
	if err != nil {
		t.Fatal(err)
	}
	b.ExecRunner = &ExecRunner{Sandbox: sb, Store: s}
	b.env.Log = func(_ int, data []byte) { b.log.Write(data) }
	b.base = b.layer(t, map[string]string{"bin/busybox": string(busybox), "etc/passwd": "root:x:0:0::/root:/bin/sh\n", "src/a": "A", "src/b": "B"})
	for _, name := range []string{"sh", "cat", "ls", "rm", "mkdir", "touch", "id", "stat", "ln", "dd", "head", "mv", "seq", "env", "nc", "true", "grep", "sleep"} {
		if err := os.Symlink("busybox", filepath.Join(s.LayerDir(b.base.IDs()[0]), "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		b.base.Release()
		sb.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// layer commits a layer of files.
func (b *execBench) layer(t *testing.T, files map[string]string) *tree.Stack {
	t.Helper()
	d, err := b.Store.NewLayer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		p := filepath.Join(d.Dir, name)
		os.MkdirAll(filepath.Dir(p), 0o755)
		if err := os.WriteFile(p, []byte(data), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.commit(t, d, store.LayerInfo{ID: d.ID})
	return tree.NewStack(b.Store, []store.LayerID{d.ID})
}

func (b *execBench) commit(t *testing.T, d *store.Draft, info store.LayerInfo) {
	t.Helper()
	if err := b.Store.Update(t.Context(), func(batch *store.Batch) error { batch.Layer(d, info); return nil }); err != nil {
		t.Fatal(err)
	}
}

func shell(cmd string, mounts ...graph.Mount) *graph.Exec {
	root := graph.Mount{Type: graph.MountBind, Target: "/", Input: 0, Output: 0}
	return &graph.Exec{Args: []string{"/bin/sh", "-c", cmd}, Mounts: append([]graph.Mount{root}, mounts...), Network: graph.NetworkNone, Shell: true}
}

// run runs a step and returns the directories of its new layers.
func (b *execBench) run(t *testing.T, op *graph.Exec, in ...tree.Tree) []string {
	t.Helper()
	out, err := b.Run(t.Context(), op, append([]tree.Tree{b.base}, in...), b.env)
	if err != nil {
		t.Fatalf("%v\n%s", err, b.log.String())
	}
	var dirs []string
	for _, o := range out {
		d, info := o.(*tree.Stack).Pending()
		if d == nil || info.ID != d.ID {
			t.Fatalf("no pending layer: %+v %+v", d, info)
		}
		dirs = append(dirs, d.Dir)
		t.Cleanup(o.(*tree.Stack).Discard)
	}
	b.clean(t)
	return dirs
}

// clean checks that no mount or temporary file is left, but for the trash that the store empties in the background.
func (b *execBench) clean(t *testing.T) {
	t.Helper()
	if mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(b.root)); err != nil || len(mounts) > 0 {
		t.Errorf("mounts left: %v %v", mounts, err)
	}
	if left, _ := filepath.Glob(filepath.Join(b.root, "tmp", "[^t]*")); len(left) > 0 {
		t.Errorf("temporary files left: %v", left)
	}
}

// list names the files of a layer.
func list(dir string) string {
	var names []string
	filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if rel, _ := filepath.Rel(dir, p); rel != "." {
			names = append(names, rel)
		}
		return err
	})
	return strings.Join(names, " ")
}

func TestExecKeepsWhatIsWritten(t *testing.T) {
	b := newExecBench(t)
	dirs := b.run(t, shell("echo new > /src/new; rm /src/a; mkdir -p /x/y; echo out; echo err >&2"))
	// No /etc, though the mount points /etc/hosts and /etc/resolv.conf were made in it.
	if got := list(dirs[0]); got != "src src/a src/new x x/y" && got != "dev proc src src/a src/new sys x x/y" {
		t.Errorf("layer: %s", got)
	}
	if fi, err := os.Lstat(filepath.Join(dirs[0], "src/a")); err != nil || fi.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("no whiteout: %v %v", fi, err)
	}
	for _, want := range []string{"out\n", "err\n"} {
		if !strings.Contains(b.log.String(), want) {
			t.Errorf("log %q", b.log.String())
		}
	}
	if _, err := os.Stat(filepath.Join(b.Store.LayerDir(b.base.IDs()[0]), "src/a")); err != nil {
		t.Error("the base changed:", err)
	}
}

func TestExecFailure(t *testing.T) {
	b := newExecBench(t)
	_, err := b.Run(t.Context(), shell("seq 30; exit 2"), []tree.Tree{b.base}, b.env)
	var d *diag.Error
	if !errors.As(err, &d) || d.Kind != diag.Failed || d.Error() != `process "/bin/sh -c seq 30; exit 2" did not complete successfully: exit code: 2` {
		t.Fatalf("%v", err)
	}
	if len(d.Log) != 20 || d.Log[0] != "11" || d.Log[19] != "30" {
		t.Errorf("log %q", d.Log)
	}
	op := shell("exit 2")
	op.ExitCodes = []int{1, 2}
	b.run(t, op)
	op = shell("x=x; while true; do x=$x$x; done")
	op.Limits.Memory = 16 << 20
	if _, err := b.Run(t.Context(), op, []tree.Tree{b.base}, b.env); err == nil || !strings.HasSuffix(err.Error(), "was killed: out of memory") {
		t.Errorf("%v", err)
	}
	if _, err := b.Run(t.Context(), shell("sh -c 'kill -SEGV $$'; exit $?"), []tree.Tree{b.base}, b.env); err == nil || !strings.HasSuffix(err.Error(), "exit code: 139 (SIGSEGV)") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	b.env.Log = func(int, []byte) { cancel(errors.New("enough")) }
	if _, err := b.Run(ctx, shell("echo x; sleep 100"), []tree.Tree{b.base}, b.env); err == nil || err.Error() != "enough" {
		t.Errorf("%v", err)
	}
	b.clean(t)
}

func TestExecBinds(t *testing.T) {
	b := newExecBench(t)
	other := b.layer(t, map[string]string{"dir/f": "F", "g": "G"})
	defer other.Release()
	ctx := t.TempDir()
	os.MkdirAll(filepath.Join(ctx, "sub"), 0o755)
	os.WriteFile(filepath.Join(ctx, "sub/c"), []byte("C"), 0o644)
	os.WriteFile(filepath.Join(ctx, "ignored"), []byte("I"), 0o644)
	local := tree.NewLocal(nil, session.Dir{Path: ctx}, &graph.Local{Name: "context", Exclude: []string{"ignored"}})
	defer local.Release()
	bind := func(target, source string, input, output int, ro bool) graph.Mount {
		return graph.Mount{Type: graph.MountBind, Target: target, Source: source, Input: input, Output: output, ReadOnly: ro}
	}
	dirs := b.run(t, shell(`cat /ro/f /file /ctx/sub/c /sub/c; ls /ctx; touch /ro/x 2>/dev/null || echo denied; echo W >/rw/w; echo K >/keep/k; cat /rw/w; echo L>/localrw/l`,
		bind("/ro", "dir", 1, graph.None, true), bind("/file", "/g", 1, graph.None, true), bind("/rw", "", 1, graph.None, false), bind("/keep", "/dir", 1, 1, false),
		bind("/ctx", "", 2, graph.None, true), bind("/sub", "/sub", 2, graph.None, true), bind("/localrw", "", 2, 2, false)), other, local)
	log := b.log.String()
	for _, want := range []string{"FGCC", "denied", "W\n"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in %q", want, log)
		}
	}
	if strings.Contains(log, "ignored") {
		t.Errorf("an ignored file is there: %q", log)
	}
	if got := list(dirs[1]); got != "dir dir/k" {
		t.Errorf("kept %q", got)
	}
	if got := list(dirs[2]); got != "l sub sub/c" {
		t.Errorf("kept of the client's directory %q", got)
	}
	for _, stub := range []string{"ro", "file", "rw", "keep", "ctx", "etc/hosts"} {
		if _, err := os.Lstat(filepath.Join(dirs[0], stub)); err == nil {
			t.Errorf("stub left: %s", stub)
		}
	}
	_, err := b.Run(t.Context(), shell("true", bind("/x", "/nope", 1, graph.None, true)), []tree.Tree{b.base, other}, b.env)
	if diag.KindOf(err) != diag.NotFound || !strings.Contains(err.Error(), "/nope") {
		t.Errorf("%v", err)
	}
	b.clean(t)
}

// A source that is a link leads to files of its own tree, not to the host's.
// A step that may write to the client's directory changes a file in place. What the next step finds there is the client's, and what
// the first has left stays as it was.
func TestAttackStepWritesToFilesOfLaterContexts(t *testing.T) {
	b := newExecBench(t)
	dir := t.TempDir()
	clean := strings.Repeat("clean", 5<<20) // large enough for layers to share it
	if err := os.WriteFile(filepath.Join(dir, "big"), []byte(clean), 0o644); err != nil {
		t.Fatal(err)
	}
	write := func(text string) string {
		l := tree.NewLocal(nil, session.Dir{Path: dir, Key: "k"}, &graph.Local{})
		defer l.Release()
		b.log.Reset()
		cmd := "head -c 5 /m/big; echo " + text + " | dd of=/m/big conv=notrunc 2>/dev/null"
		op := shell(cmd, graph.Mount{Type: graph.MountBind, Target: "/m", Input: 1, Output: 1})
		out, err := b.Run(t.Context(), op, []tree.Tree{b.base, l}, b.env)
		if err != nil {
			t.Fatalf("%v\n%s", err, b.log.String())
		}
		if got := b.log.String(); got != "clean" {
			t.Errorf("the step that writes %s found %q", text, got)
		}
		out[0].(*tree.Stack).Discard()
		d, info := out[1].(*tree.Stack).Pending()
		b.commit(t, d, info)
		out[1].(*tree.Stack).Committed()
		t.Cleanup(out[1].(*tree.Stack).Release)
		return filepath.Join(b.Store.LayerDir(d.ID), "big")
	}
	first := write("evil1")
	write("evil2")
	if got, err := os.ReadFile(first); err != nil || string(got[:5]) != "evil1" {
		t.Errorf("the first step's result now begins with %q: %v", got[:5], err)
	}
}

func TestExecSourceLink(t *testing.T) {
	b := newExecBench(t)
	canary := filepath.Join(t.TempDir(), "canary")
	os.WriteFile(canary, []byte("host"), 0o644)
	other := b.layer(t, map[string]string{"x": "inside"})
	defer other.Release()
	os.Symlink(canary, filepath.Join(b.Store.LayerDir(other.IDs()[0]), "out"))
	os.Symlink("/../../x", filepath.Join(b.Store.LayerDir(other.IDs()[0]), "in"))
	mount := graph.Mount{Type: graph.MountBind, Target: "/f", Source: "/out", Input: 1, Output: graph.None, ReadOnly: true}
	if _, err := b.Run(t.Context(), shell("cat /f", mount), []tree.Tree{b.base, other}, b.env); diag.KindOf(err) != diag.NotFound {
		t.Errorf("%v %q", err, b.log.String())
	}
	mount.Source = "in"
	b.run(t, shell("cat /f", mount), other)
	if got := b.log.String(); got != "inside" {
		t.Errorf("%q", got)
	}
}

func TestExecCacheMounts(t *testing.T) {
	b := newExecBench(t)
	first := b.layer(t, map[string]string{"seed/s": "S"})
	defer first.Release()
	cache := graph.Mount{Type: graph.MountCache, Target: "/root/.cache", Input: graph.None, Output: graph.None, CacheID: "id", UID: 3, GID: 4, Mode: 0o750}
	seeded := graph.Mount{Type: graph.MountCache, Target: "/seeded", Input: 1, Source: "/seed", Output: graph.None, CacheID: "seeded", Sharing: graph.SharingLocked}
	again := seeded
	again.Target = "/again"
	for range 2 {
		b.run(t, shell("stat -c '%a %u %g' /root/.cache; echo x >>/root/.cache/n; cat /root/.cache/n; cat /seeded/s /again/s; echo more >>/again/s", cache, seeded, again), first)
	}
	if got, want := b.log.String(), "750 3 4\nx\nSS750 3 4\nx\nx\nSmore\nSmore\n"; got != want {
		t.Errorf("%q", got)
	}
	b.log.Reset()
	b.env.Tenant = "other"
	b.run(t, shell("ls /root/.cache", cache))
	b.run(t, shell("echo y >/root/.cache/n; echo more >>/seeded/s", cache, seeded), first)
	b.env.Renew = func(key string) bool { return strings.Contains(key, "seeded from=") }
	b.run(t, shell("ls /root/.cache; cat /seeded/s", cache, seeded), first)
	if got := b.log.String(); got != "n\nS" {
		t.Errorf("%q", got)
	}
}

// TestExecRestoresCacheMounts gives new cache mounts what they hold elsewhere, but not those that are to begin anew.
func TestExecRestoresCacheMounts(t *testing.T) {
	b := newExecBench(t)
	b.env.Restore = func(_ context.Context, id, dir string) (bool, error) {
		if id != "far mode=0700" && id != "anew mode=0700" {
			return false, nil
		}
		return true, errors.Join(os.WriteFile(filepath.Join(dir, "f"), []byte("restored\n"), 0o644), os.Chmod(dir, 0o711))
	}
	b.env.Renew = func(key string) bool { return strings.Contains(key, "anew mode=") }
	mount := func(id string) graph.Mount {
		return graph.Mount{Type: graph.MountCache, Target: "/" + id, Input: graph.None, Output: graph.None, CacheID: id, Mode: 0o700}
	}
	step := shell("cat /far/f; stat -c %a /far /near /anew; ls /near /anew; echo changed >/far/f", mount("far"), mount("near"), mount("anew"))
	b.run(t, step)
	if got, want := b.log.String(), "restored\n711\n700\n700\n/anew:\n\n/near:\n"; got != want {
		t.Errorf("%q", got)
	}
	b.log.Reset()
	b.run(t, shell("cat /far/f", mount("far")))
	if got := b.log.String(); got != "changed\n" {
		t.Errorf("a mount that is there: %q", got)
	}
}

// A cache that one tenant imports fills its cache mount with what it likes: steps of another tenant must not get it.
func TestAttackRestoredCacheMountOfAnotherTenant(t *testing.T) {
	b := newExecBench(t)
	mount := graph.Mount{Type: graph.MountCache, Target: "/c", Input: graph.None, Output: graph.None, CacheID: "c", Mode: 0o700}
	restored := func(_ context.Context, _, dir string) (bool, error) {
		return true, os.WriteFile(filepath.Join(dir, "f"), []byte("poison\n"), 0o644)
	}
	for _, x := range []struct {
		tenant  string
		restore func(context.Context, string, string) (bool, error)
		want    string
	}{
		{"user 1000", restored, "poison\n"},
		{"user 1001", nil, ""},
		{"", nil, ""},
		{"user 1000", nil, "poison\n"},
	} {
		b.log.Reset()
		b.env.Tenant, b.env.Restore = x.tenant, x.restore
		b.run(t, shell("cat /c/* 2>/dev/null || true", mount))
		if got := b.log.String(); got != x.want {
			t.Errorf("tenant %q: %q, want %q", x.tenant, got, x.want)
		}
	}
}

// secrets is a client with one secret and an agent that answers in capitals.
type secrets struct{ session.Session }

func (secrets) Secret(_ context.Context, id string) ([]byte, error) {
	if id == "key" {
		return []byte("s3cr3t-canary"), nil
	}
	return nil, diag.Errorf(diag.NotFound, "none")
}

func (secrets) SSH(_ context.Context, id string) (io.ReadWriteCloser, error) {
	if id != "" {
		return nil, diag.Errorf(diag.NotFound, "none")
	}
	ours, theirs := net.Pipe()
	go func() {
		buf := make([]byte, 100)
		n, _ := ours.Read(buf)
		ours.Write(bytes.ToUpper(buf[:n]))
		ours.Close()
	}()
	return theirs, nil
}

func TestExecSecrets(t *testing.T) {
	b := newExecBench(t)
	b.env.Session = secrets{}
	secret := func(id string, optional bool) graph.Mount {
		return graph.Mount{Type: graph.MountSecret, Target: "/run/secrets/" + id, ID: id, Optional: optional, Input: graph.None, Output: graph.None, UID: 7, Mode: 0o444}
	}
	op := shell("cat /run/secrets/key; stat -c ' %a %u' /run/secrets/key; ls /run/secrets; echo $TOKEN", secret("key", false), secret("gone", true))
	op.SecretEnv = []graph.SecretEnv{{ID: "key", Name: "TOKEN"}, {ID: "gone", Name: "GONE", Optional: true}}
	dirs := b.run(t, op)
	if got := b.log.String(); got != "s3cr3t-canary 444 7\nkey\ns3cr3t-canary\n" {
		t.Errorf("%q", got)
	}
	if _, err := os.Stat(filepath.Join(dirs[0], "run")); err == nil {
		t.Error("the mount point of the secret is in the layer")
	}
	filepath.Walk(b.root, func(p string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() {
			if data, _ := os.ReadFile(p); bytes.Contains(data, []byte("s3cr3t-canary")) {
				t.Errorf("the secret is on disk: %s", p)
			}
		}
		return nil
	})
	_, err := b.Run(t.Context(), shell("true", secret("gone", false)), []tree.Tree{b.base}, b.env)
	var d *diag.Error
	if !errors.As(err, &d) || d.Kind != diag.NotFound || !strings.Contains(d.Msg, `"gone"`) || !strings.Contains(d.Hint, "--secret id=gone") {
		t.Errorf("%v", err)
	}
	ssh := graph.Mount{Type: graph.MountSSH, Target: "/run/buildkit/ssh_agent.0", Input: graph.None, Output: graph.None}
	b.log.Reset()
	b.run(t, shell("stat -c '%F %a' $SSH_AUTH_SOCK", ssh))
	if got := b.log.String(); got != "socket 600\n" {
		t.Errorf("%q", got)
	}
	asks := &ExecRunner{Store: b.Store, Sandbox: fakeRuntime(func(s *sandbox.Spec) (*sandbox.Exit, error) {
		for range 2 {
			conn, err := net.Dial("unix", s.Mounts[0].Source)
			if err != nil {
				return nil, err
			}
			conn.Write([]byte("question"))
			answer, err := io.ReadAll(conn)
			if string(answer) != "QUESTION" {
				t.Errorf("%q %v", answer, err)
			}
		}
		_, err := net.Dial("unix", s.Mounts[0].Source) // left open: the end of the step closes it
		return &sandbox.Exit{}, err
	})}
	out, err := asks.Run(t.Context(), shell("x", ssh), []tree.Tree{b.base}, b.env)
	if err != nil {
		t.Fatal(err)
	}
	out[0].(*tree.Stack).Discard()
	ssh.ID = "work"
	if _, err := b.Run(t.Context(), shell("true", ssh), []tree.Tree{b.base}, b.env); diag.KindOf(err) != diag.NotFound {
		t.Errorf("%v", err)
	}
	ssh.Optional = true
	b.run(t, shell("test -z \"$SSH_AUTH_SOCK\"", ssh))
}

func TestExecSpec(t *testing.T) {
	b := newExecBench(t)
	var got sandbox.Spec
	b.Sandbox = fakeRuntime(func(s *sandbox.Spec) (*sandbox.Exit, error) { got = *s; return &sandbox.Exit{}, nil })
	op := shell("x", graph.Mount{Type: graph.MountTmpfs, Target: "/t", Size: 5, Input: graph.None, Output: graph.None})
	op.Env, op.Proxy = []string{"http_proxy=mine"}, &graph.ProxyEnv{HTTP: "p", No: "n"}
	op.Mounts[0].ReadOnly, op.Mounts[0].Output = true, graph.None
	if out, err := b.Run(t.Context(), op, []tree.Tree{b.base}, b.env); err != nil || len(out) != 0 {
		t.Fatal(out, err)
	}
	if want := []string{"http_proxy=mine", "HTTP_PROXY=p", "NO_PROXY=n", "no_proxy=n", DefaultPath}; !slices.Equal(got.Env, want) {
		t.Errorf("%q", got.Env)
	}
	if !got.ReadOnlyRoot || len(got.Mounts) != 1 || got.Mounts[0].Size != 5 {
		t.Errorf("%+v", got)
	}
	b.clean(t)
}

func TestExecRefusals(t *testing.T) {
	root := graph.Mount{Type: graph.MountBind, Target: "/", Input: 0, Output: 0}
	r := &ExecRunner{Sandbox: fakeRuntime(func(*sandbox.Spec) (*sandbox.Exit, error) { return nil, fmt.Errorf("it ran") })}
	for what, op := range map[string]*graph.Exec{
		"no root":           {},
		"input too high":    {Mounts: []graph.Mount{{Type: graph.MountBind, Target: "/", Input: 1}}},
		"input below none":  {Mounts: []graph.Mount{{Type: graph.MountBind, Target: "/", Input: -2}}},
		"output below none": {Mounts: []graph.Mount{root, {Type: graph.MountBind, Target: "/x", Output: -2}}},
		"output twice":      {Mounts: []graph.Mount{root, {Type: graph.MountBind, Target: "/x", Output: 0}}},
		"output missing":    {Mounts: []graph.Mount{root, {Type: graph.MountBind, Target: "/x", Output: 2}}},
		"output of a cache": {Mounts: []graph.Mount{root, {Type: graph.MountCache, Target: "/x", Output: 1}}},
		"two roots":         {Mounts: []graph.Mount{root, {Type: graph.MountBind, Target: "/", Output: 1}}},
		"tmpfs root":        {Mounts: []graph.Mount{{Type: graph.MountTmpfs, Target: "/", Output: graph.None}}},
	} {
		if _, err := r.Run(t.Context(), op, []tree.Tree{nil}, ExecEnv{}); diag.KindOf(err) != diag.Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, op := range []*graph.Exec{{Mounts: []graph.Mount{root}, Network: graph.NetworkHost}, {Mounts: []graph.Mount{root}, Security: graph.SecurityInsecure}} {
		if _, err := r.Run(t.Context(), op, []tree.Tree{nil}, ExecEnv{}); diag.KindOf(err) != diag.Denied {
			t.Errorf("%+v: %v", op, err)
		}
	}
}

func TestOutputTail(t *testing.T) {
	l := &outputLog{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 5000 {
			fmt.Fprintf(stream{l, 1}, "line %d\r\n", i)
		}
	})
	wg.Wait()
	if got := l.tail(); len(got) != 20 || got[0] != "line 4980" || got[19] != "line 4999" {
		t.Errorf("%q", got)
	}
	if got := (&outputLog{}).tail(); got != nil {
		t.Errorf("%q", got)
	}
}
