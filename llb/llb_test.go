package llb

import (
	"context"
	"encoding/json"
	"maps"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/llbbuild"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

var arm = graph.Platform{OS: "linux", Architecture: "arm64"}

const hello = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"

// marshal makes a definition with BuildKit's own client.
func marshal(t testing.TB, s llb.State, opts ...llb.ConstraintsOpt) *pb.Definition {
	t.Helper()
	def, err := s.Marshal(context.Background(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	return def.ToPB()
}

func decode(t testing.TB, def *pb.Definition) (*graph.Vertex, *Meta) {
	t.Helper()
	roots, meta, err := Decode(def, Options{Platform: arm})
	if err != nil {
		t.Fatal(err)
	}
	if len(roots) != 1 {
		t.Fatalf("%d roots", len(roots))
	}
	return roots[0].V, meta
}

// again checks that a graph comes back from its encoding, with all that is not part of the ID too.
func again(t testing.TB, roots ...graph.Edge) {
	t.Helper()
	def, err := Encode(roots...)
	if err != nil {
		t.Fatal(err)
	}
	back, _, err := Decode(def, Options{Platform: arm})
	if err != nil {
		t.Fatal(err)
	}
	if len(back) != len(roots) {
		t.Fatalf("%d roots came back as %d", len(roots), len(back))
	}
	for i := range roots {
		same(t, roots[i], back[i])
	}
}

func same(t testing.TB, a, b graph.Edge) {
	t.Helper()
	if a.IsScratch() || b.IsScratch() {
		if a != b {
			t.Errorf("%v came back as %v", a, b)
		}
		return
	}
	if a.V.ID != b.V.ID || a.Out != b.Out {
		t.Errorf("%s came back as another vertex:\n%s\n%s", a.V.Name, graph.Canonical(a.V.Op), graph.Canonical(b.V.Op))
		return
	}
	x, y := *a.V, *b.V
	if !slices.EqualFunc(x.At, y.At, func(p, q diag.Span) bool { return p.String() == q.String() && p.Last == q.Last && p.Width == q.Width }) {
		t.Errorf("%s was at %v, now at %v", x.Name, x.At, y.At)
	}
	x.In, x.At, y.In, y.At = nil, nil, nil, nil
	x.Labels, y.Labels = unnamed(x.Labels), unnamed(y.Labels)
	if !reflect.DeepEqual(x, y) {
		t.Errorf("came back different:\n%+v %+v\n%+v %+v", x, x.Op, y, y.Op)
	}
	for i := range a.V.In {
		same(t, a.V.In[i], b.V.In[i])
	}
}

// unnamed drops the name, which a vertex has as its own.
func unnamed(labels map[string]string) map[string]string {
	labels = maps.Clone(labels)
	delete(labels, nameKey)
	if len(labels) == 0 {
		return nil
	}
	return labels
}

// vertices lists kinds of a graph, inputs first.
func vertices(v *graph.Vertex) []string {
	var out []string
	graph.Walk([]graph.Edge{{V: v}}, func(v *graph.Vertex) { out = append(out, v.Op.Kind()) })
	return out
}

func TestRun(t *testing.T) {
	env := "FOO_TOKEN"
	src := llb.Local("context", llb.IncludePatterns([]string{"*.go"}))
	run := llb.Image("alpine").
		Dir("/src").AddEnv("A", "b").User("web:1000").Hostname("box").AddExtraHost("db", net.ParseIP("10.0.0.7")).
		AddUlimit(llb.UlimitNofile, 10, 20).WithCgroupParent("/builds").Network(llb.NetModeNone).Security(llb.SecurityModeInsecure).
		Run(llb.Args([]string{"make", "all"}), llb.WithProxy(llb.ProxyEnv{HTTPProxy: "http://p", NoProxy: "x"}),
			llb.ValidExitCodes(0, 3),
			llb.AddMount("/src", src, llb.Readonly, llb.SourcePath("/sub")),
			llb.AddMount("/out", llb.Scratch()),
			llb.AddMount("/cache", llb.Scratch(), llb.AsPersistentCacheDir("go", llb.CacheMountLocked)),
			llb.AddMount("/warm", src, llb.AsPersistentCacheDir("warm", llb.CacheMountPrivate)),
			llb.AddMount("/tmp", llb.Scratch(), llb.Tmpfs(llb.TmpfsSize(4096))),
			llb.AddMount("/bydef", src, llb.Readonly, llb.ContentCache(llb.MountContentCacheOff)),
			llb.AddMount("/byfiles", src, llb.ContentCache(llb.MountContentCacheOn)),
			llb.AddSecret("/run/s", llb.SecretID("token"), llb.SecretFileOpt(1, 2, 0o440), llb.SecretOptional),
			llb.AddSecretWithDest("token", nil, llb.SecretAsEnvName(env)),
			llb.AddSSHSocket(llb.SSHID("git"), llb.SSHSocketTarget("/ssh"), llb.SSHOptional, llb.SSHSocketOpt("/ssh", 3, 4, 0o600)),
			llb.AddCDIDevice(llb.CDIDeviceName("acme.com/gpu=1"), llb.CDIDeviceOptional),
			llb.IgnoreCache, llb.WithCustomName("the run"), llb.ProgressGroup("g1", "group one", true),
			llb.WithExportCache(), llb.WithDescription(map[string]string{"k": "v"}),
		)
	v, meta := decode(t, marshal(t, run.GetMount("/out"), llb.LinuxArm64))
	e := v.Op.(*graph.Exec)
	if v.Name != "the run" || !v.NoCache || v.Group != "g1" || v.Label != "group one" || !v.Weak || v.Labels["k"] != "v" || v.Export == nil || !*v.Export || !reflect.DeepEqual(v.Platform, arm) {
		t.Errorf("vertex: %+v", v)
	}
	want := &graph.Exec{
		Args: []string{"make", "all"}, Env: e.Env, Cwd: "/src", User: "web:1000", Hostname: "box", Stubs: true,
		Network: graph.NetworkNone, Security: graph.SecurityInsecure, ExitCodes: []int{0, 3},
		ExtraHosts: []graph.HostIP{{Host: "db", IP: "10.0.0.7"}}, Devices: []graph.Device{{Name: "acme.com/gpu=1", Optional: true}},
		SecretEnv: []graph.SecretEnv{{ID: "token", Name: env}}, Proxy: &graph.ProxyEnv{HTTP: "http://p", No: "x"},
		Limits: graph.Limits{CgroupParent: "/builds", Ulimits: []graph.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}},
		Mounts: []graph.Mount{
			{Type: graph.MountBind, Target: "/", Input: 0, Output: 0},
			{Type: graph.MountBind, Target: "/bydef", Input: 1, Output: graph.None, ReadOnly: true, ByDef: true},
			{Type: graph.MountBind, Target: "/byfiles", Input: 1, Output: 1, ByContent: true},
			{Type: graph.MountCache, Target: "/cache", Input: graph.None, Output: graph.None, CacheID: "go", Sharing: graph.SharingLocked},
			{Type: graph.MountBind, Target: "/out", Input: graph.None, Output: 2},
			{Type: graph.MountBind, Target: "/src", Source: "/sub", Input: 1, Output: graph.None, ReadOnly: true},
			{Type: graph.MountTmpfs, Target: "/tmp", Input: graph.None, Output: graph.None, Size: 4096},
			{Type: graph.MountCache, Target: "/warm", Input: 1, Output: graph.None, CacheID: "warm", Sharing: graph.SharingPrivate},
			{Type: graph.MountSecret, Target: "/run/s", Input: graph.None, Output: graph.None, ID: "token", UID: 1, GID: 2, Mode: 0o440, Optional: true},
			{Type: graph.MountSSH, Target: "/ssh", Input: graph.None, Output: graph.None, ID: "git", UID: 3, GID: 4, Mode: 0o600, Optional: true},
		},
	}
	if !reflect.DeepEqual(e, want) {
		a, _ := json.MarshalIndent(e, "", " ")
		b, _ := json.MarshalIndent(want, "", " ")
		t.Errorf("exec is\n%s\nwant\n%s", a, b)
	}
	if !slices.Contains(e.Env, "A=b") || !slices.Contains(e.Env, "SSH_AUTH_SOCK=/ssh") {
		t.Errorf("env %v", e.Env)
	}
	roots, _, _ := Decode(marshal(t, run.GetMount("/out"), llb.LinuxArm64), Options{})
	if roots[0].Out != 2 {
		t.Errorf("the mount is output %d", roots[0].Out)
	}
	if !slices.Contains(meta.Caps, "exec.secretenv") || meta.Vertices[meta.Digests[v]] != v || len(meta.Digests) != 3 {
		t.Errorf("meta: %+v", meta)
	}
	again(t, roots...)
}

func TestPlatformOfTheBuilder(t *testing.T) {
	def := marshal(t, llb.Image("alpine").Run(llb.Shlex("true")).Root().File(llb.Mkdir("/x", 0o700)))
	for i, raw := range def.Def {
		var op pb.Op
		if err := op.Unmarshal(raw); err != nil {
			t.Fatal(err)
		}
		if op.Platform != nil && i > 0 {
			op.Platform.Architecture = "x86_64"
		}
	}
	v, _ := decode(t, def)
	if !reflect.DeepEqual(v.Platform, graph.Platform{}) {
		t.Errorf("a file op has the platform %v", v.Platform)
	}
	op := &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "docker-image://docker.io/library/alpine:3"}}}
	if v, _ := decode(t, assemble(t, op)); !reflect.DeepEqual(v.Platform, arm) {
		t.Errorf("an image without a platform has %v", v.Platform)
	}
	op.Platform = &pb.Platform{OS: "linux", Architecture: "x86_64"}
	if v, _ := decode(t, assemble(t, op)); v.Platform.Architecture != "amd64" {
		t.Errorf("the platform is not normal: %v", v.Platform)
	}
}

