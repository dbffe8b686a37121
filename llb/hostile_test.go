package llb

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

func source(id string, kv ...string) *pb.Op {
	s := &pb.SourceOp{Identifier: id, Attrs: map[string]string{}}
	for i := 0; i+1 < len(kv); i += 2 {
		s.Attrs[kv[i]] = kv[i+1]
	}
	return &pb.Op{Op: &pb.Op_Source{Source: s}}
}

func command(change func(*pb.ExecOp)) *pb.Op {
	e := &pb.ExecOp{Meta: &pb.Meta{Args: []string{"true"}}, Mounts: []*pb.Mount{{Input: 0, Dest: "/"}}}
	change(e)
	return &pb.Op{Op: &pb.Op_Exec{Exec: e}}
}

func mount(m *pb.Mount) *pb.Op {
	return command(func(e *pb.ExecOp) { e.Mounts = append(e.Mounts, m) })
}

func actions(a ...*pb.FileAction) *pb.Op {
	return &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: a}}}
}

func mkdir(in, second, out int64, owner *pb.ChownOpt) *pb.FileAction {
	return &pb.FileAction{Input: in, SecondaryInput: second, Output: out, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: "/d", Owner: owner}}}
}

func byName(in int64) *pb.ChownOpt {
	return &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: "u", Input: in}}}}
}

const alpine = "docker-image://docker.io/library/alpine:3"