// assemble makes a definition of ops; each but the first takes output 0 of the one before, and the last is the result.
func assemble(t testing.TB, ops ...*pb.Op) *pb.Definition {
	t.Helper()
	def := &pb.Definition{Metadata: map[string]*pb.OpMetadata{}}
	var prev digest.Digest
	for i, op := range append(ops, &pb.Op{}) {
		if i > 0 && len(op.Inputs) == 0 {
			op.Inputs = []*pb.Input{{Digest: string(prev)}}
		}
		raw, err := op.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		def.Def = append(def.Def, raw)
		prev = digest.FromBytes(raw)
	}
	return def
}

func TestSources(t *testing.T) {
	for _, c := range []struct {
		state llb.State
		want  graph.Op
	}{
		{
			llb.Image("alpine:3", llb.ResolveModeForcePull, llb.WithLayerLimit(2), llb.WithImageChecksum(hello), llb.MarkImageInternal),
			&graph.Image{Ref: "docker.io/library/alpine:3", Mode: graph.ResolvePull, LayerLimit: 2, Checksum: hello, Record: "internal"},
		},
		{llb.Image("alpine", llb.ResolveModeDefault), &graph.Image{Ref: "docker.io/library/alpine:latest"}},
		{llb.Image("alpine", llb.ResolveModePreferLocal), &graph.Image{Ref: "docker.io/library/alpine:latest", Mode: graph.ResolveLocal}},
		{
			llb.OCILayout("not/real@"+hello, llb.OCIStore("sess", "store"), llb.OCILayerLimit(1)),
			&graph.OCILayout{Ref: "not/real@" + hello, Store: "store", Session: "sess", LayerLimit: 1},
		},
		{
			llb.ImageBlob("example.com/x@"+hello, llb.Filename("f"), llb.Chmod(0o640), llb.Chown(5, 6)),
			&graph.Blob{Ref: "example.com/x@" + hello, Filename: "f", Mode: 0o640, UID: 5, GID: 6},
		},
		{
			llb.OCILayoutBlob("example.com/x@"+hello, llb.ImageBlobOCIStore("sess", "store"), llb.Filename("a/../b")),
			&graph.Blob{Ref: "example.com/x@" + hello, Layout: true, Store: "store", Session: "sess", Filename: "b"},
		},
		{
			llb.Git("https://github.com/moby/buildkit.git", "v1:sub", llb.KeepGitDir(), llb.GitSkipSubmodules(), llb.GitChecksum("abcd"), llb.GitMTimeCommit(), llb.GitFetchByCommit(),
				llb.AuthTokenSecret("tok"), llb.AuthHeaderSecret("hdr")),
			&graph.Git{
				Remote: "https://github.com/moby/buildkit.git", Ref: "v1", Subdir: "sub", Checksum: "abcd", KeepDir: true, SkipSubmodules: true, FetchByCommit: true,
				MTimeCommit: true, AuthToken: "tok", AuthHeader: "hdr",
			},
		},
		{
			llb.Git("https://github.com/moby/buildkit.git", "", llb.GitChecksum("abcd"), llb.GitCheckoutBundle(), llb.GitBundleURL("oci-layout+blob://x/y@"+hello, llb.GitBundleOCIStore("sess", "store"))),
			&graph.Git{
				Remote: "https://github.com/moby/buildkit.git", Checksum: "abcd", Bundle: true, BundleFrom: "oci-layout+blob://x/y@" + hello, Store: "store", Session: "sess",
				AuthToken: "GIT_AUTH_TOKEN", AuthHeader: "GIT_AUTH_HEADER",
			},
		},
		{
			llb.HTTP("http://example.com/s", llb.VerifyPGPSignature(llb.HTTPSignatureInfo{PubKey: []byte("K"), Signature: []byte("S")})),
			&graph.HTTP{URL: "http://example.com/s", Signature: &graph.HTTPVerify{PubKey: "K", Signature: "S"}},
		},
		{
			llb.Git("git@github.com:moby/buildkit.git", "main", llb.KnownSSHHosts("github.com ssh-ed25519 AAAA"), llb.MountSSHSock("agent")),
			&graph.Git{Remote: "git@github.com:moby/buildkit.git", Ref: "main", SSH: "agent", KnownHosts: "github.com ssh-ed25519 AAAA\n", AuthToken: "GIT_AUTH_TOKEN", AuthHeader: "GIT_AUTH_HEADER"},
		},
		{llb.Git("github.com/moby/buildkit", ""), &graph.Git{Remote: "https://github.com/moby/buildkit", AuthToken: "GIT_AUTH_TOKEN", AuthHeader: "GIT_AUTH_HEADER"}},
		{
			llb.HTTP("https://example.com/a?b=c", llb.Checksum(hello), llb.Filename("n"), llb.Chmod(0o755), llb.Chown(7, 8), llb.Header(llb.HTTPHeader{Accept: "x/y", UserAgent: "me"}), llb.AuthHeaderSecret("s")),
			&graph.HTTP{URL: "https://example.com/a?b=c", Checksum: hello, Filename: "n", Mode: 0o755, UID: 7, GID: 8, Header: map[string]string{"Accept": "x/y", "User-Agent": "me"}, AuthHeader: "s"},
		},
		{
			llb.Local("ctx", llb.SessionID("s1"), llb.IncludePatterns([]string{"a", "b"}), llb.ExcludePatterns([]string{"c"}), llb.FollowPaths([]string{"l"}), llb.SharedKeyHint("k"), llb.MetadataOnlyTransfer([]string{"go.mod"})),
			&graph.Local{Name: "ctx", Session: "s1", Include: []string{"a", "b"}, Exclude: []string{"c"}, Follow: []string{"l"}, SharedKey: "k", Metadata: true, MetaExcl: []string{"go.mod"}},
		},
		{llb.Local("ctx", llb.LocalUniqueID("u")), &graph.Local{Name: "ctx", Unique: "u"}},
		{llb.Local("ctx", llb.SessionID("sub:s1")), &graph.Local{Name: "sub-ctx", Session: "s1"}},
	} {
		v, _ := decode(t, marshal(t, c.state))
		if !reflect.DeepEqual(v.Op, c.want) {
			t.Errorf("%+v\nwant %+v", v.Op, c.want)
		}
		if !strings.Contains(v.Name, "://") {
			t.Errorf("a source is named %q", v.Name)
		}
		again(t, graph.Edge{V: v})
	}
}

func TestFileActions(t *testing.T) {
	at := time.Unix(1700000000, 5)
	utc := at.UTC()
	mode := uint32(0o640)
	src := llb.Local("context")
	img := llb.Image("alpine")
	st := img.File(llb.
		Mkdir("/d", 0o750, llb.WithParents(true), llb.WithUser("web"), llb.WithCreatedTime(at)).
		Mkfile("/d/f", 0o600, []byte("x"), llb.WithUIDGID(7, 8)).
		Rm("/old*", llb.WithAllowNotFound(true), llb.WithAllowWildcard(true)).
		Symlink("/d/f", "/l", llb.WithUser("web:staff")).
		Copy(src, "/app/*", "/dest/", &llb.CopyInfo{
			Mode: &llb.ChmodOpt{Mode: os.FileMode(mode)}, FollowSymlinks: true, CopyDirContentsOnly: true, IncludePatterns: []string{"a"}, ExcludePatterns: []string{"b"},
			AttemptUnpack: true, CreateDestPath: true, AllowWildcard: true, AllowEmptyWildcard: true, AlwaysReplaceExistingDestPaths: true, CreatedTime: &at,
			ChownOpt: &llb.ChownOpt{User: &llb.UserOpt{UID: 9}},
		}).
		Copy(llb.Scratch().File(llb.Mkfile("/y", 0o644, nil)), "/y", "/y", &llb.CopyInfo{Mode: &llb.ChmodOpt{ModeStr: "u+x"}}))
	v, _ := decode(t, marshal(t, st))
	web := &graph.Owner{User: "web", GID: graph.None}
	want := &graph.File{Actions: []graph.Action{
		{In: 0, Out: graph.None, Mkdir: &graph.Mkdir{Path: "/d", Mode: 0o750, Parents: true, Owner: web, Time: &utc}},
		{In: 3, Out: graph.None, Mkfile: &graph.Mkfile{Path: "/d/f", Mode: 0o600, Data: []byte("x"), Owner: &graph.Owner{UID: 7, GID: 8}}},
		{In: 4, Out: graph.None, Rm: &graph.Rm{Path: "/old*", AllowNotFound: true, Wildcard: true}},
		{In: 5, Out: graph.None, Symlink: &graph.Symlink{Target: "/d/f", Path: "/l", Owner: &graph.Owner{User: "web", Group: "staff"}}},
		{In: 6, From: 1, Out: graph.None, Copy: &graph.Copy{
			Src: "/app/*", Dest: "/dest/", Mode: &mode, FollowSymlink: true, DirContents: true, Include: []string{"a"}, Exclude: []string{"b"}, Unpack: true,
			CreateDest: true, Wildcard: true, AllowEmpty: true, AlwaysReplace: true, Time: &utc, Owner: &graph.Owner{UID: 9, GID: graph.None},
		}},
		{In: 7, From: 2, Out: 0, Copy: &graph.Copy{Src: "/y", Dest: "/y", ModeStr: "u+x"}},
	}}
	if string(graph.Canonical(v.Op)) != string(graph.Canonical(want)) {
		t.Errorf("actions\n%s\nwant\n%s", graph.Canonical(v.Op), graph.Canonical(want))
	}
	again(t, graph.Edge{V: v})
	if !strings.HasPrefix(v.Name, "mkdir /d, mkfile /d/f, rm /old*, symlink /l -> /d/f, copy /app/* /dest/") {
		t.Errorf("name %q", v.Name)
	}
}