func TestHostileOps(t *testing.T) {
	base := source(alpine)
	type cases map[string]*pb.Op
	all := cases{
		"no op":                        {},
		"exec: empty":                  {Op: &pb.Op_Exec{Exec: &pb.ExecOp{}}},
		"exec: no args":                command(func(e *pb.ExecOp) { e.Meta.Args = nil }),
		"exec: no mounts":              command(func(e *pb.ExecOp) { e.Mounts = nil }),
		"exec: no root":                command(func(e *pb.ExecOp) { e.Mounts[0].Dest = "/x" }),
		"exec: two roots":              mount(&pb.Mount{Dest: "//", Input: 0}),
		"exec: root by dots":           mount(&pb.Mount{Dest: "/x/..", Input: 0}),
		"exec: input -2":               command(func(e *pb.ExecOp) { e.Mounts[0].Input = -2 }),
		"exec: input 1":                command(func(e *pb.ExecOp) { e.Mounts[0].Input = 1 }),
		"exec: input max":              command(func(e *pb.ExecOp) { e.Mounts[0].Input = math.MaxInt64 }),
		"exec: output -2":              command(func(e *pb.ExecOp) { e.Mounts[0].Output = -2 }),
		"exec: output max":             command(func(e *pb.ExecOp) { e.Mounts[0].Output = math.MaxInt64 }),
		"exec: zero byte in args":      command(func(e *pb.ExecOp) { e.Meta.Args = []string{"a\x00b"} }),
		"exec: zero byte in mount":     mount(&pb.Mount{Dest: "/a\x00", Input: -1}),
		"exec: cache without options":  mount(&pb.Mount{Dest: "/c", Input: -1, MountType: pb.MountType_CACHE}),
		"exec: secret without options": mount(&pb.Mount{Dest: "/c", Input: -1, MountType: pb.MountType_SECRET}),
		"exec: secret without id":      mount(&pb.Mount{Dest: "/c", Input: -1, MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{}}),
		"exec: secret mode":            mount(&pb.Mount{Dest: "/c", Input: -1, MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "x", Mode: 1 << 20}}),
		"exec: ssh without options":    mount(&pb.Mount{Dest: "/c", Input: -1, MountType: pb.MountType_SSH}),
		"exec: tmpfs size":             mount(&pb.Mount{Dest: "/c", Input: -1, MountType: pb.MountType_TMPFS, TmpfsOpt: &pb.TmpfsOpt{Size: -1}}),
		"exec: content of a part":      mount(&pb.Mount{Dest: "/c", Input: 0, Output: 1, Selector: "/sub", ContentCache: pb.MountContentCache_ON}),
		"exec: secret variable":        command(func(e *pb.ExecOp) { e.Secretenv = []*pb.SecretEnv{{ID: "x"}} }),
		"exec: secret variable's name": command(func(e *pb.ExecOp) { e.Secretenv = []*pb.SecretEnv{{ID: "x", Name: "A=B"}} }),
		"exec: device":                 command(func(e *pb.ExecOp) { e.CdiDevices = []*pb.CDIDevice{{}} }),

		"file: none":             actions(),
		"file: empty action":     actions(&pb.FileAction{}),
		"file: input -2":         actions(mkdir(-2, -1, 0, nil)),
		"file: input of itself":  actions(mkdir(1, -1, 0, nil)),
		"file: input beyond":     actions(mkdir(2, -1, 0, nil)),
		"file: input max":        actions(mkdir(math.MaxInt64, -1, 0, nil)),
		"file: a circle":         actions(mkdir(2, -1, 0, nil), mkdir(1, -1, 1, nil)),
		"file: no output":        actions(mkdir(0, -1, -1, nil)),
		"file: output -2":        actions(mkdir(0, -1, -2, nil)),
		"file: output 1 only":    actions(mkdir(0, -1, -1, nil), mkdir(1, -1, 1, nil)),
		"file: output max":       actions(mkdir(0, -1, math.MaxInt64, nil)),
		"file: one output twice": actions(mkdir(0, -1, 0, nil), mkdir(1, -1, 0, nil)),
		"file: owner of -1":      actions(mkdir(0, -1, 0, byName(-1))),
		"file: owner beyond":     actions(mkdir(0, -1, 0, byName(9))),
		"file: owner of itself":  actions(mkdir(0, -1, 0, byName(1))),
		"file: no name":          actions(mkdir(0, -1, 0, &pb.ChownOpt{Group: &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{}}}})),
		"file: copy mode":        actions(&pb.FileAction{SecondaryInput: 0, Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{Mode: -2}}}),
		"file: copy from 7":      actions(&pb.FileAction{SecondaryInput: 7, Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{Mode: -1}}}),
		"file: zero byte":        actions(&pb.FileAction{Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: "/\x00"}}}),

		"merge: none of one":   {Op: &pb.Op_Merge{Merge: &pb.MergeOp{}}},
		"merge: -1":            {Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: -1}}}}},
		"merge: beyond":        {Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 1}}}}},
		"diff: empty":          {Op: &pb.Op_Diff{Diff: &pb.DiffOp{}}},
		"diff: no upper":       {Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{}}}},
		"diff: unused input":   {Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: -1}, Upper: &pb.UpperDiffInput{Input: -1}}}},
		"diff: beyond":         {Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: 1}, Upper: &pb.UpperDiffInput{Input: -1}}}},
		"diff: -2":             {Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: -2}, Upper: &pb.UpperDiffInput{Input: 0}}}},
		"build: by an input":   {Op: &pb.Op_Build{Build: &pb.BuildOp{Builder: 0}}},
		"build: no definition": {Op: &pb.Op_Build{Build: &pb.BuildOp{Builder: -1}}},
		"build: beyond":        {Op: &pb.Op_Build{Build: &pb.BuildOp{Builder: -1, Inputs: map[string]*pb.BuildInput{pb.LLBDefinitionInput: {Input: 5}}}}},
		"build: -1":            {Op: &pb.Op_Build{Build: &pb.BuildOp{Builder: -1, Inputs: map[string]*pb.BuildInput{pb.LLBDefinitionInput: {Input: -1}}}}},
		"passthrough: empty":   {Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{}}},
		"passthrough: none":    {Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{Id: "x"}}},
		"passthrough: beyond":  {Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{Id: "x", Outputs: []int64{1}}}},
		"passthrough: -1":      {Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{Id: "x", Outputs: []int64{-1}}}},
		"source with an input": source(alpine),
	}
	for _, n := range []int32{-1, 3, 999} {
		all[fmt.Sprint("network ", n)] = command(func(e *pb.ExecOp) { e.Network = pb.NetMode(n) })
		all[fmt.Sprint("security ", n)] = command(func(e *pb.ExecOp) { e.Security = pb.SecurityMode(n) })
		all[fmt.Sprint("sharing ", n)] = mount(&pb.Mount{Dest: "/c", Input: -1, MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{Sharing: pb.CacheSharingOpt(n)}})
		all[fmt.Sprint("content cache ", n)] = mount(&pb.Mount{Dest: "/c", Input: -1, ContentCache: pb.MountContentCache(n)})
	}
	for _, n := range []int32{-1, 5, 999} {
		all[fmt.Sprint("mount type ", n)] = mount(&pb.Mount{Dest: "/c", Input: -1, MountType: pb.MountType(n)})
	}
	for name, op := range all {
		invalid(t, name, assemble(t, base, op))
	}
}