func TestRequiredPaths(t *testing.T) {
	op := func(src string, required ...string) *pb.Op {
		return &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{Input: -1, SecondaryInput: 0, Action: &pb.FileAction_Copy{
			Copy: &pb.FileActionCopy{Src: src, Dest: "/", Mode: -1, Timestamp: -1, IncludePatterns: []string{"x"}, RequiredPaths: required},
		}}}}}}
	}
	base := &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "local://context"}}}
	for _, c := range []struct {
		src      string
		required string
		want     string
	}{{"/", "/a/b", "a/b"}, {"/dir", "/dir/a", "a"}, {"dir/", "/dir/a/*", "a/*"}, {"/dir", "/directory/a", "/directory/a"}} {
		v, _ := decode(t, assemble(t, base, op(c.src, c.required)))
		if got := v.Op.(*graph.File).Actions[0].Copy.Required; len(got) != 1 || got[0] != c.want {
			t.Errorf("%s in %s is %v, not %s", c.required, c.src, got, c.want)
		}
		again(t, graph.Edge{V: v})
	}
}

func TestActionsOutOfOrder(t *testing.T) {
	mk := func(in int64, out int64, name string) *pb.FileAction {
		return &pb.FileAction{Input: in, SecondaryInput: -1, Output: out, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: name, Timestamp: -1}}}
	}
	f := &pb.FileOp{Actions: []*pb.FileAction{mk(2, 0, "/c"), mk(-1, 1, "/a"), mk(1, -1, "/b")}}
	g, err := decodeFile(f, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range g.Actions {
		got = append(got, a.Mkdir.Path)
	}
	if strings.Join(got, " ") != "/a /b /c" || g.Actions[1].In != 0 || g.Actions[2].In != 1 || g.Actions[2].Out != 0 || g.Actions[0].Out != 1 {
		t.Errorf("sorted: %s", graph.Canonical(g))
	}
	f.Actions[1].Input = 0
	if _, err := decodeFile(f, 0); err == nil || diag.KindOf(err) != diag.Invalid {
		t.Errorf("a circle of actions: %v", err)
	}
}

func TestMergeDiffBuildPassthrough(t *testing.T) {
	a, b := llb.Image("a"), llb.Scratch().File(llb.Mkfile("/f", 0o644, nil))
	v, _ := decode(t, marshal(t, llb.Merge([]llb.State{a, llb.Diff(a, b), llb.Diff(b, llb.Scratch())})))
	if got := strings.Join(vertices(v), " "); got != "source.image file diff diff merge" {
		t.Errorf("vertices: %s", got)
	}
	if d := v.In[2].V; !d.In[1].IsScratch() || d.In[0].V.Op.Kind() != "file" || d.Name != "diff (mkfile /f) -> scratch" {
		t.Errorf("diff: %+v", d)
	}
	lower := graph.New(&graph.Diff{}, []graph.Edge{{}, v.In[0]}, graph.Named("a diff of scratch"))
	again(t, graph.Edge{V: lower})
	again(t, graph.Edge{V: graph.New(&graph.Diff{}, []graph.Edge{{}, {}}, graph.Named("nothing"))})
	again(t, graph.Edge{V: v})

	v, _ = decode(t, marshal(t, b.With(llbbuild.Build(llbbuild.WithFilename("f")))))
	if o, ok := v.Op.(*graph.Build); !ok || o.File != "f" || v.In[0].V.Op.Kind() != "file" {
		t.Errorf("build: %+v", v.Op)
	}
	again(t, graph.Edge{V: v})

	p := llb.NewPassthroughOp("p", []llb.PassthroughInput{{State: a}, {State: b, Output: true}})
	v, _ = decode(t, marshal(t, llb.NewState(p.Output())))
	if o, ok := v.Op.(*graph.Passthrough); !ok || o.ID != "p" || !slices.Equal(o.Outs, []int{1}) || len(v.In) != 2 {
		t.Errorf("passthrough: %+v", v.Op)
	}
	again(t, graph.Edge{V: v})
}