func invalid(t *testing.T, name string, def *pb.Definition) {
	t.Helper()
	roots, _, err := Decode(def, Options{})
	if err == nil {
		t.Errorf("%s: was taken as %s", name, graph.Canonical(roots[0].V.Op))
	} else if diag.KindOf(err) != diag.Invalid {
		t.Errorf("%s: the error is %s: %v", name, diag.KindOf(err), err)
	}
}

func TestHostileSources(t *testing.T) {
	for _, s := range []*pb.Op{
		source(""), source("alpine"), source("docker-image://"), source("docker-image://alpine"), source("docker-image://a b:c"), source("ftp://x/y"), source("file:///etc/passwd"),
		source(alpine, "image.resolvemode", "sometimes"), source(alpine, "image.layerlimit", "0"), source(alpine, "image.layerlimit", "-1"), source(alpine, "image.layerlimit", "x"),
		source(alpine, "image.checksum", "md5:1"), source(alpine, "image.recordtype", "x"), source("docker-image://a:b\x00"), source("docker-image://a:b\n"),
		source("oci-layout://x"), source("oci-layout://x@"+hello, "oci.layerlimit", "99999999999999999999"),
		source("docker-image+blob://x:latest"), source("docker-image+blob://x@sha256:1"), source("oci-layout+blob://x@" + hello),
		source("docker-image+blob://x@"+hello, "http.perm", "-1"), source("docker-image+blob://x@"+hello, "http.perm", "070000"), source("docker-image+blob://x@"+hello, "http.uid", "-1"),
		source("git://-x y"), source("git://example.com/x#-o"), source("git://example.com/x#a b"), source("git://"), source("git://ftp://x/y%zz"),
		source("git://example.com/x", "git.fullurl", "https://evil.com/x"), source("git://example.com/x", "git.fullurl", "https://example.com/y"), source("git://example.com/x", "git.fullurl", "https://example.com/%zz"),
		source("git://example.com/x", "git.mtime", "never"), source("git://example.com/x", "git.bundle", "https://x"), source("git://example.com/x", "git.bundle", "docker-image+blob://x@"+hello),
		source("git://example.com/x#sub:dir", "git.checkoutbundle", "true"), source("git://example.com/x", "git.checkoutbundle", "true", "git.keepgitdir", "true"),
		source("git://example.com/x#"+strings.Repeat("a", 40), "git.bundle", "docker-image+blob://x@"+hello, "git.checksum", "bbbb"),
		source("https://x/y", "http.checksum", "x"), source("https://x/y", "http.uid", "4294967296"), source("https://x/y", "http.gid", "x"), source("https://x/y", "http.header.accept", "a\r\nb: c"),
		source("https://x/y", "http.sig.pubkey", "k"), source("https://x/y", "http.sig.signature", "s"),
		source("local://"), source("local://x", "local.includepattern", "*.go"), source("local://x", "local.followpaths", `{"a":1}`), source("local://x", "local.excludepatterns", `[1]`),
		source("local://x", "local.metadatatransfer", "maybe"), source("local://x", "local.session", "a:b:c"),
	} {
		invalid(t, fmt.Sprint(s.GetSource()), assemble(t, s))
	}
	for _, s := range []string{"/etc/passwd", "../x", "a\nb", "..", ""} {
		v, _ := decode(t, assemble(t, source("docker-image+blob://x@"+hello, "http.filename", s)))
		if f := v.Op.(*graph.Blob).Filename; strings.ContainsAny(f, "/\n") || f == ".." || f == "" {
			t.Errorf("the file name %q became %q", s, f)
		}
	}
}