func TestLocations(t *testing.T) {
	text := []byte("FROM alpine\nRUN make\n")
	m := llb.NewSourceMap(nil, "Dockerfile", "Dockerfile", text)
	at := m.Location([]*pb.Range{{Start: &pb.Position{Line: 2, Character: 4}, End: &pb.Position{Line: 2, Character: 8}}})
	v, meta := decode(t, marshal(t, llb.Image("alpine", m.Location([]*pb.Range{{Start: &pb.Position{Line: 1}, End: &pb.Position{Line: 1}}})).Run(llb.Shlex("make"), at).Root()))
	if len(meta.Sources) != 1 || len(v.At) != 1 || v.At[0].String() != "Dockerfile:2:5" || v.At[0].Width != 4 || string(v.At[0].Source.Data) != string(text) {
		t.Fatalf("at %+v", v.At)
	}
	if s := v.In[0].V.At; len(s) != 1 || s[0].String() != "Dockerfile:1" {
		t.Errorf("at %+v", s)
	}
	again(t, graph.Edge{V: v})
	// A step that is wrong is shown where it was written.
	def := marshal(t, llb.Image("alpine", at))
	def.Def[0] = slices.Concat(def.Def[0]) // another definition with the location of the first
	var op pb.Op
	if err := op.Unmarshal(def.Def[0]); err != nil {
		t.Fatal(err)
	}
	op.GetSource().Attrs = map[string]string{pb.AttrImageResolveMode: "sometimes"}
	bad := assemble(t, &op)
	bad.Source = def.Source
	for _, l := range def.Source.Locations {
		bad.Source.Locations = map[string]*pb.Locations{string(digest.FromBytes(bad.Def[0])): l}
	}
	_, _, err := Decode(bad, Options{})
	var d *diag.Error
	if d, _ = err.(*diag.Error); d == nil || len(d.At) != 1 || d.At[0].First != 2 { //nolint:errorlint // the outermost is meant
		t.Errorf("error %v at %+v", err, d)
	}
}

func TestResources(t *testing.T) {
	def := marshal(t, llb.Image("alpine").Run(llb.Shlex("make")).Root())
	md := def.Metadata[string(digest.FromBytes(def.Def[1]))]
	md.LinuxResources = &pb.LinuxResources{Memory: 1 << 20, MemorySwap: -1, CpuShares: 2, CpuPeriod: 3, CpuQuota: 4, CpusetCpus: "0", CpusetMems: "1"}
	v, _ := decode(t, def)
	l := v.Op.(*graph.Exec).Limits
	if l.Memory != 1<<20 || l.MemorySwap != -1 || l.CPUShares != 2 || l.CPUPeriod != 3 || l.CPUQuota != 4 || l.CPUSet != "0" || l.Mems != "1" {
		t.Errorf("limits %+v", l)
	}
	again(t, graph.Edge{V: v})
}

func TestScratchAndSeveralRoots(t *testing.T) {
	roots, _, err := Decode(&pb.Definition{}, Options{})
	if err != nil || len(roots) != 1 || !roots[0].IsScratch() {
		t.Errorf("scratch: %v, %v", roots, err)
	}
	again(t, graph.Edge{})
	a, _ := decode(t, marshal(t, llb.Image("a")))
	b, _ := decode(t, marshal(t, llb.Image("b")))
	again(t, graph.Edge{V: b}, graph.Edge{V: a}, graph.Edge{V: b})
	if _, err := Encode(graph.Edge{V: a}, graph.Edge{}); err == nil {
		t.Error("scratch was encoded as one of several roots")
	}
	if _, err := Encode(graph.Edge{V: graph.New(&graph.Squash{}, []graph.Edge{{V: a}, {}})}); diag.KindOf(err) != diag.Unsupported {
		t.Errorf("squash: %v", err)
	}
	// A vertex with scratch among its inputs, as Strata's own frontends make.
	f := graph.New(&graph.File{Actions: []graph.Action{{In: 0, From: 1, Copy: &graph.Copy{Src: "/", Dest: "/"}}, {In: 2, Out: 1, Mkdir: &graph.Mkdir{Path: "/d"}}}}, []graph.Edge{{}, {V: a}})
	def, err := Encode(graph.Edge{V: f, Out: 1})
	if err != nil {
		t.Fatal(err)
	}
	v, _ := decode(t, def)
	if got := v.Op.(*graph.File).Actions; got[0].In != graph.None || got[0].From != 0 || got[1].In != 1 {
		t.Errorf("actions %s", graph.Canonical(v.Op))
	}
}