func TestHostileDefinitions(t *testing.T) {
	good := func() *pb.Definition { return marshal(t, llb.Image("alpine").Run(llb.Shlex("true")).Root()) }
	edit := func(f func(*pb.Definition)) *pb.Definition {
		d := good()
		f(d)
		return d
	}
	end := func(in ...*pb.Input) []byte {
		raw, err := (&pb.Op{Inputs: in}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	first := string(digest.FromBytes(good().Def[0]))
	for name, d := range map[string]*pb.Definition{
		"garbage":           {Def: [][]byte{{0xff, 0xff}}},
		"an empty op":       {Def: [][]byte{{}}},
		"a nil op":          {Def: [][]byte{nil}},
		"no last op":        edit(func(d *pb.Definition) { d.Def = d.Def[:2] }),
		"only the last op":  edit(func(d *pb.Definition) { d.Def = d.Def[2:] }),
		"an op is missing":  edit(func(d *pb.Definition) { d.Def = d.Def[1:] }),
		"no digest":         edit(func(d *pb.Definition) { d.Def[2] = end(&pb.Input{}) }),
		"another digest":    edit(func(d *pb.Definition) { d.Def[2] = end(&pb.Input{Digest: hello}) }),
		"output -1":         edit(func(d *pb.Definition) { d.Def[2] = end(&pb.Input{Digest: first, Index: -1}) }),
		"output 1":          edit(func(d *pb.Definition) { d.Def[2] = end(&pb.Input{Digest: first, Index: 1}) }),
		"output max":        edit(func(d *pb.Definition) { d.Def[2] = end(&pb.Input{Digest: first, Index: math.MaxInt64}) }),
		"a nil source file": edit(func(d *pb.Definition) { d.Source = &pb.Source{Infos: []*pb.SourceInfo{nil}} }),
		"nil locations":     edit(func(d *pb.Definition) { d.Source = &pb.Source{Locations: map[string]*pb.Locations{first: nil}} }),
		"a nil location": edit(func(d *pb.Definition) {
			d.Source = &pb.Source{Locations: map[string]*pb.Locations{first: {Locations: []*pb.Location{nil}}}}
		}),
		"a source file of -1": edit(func(d *pb.Definition) {
			d.Source = &pb.Source{Locations: map[string]*pb.Locations{first: {Locations: []*pb.Location{{SourceIndex: -1}}}}}
		}),
		"a source file of 0": edit(func(d *pb.Definition) {
			d.Source = &pb.Source{Locations: map[string]*pb.Locations{first: {Locations: []*pb.Location{{}}}}}
		}),
		"not UTF-8": edit(func(d *pb.Definition) {
			d.Def[0] = []byte(strings.Replace(string(d.Def[0]), "alpine", "alp\xffne", 1))
			d.Def[2] = end(&pb.Input{Digest: string(digest.FromBytes(d.Def[0]))})
		}),
		"limits": edit(func(d *pb.Definition) {
			d.Metadata[string(digest.FromBytes(d.Def[1]))] = &pb.OpMetadata{LinuxResources: &pb.LinuxResources{Memory: -1}}
		}),
	} {
		invalid(t, name, d)
	}
	for name, d := range map[string]*pb.Definition{
		"nil metadata": edit(func(d *pb.Definition) { d.Metadata = nil }),
		"a nil op's":   edit(func(d *pb.Definition) { d.Metadata = map[string]*pb.OpMetadata{first: nil} }),
		"a range of nothing": edit(func(d *pb.Definition) {
			d.Source = &pb.Source{Infos: []*pb.SourceInfo{{}}, Locations: map[string]*pb.Locations{first: {Locations: []*pb.Location{{Ranges: []*pb.Range{nil, {}, {Start: &pb.Position{Line: -5}}, {Start: &pb.Position{Line: 1, Character: -7}}, {Start: &pb.Position{Line: math.MaxInt32, Character: math.MaxInt32}}}}}}}}
		}),
	} {
		if _, _, err := Decode(d, Options{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	d := edit(func(d *pb.Definition) {
		d.Metadata[first] = &pb.OpMetadata{Caps: map[string]bool{"exec.teleport": true}}
	})
	if _, _, err := Decode(d, Options{}); diag.KindOf(err) != diag.Unsupported {
		t.Errorf("an unknown capability: %v", err)
	}
	if roots, _, err := Decode(nil, Options{}); err != nil || !roots[0].IsScratch() {
		t.Errorf("no definition: %v, %v", roots, err)
	}
}

// Messages that were not parsed but built, as a program of the same process could.
func TestHostileNils(t *testing.T) {
	for name, f := range map[string]func() error{
		"exec": func() error { _, err := DecodeExec(nil, 0); return err },
		"mount": func() error {
			_, err := DecodeExec(&pb.ExecOp{Meta: &pb.Meta{Args: []string{"x"}}, Mounts: []*pb.Mount{nil}}, 0)
			return err
		},
		"host": func() error {
			_, err := DecodeExec(&pb.ExecOp{Meta: &pb.Meta{Args: []string{"x"}, ExtraHosts: []*pb.HostIP{nil}}}, 0)
			return err
		},
		"ulimit": func() error {
			_, err := DecodeExec(&pb.ExecOp{Meta: &pb.Meta{Args: []string{"x"}, Ulimit: []*pb.Ulimit{nil}}}, 0)
			return err
		},
		"file":   func() error { _, err := decodeFile(nil, 0); return err },
		"action": func() error { _, err := decodeFile(&pb.FileOp{Actions: []*pb.FileAction{nil}}, 0); return err },
		"copy": func() error {
			_, err := decodeFile(&pb.FileOp{Actions: []*pb.FileAction{{Input: -1, Action: &pb.FileAction_Copy{}}}}, 0)
			return err
		},
		"name": func() error {
			_, err := decodeFile(actions(mkdir(-1, -1, 0, &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByName{}}})).GetFile(), 0)
			return err
		},
		"merge": func() error {
			_, _, err := decodeMerge(&pb.MergeOp{Inputs: []*pb.MergeInput{nil}}, make([]graph.Edge, 1))
			return err
		},
		"diff":    func() error { _, _, err := decodeDiff(nil, nil); return err },
		"build":   func() error { _, _, err := decodeBuild(nil, nil); return err },
		"source":  func() error { _, err := decodeSource(nil); return err },
		"through": func() error { _, err := decodePassthrough(nil, 0); return err },
	} {
		if err := f(); err == nil || diag.KindOf(err) != diag.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBounds(t *testing.T) {
	var ops []*pb.Op
	ops = append(ops, source(alpine))
	for range 50 {
		ops = append(ops, actions(mkdir(0, -1, 0, nil)))
	}
	ops[1].GetFile().Actions[0].GetMkdir().Path = "/first"
	def := assemble(t, ops...)
	for _, o := range []Options{{MaxOps: 51}, {MaxDepth: 50}, {MaxBytes: 500}} {
		if _, _, err := Decode(def, o); diag.KindOf(err) != diag.Invalid {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if _, _, err := Decode(def, Options{MaxOps: 52, MaxDepth: 51}); err != nil {
		t.Error(err)
	}
	// The limit of depth holds for parts that were reached before by a shorter way.
	two := assemble(t, ops...)
	var last pb.Op
	if err := last.Unmarshal(two.Def[len(two.Def)-1]); err != nil {
		t.Fatal(err)
	}
	last.Inputs = append([]*pb.Input{{Digest: string(digest.FromBytes(two.Def[40]))}}, last.Inputs...)
	raw, _ := last.Marshal()
	two.Def[len(two.Def)-1] = raw
	if _, _, err := Decode(two, Options{MaxDepth: 45}); diag.KindOf(err) != diag.Invalid {
		t.Errorf("a shared part: %v", err)
	}
	// As deep as allowed, and one op with as many actions as allowed, each on the next.
	ops = ops[:1]
	for i := range DefaultMaxDepth - 1 {
		op := actions(mkdir(0, -1, 0, nil))
		op.GetFile().Actions[0].GetMkdir().Path = fmt.Sprint("/", i)
		ops = append(ops, op)
	}
	v, _ := decode(t, assemble(t, ops...))
	again(t, graph.Edge{V: v})
	chain := make([]*pb.FileAction, maxActions)
	for i := range chain {
		chain[i] = mkdir(int64(i)+1, -1, -1, nil)
	}
	chain[0].Output, chain[len(chain)-1].Input = 0, -1
	f, err := decodeFile(&pb.FileOp{Actions: chain}, 0)
	if err != nil || len(f.Actions) != maxActions {
		t.Errorf("a chain of actions: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	a := llb.Image("alpine").Run(llb.Shlex("make"), llb.AddMount("/c", llb.Scratch(), llb.AsPersistentCacheDir("x", llb.CacheMountLocked)),
		llb.AddSecret("/s", llb.SecretID("t")), llb.AddSSHSocket(llb.SSHID("d")), llb.WithCustomName("n"), llb.ProgressGroup("g", "h", false)).Root()
	b := llb.Git("https://example.com/x.git", "main:sub").File(llb.Mkdir("/d", 0o755, llb.WithUser("u:g")).Copy(llb.Local("c"), "/a", "/b", &llb.CopyInfo{AllowWildcard: true}).Rm("/x").Symlink("/a", "/b"))
	m := llb.NewSourceMap(nil, "Dockerfile", "Dockerfile", []byte("FROM x\n"))
	c := llb.HTTP("https://example.com/f", llb.Filename("f"), m.Location([]*pb.Range{{Start: &pb.Position{Line: 1}, End: &pb.Position{Line: 1, Character: 3}}}))
	d := llb.ImageBlob("x/y@" + hello)
	for _, s := range []llb.State{a, b, c, d, llb.Merge([]llb.State{a, llb.Diff(b, a), llb.Diff(c, llb.Scratch())})} {
		raw, err := marshal(f, s).Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var def pb.Definition
		if def.Unmarshal(raw) != nil {
			return
		}
		fuzzed(t, &def)
		// The digests of a changed definition seldom fit: make them fit.
		var ops []*pb.Op
		for _, raw := range def.Def {
			op := &pb.Op{}
			if op.Unmarshal(raw) != nil {
				return
			}
			op.Inputs = op.Inputs[:min(len(op.Inputs), 4)]
			ops = append(ops, op)
		}
		if len(ops) > 20 {
			return
		}
		fixed := &pb.Definition{Source: def.Source, Metadata: map[string]*pb.OpMetadata{}}
		var digests []string
		for i, op := range ops {
			for j, in := range op.Inputs {
				if in == nil || len(digests) == 0 {
					op.Inputs = op.Inputs[:j]
					break
				}
				in.Digest = digests[(j+len(in.Digest))%len(digests)]
			}
			raw, err := op.Marshal()
			if err != nil {
				return
			}
			dgst := string(digest.FromBytes(raw))
			digests = append(digests, dgst)
			fixed.Def = append(fixed.Def, raw)
			if i < len(def.Def) {
				fixed.Metadata[dgst] = def.Metadata[string(digest.FromBytes(def.Def[i]))]
			}
		}
		if len(digests) == 0 {
			return
		}
		last, err := (&pb.Op{Inputs: []*pb.Input{{Digest: digests[len(digests)-1]}}}).Marshal()
		if err != nil {
			return
		}
		fixed.Def = append(fixed.Def, last)
		fuzzed(t, fixed)
	})
}

// fuzzed checks that a definition is refused with the right kind of error, or comes back from its encoding.
func fuzzed(t *testing.T, def *pb.Definition) {
	roots, _, err := Decode(def, Options{Platform: arm, MaxOps: 1000})
	if err != nil {
		if k := diag.KindOf(err); k != diag.Invalid && k != diag.Unsupported {
			t.Fatalf("error of kind %s: %v", k, err)
		}
		return
	}
	def, err = Encode(roots...)
	if err != nil {
		t.Fatalf("what was decoded cannot be encoded: %v", err)
	}
	back, _, err := Decode(def, Options{Platform: arm})
	if err != nil {
		t.Fatalf("what was encoded cannot be decoded: %v", err)
	}
	for i := range roots {
		if roots[i].Out != back[i].Out || roots[i].V != nil && roots[i].V.ID != back[i].V.ID {
			t.Fatalf("%s came back as %s", graph.Canonical(roots[i].V.Op), graph.Canonical(back[i].V.Op))
		}
	}
}
